//! AMX: 2 × 2 tiles of sums, 32 rows times one panel. The walk over the operands is written against [`Tiles`], so that it runs on any processor
//! (and under Miri) with tiles in memory; only the instructions themselves need the hardware.
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use half::bf16;

use super::super::PANEL;
use super::Element;

/// Rows of two tiles.
pub const ROWS: usize = 32;
/// Rows of one tile, and its bytes in a row.
const TILE: usize = 16;
const TILE_BYTES: usize = 64;
/// Steps of k that a tile of bf16 holds.
const STEP: usize = <bf16 as Element>::STEP;
/// k is walked in blocks of so many: 16 KB of weights and as much of 32 rows, which fit the first-level cache together.
const BLOCK: usize = 256;

/// Eight tile registers: 0 to 3 hold sums (row tile · 2 + column tile), 4 and 5 rows, 6 and 7 weights.
trait Tiles {
    /// # Safety
    /// `from` points to [`TILE`] rows of [`TILE_BYTES`] bytes, `stride` bytes apart.
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize);
    /// # Safety
    /// As `load`, to write.
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize);
    fn zero<const T: usize>(&mut self);
    /// Sums += rows · weights, pairs of bf16 in f32.
    fn multiply<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>(&mut self);
}

/// # Safety
/// See [`super::Multiply`]; [`available`] said yes.
pub unsafe fn bf16(x: *const bf16, stride: usize, rows: usize, k: usize, panel: *const bf16, out: *mut f32, out_stride: usize) {
    let mut tiles = Hardware::configure();
    // SAFETY: by the caller's promise.
    unsafe { multiply(&mut tiles, x, stride, rows, k, panel, out, out_stride) }
}

/// # Safety
/// The lengths of [`super::Multiply`].
#[allow(clippy::too_many_arguments, reason = "one product's operands, as `Multiply` has them")]
unsafe fn multiply<T: Tiles>(
    tiles: &mut T,
    x: *const bf16,
    stride: usize,
    rows: usize,
    k: usize,
    panel: *const bf16,
    out: *mut f32,
    out_stride: usize,
) {
    let whole = rows / ROWS * ROWS;
    let mut first = 0;
    while first < k {
        let count = BLOCK.min(k - first);
        // SAFETY: rows, panel and results are as long as the caller says; `first + count` is at most k, and both are multiples of STEP.
        unsafe {
            let panel = panel.add(first * PANEL);
            let mut row = 0;
            while row < whole {
                block(tiles, x.add(row * stride + first), stride, count, panel, out.add(row * out_stride), out_stride, first == 0);
                row += ROWS;
            }
            if whole < rows {
                // Rows that are not there stand as zeros.
                let mut last = Scratch([[bf16::ZERO; BLOCK]; ROWS]);
                let mut sums = Sums([0.0; ROWS * PANEL]);
                let left = rows - whole;
                for (row, line) in last.0.iter_mut().enumerate().take(left) {
                    line[..count].copy_from_slice(std::slice::from_raw_parts(x.add((whole + row) * stride + first), count));
                }
                let results = |row: usize| std::slice::from_raw_parts_mut(out.add((whole + row) * out_stride), PANEL);
                if first > 0 {
                    (0..left).for_each(|row| sums.0[row * PANEL..(row + 1) * PANEL].copy_from_slice(results(row)));
                }
                block(tiles, last.0.as_ptr().cast(), BLOCK, count, panel, sums.0.as_mut_ptr(), PANEL, first == 0);
                (0..left).for_each(|row| results(row).copy_from_slice(&sums.0[row * PANEL..(row + 1) * PANEL]));
            }
        }
        first += count;
    }
}

#[repr(align(64))]
struct Scratch([[bf16; BLOCK]; ROWS]);
#[repr(align(64))]
struct Sums([f32; ROWS * PANEL]);

/// 32 rows times a panel over `k` steps, added to what `out` holds unless `fresh`.
///
/// # Safety
/// 32 rows of `k` numbers, `stride` apart; `k · PANEL` weights; 32 rows of PANEL results, `out_stride` apart.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "one block's operands")]
unsafe fn block<T: Tiles>(
    tiles: &mut T,
    x: *const bf16,
    stride: usize,
    k: usize,
    panel: *const bf16,
    out: *mut f32,
    out_stride: usize,
    fresh: bool,
) {
    const WEIGHTS: usize = PANEL * 2 * size_of::<bf16>();
    let (bytes, results) = (stride * size_of::<bf16>(), out_stride * size_of::<f32>());
    let (upper, lower) = (out.cast::<u8>(), out.wrapping_add(TILE * out_stride).cast::<u8>());
    // SAFETY: a tile of results is 16 rows of 16 f32, `results` bytes apart; a tile of weights 16 pairs of k of 16 columns, WEIGHTS bytes apart.
    unsafe {
        if fresh {
            tiles.zero::<0>();
            tiles.zero::<1>();
            tiles.zero::<2>();
            tiles.zero::<3>();
        } else {
            tiles.load::<0>(upper, results);
            tiles.load::<1>(upper.add(TILE_BYTES), results);
            tiles.load::<2>(lower, results);
            tiles.load::<3>(lower.add(TILE_BYTES), results);
        }
        let mut step = 0;
        while step < k {
            let weights = panel.add(step * PANEL).cast::<u8>();
            tiles.load::<6>(weights, WEIGHTS);
            tiles.load::<4>(x.add(step).cast(), bytes);
            tiles.multiply::<0, 4, 6>();
            tiles.load::<7>(weights.add(TILE_BYTES), WEIGHTS);
            tiles.multiply::<1, 4, 7>();
            tiles.load::<5>(x.add(TILE * stride + step).cast(), bytes);
            tiles.multiply::<2, 5, 6>();
            tiles.multiply::<3, 5, 7>();
            step += STEP;
        }
        tiles.store::<0>(upper, results);
        tiles.store::<1>(upper.add(TILE_BYTES), results);
        tiles.store::<2>(lower, results);
        tiles.store::<3>(lower.add(TILE_BYTES), results);
    }
}

/// The processor's own tiles. Configured when made, released when dropped: a thread that is not in a kernel carries no tile state.
struct Hardware(());

/// `ldtilecfg`'s operand: palette 1, and for each tile its bytes in a row and its rows.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Hardware {
    fn configure() -> Self {
        let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        config.bytes[..8].fill(TILE_BYTES as u16);
        config.rows[..8].fill(TILE as u8);
        // SAFETY: the operand is 64 bytes of a valid configuration; whoever makes this has asked `available`.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly, preserves_flags)) };
        Self(())
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        // SAFETY: it only forgets the tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

// The compiler never uses tile registers itself, so that they keep their content from one instruction here to the next.
impl Tiles for Hardware {
    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: readable by the caller's promise.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}*1]", t = const T, from = in(reg) from, stride = in(reg) stride, options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize) {
        // SAFETY: writable by the caller's promise.
        unsafe {
            asm!("tilestored [{to} + {stride}*1], tmm{t}", t = const T, to = in(reg) to, stride = in(reg) stride, options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        // SAFETY: only a tile register changes.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, nomem, preserves_flags)) };
    }

    #[inline(always)]
    fn multiply<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>(&mut self) {
        // SAFETY: only a tile register changes.
        unsafe {
            asm!("tdpbf16ps tmm{s}, tmm{r}, tmm{w}", s = const SUMS, r = const ROWS, w = const WEIGHTS, options(nostack, nomem, preserves_flags));
        }
    }
}

/// Whether the processor has tiles of bf16 and int8, the operating system keeps their state, and this process may use them.
pub fn available() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        const OSXSAVE: u32 = 1 << 27;
        const AMX_BF16_TILE_INT8: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        const TILE_STATE: u64 = 1 << 17 | 1 << 18;
        if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
            return false;
        }
        if __cpuid_count(7, 0).edx & AMX_BF16_TILE_INT8 != AMX_BF16_TILE_INT8 {
            return false;
        }
        #[target_feature(enable = "xsave")]
        fn enabled_state() -> u64 {
            // SAFETY: register 0 exists wherever xgetbv does.
            unsafe { _xgetbv(0) }
        }
        // SAFETY: the operating system uses xsave (OSXSAVE), so that xgetbv is there.
        let state = unsafe { enabled_state() };
        state & TILE_STATE == TILE_STATE && permitted()
    })
}

/// Linux hands out the large tile state to processes that ask; other systems that enable it ask nothing.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: a request without pointers.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tile registers in memory, as the manual describes them.
    struct InMemory([[[u8; TILE_BYTES]; TILE]; 8]);

    impl Tiles for InMemory {
        unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize) {
            for (row, line) in self.0[T].iter_mut().enumerate() {
                // SAFETY: by the caller's promise.
                line.copy_from_slice(unsafe { std::slice::from_raw_parts(from.add(row * stride), TILE_BYTES) });
            }
        }

        unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize) {
            for (row, line) in self.0[T].iter().enumerate() {
                // SAFETY: by the caller's promise.
                unsafe { std::slice::from_raw_parts_mut(to.add(row * stride), TILE_BYTES) }.copy_from_slice(line);
            }
        }

        fn zero<const T: usize>(&mut self) {
            self.0[T] = [[0; TILE_BYTES]; TILE];
        }

        fn multiply<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>(&mut self) {
            let wide = |tile: &[[u8; TILE_BYTES]; TILE], row: usize, i: usize| {
                bf16::from_le_bytes([tile[row][2 * i], tile[row][2 * i + 1]]).to_f32()
            };
            for row in 0..TILE {
                for column in 0..TILE {
                    let place = 4 * column..4 * column + 4;
                    let mut sum = f32::from_le_bytes(self.0[SUMS][row][place.clone()].try_into().unwrap());
                    for k in 0..TILE {
                        for part in 0..2 {
                            sum += wide(&self.0[ROWS], row, 2 * k + part) * wide(&self.0[WEIGHTS], k, 2 * column + part);
                        }
                    }
                    self.0[SUMS][row][place].copy_from_slice(&sum.to_le_bytes());
                }
            }
        }
    }

    #[test]
    fn the_walk_over_tiles_multiplies() {
        for (rows, k) in [(1, 32), (31, 288), (32, 256), (33, 320), (70, 544)] {
            let stride = k + 32;
            let small = |i: usize| bf16::from_f32(((i * 37 + 11) % 17) as f32 - 8.0);
            let x: Vec<bf16> = (0..rows * stride).map(small).collect();
            let panel: Vec<bf16> = (0..k * PANEL).map(|i| small(i * 3 + 5)).collect();
            let mut out = vec![f32::NAN; rows * PANEL];
            let mut tiles = InMemory([[[0; TILE_BYTES]; TILE]; 8]);
            // SAFETY: the lengths are those of the vectors.
            unsafe { multiply(&mut tiles, x.as_ptr(), stride, rows, k, panel.as_ptr(), out.as_mut_ptr(), PANEL) };
            for row in 0..rows {
                for column in 0..PANEL {
                    let weight = |k: usize| panel[(k / 2 * PANEL + column) * 2 + k % 2].to_f32();
                    let sum: f32 = (0..k).map(|i| x[row * stride + i].to_f32() * weight(i)).sum();
                    assert_eq!(out[row * PANEL + column], sum, "{rows} rows of {k}, at {row}, {column}");
                }
            }
        }
    }
}
