//! AMX: 2 × 2 tiles of sums, 32 rows times one panel. The loop over the operands is written against
//! [`Tiles`], so that it runs on any processor (and under Miri) with tiles in memory; only the instructions
//! themselves need the hardware.
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use half::bf16;

use super::super::PANEL;
use super::Operands;
use crate::Float;

/// Rows of two tiles.
pub const ROWS: usize = 32;
/// Rows of one tile, and its bytes in a row.
const TILE: usize = 16;
const TILE_BYTES: usize = 64;
/// Steps of k that a tile of bf16 holds.
const STEP: usize = <bf16 as Float>::K_STEP;
/// Numbers of k in one block: 16 KB of weights and 16 KB of 32 rows, which fit the first-level cache
/// together.
const BLOCK: usize = 256;

/// Eight tile registers: 0 to 3 hold sums (row tile · 2 + column tile), 4 and 5 rows, 6 and 7 weights.
trait Tiles {
    /// Reads a tile.
    ///
    /// # Safety
    /// `from` points to [`TILE`] rows of [`TILE_BYTES`] bytes, `stride` bytes apart.
    unsafe fn load<const T: usize>(&mut self, from: *const u8, stride: usize);
    /// Writes a tile.
    ///
    /// # Safety
    /// As `load`, to write.
    unsafe fn store<const T: usize>(&mut self, to: *mut u8, stride: usize);
    /// Sets a tile to zeros.
    fn zero<const T: usize>(&mut self);
    /// Sums += rows · weights, pairs of bf16 in f32.
    fn multiply<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>(&mut self);
}

/// # Safety
/// See [`Operands`]; [`available`] is true.
pub(super) unsafe fn bf16(operands: Operands<bf16>) {
    let mut tiles = Hardware::configure();
    // SAFETY: by the caller's promise.
    unsafe { multiply(&mut tiles, operands) }
}

/// All rows, one block of k after another.
///
/// # Safety
/// What [`Operands`] says of lengths.
unsafe fn multiply<T: Tiles>(tiles: &mut T, operands: Operands<bf16>) {
    let Operands { rows, k, panel, .. } = operands;
    let whole = rows / ROWS * ROWS;
    let mut first = 0;
    while first < k {
        let count = BLOCK.min(k - first);
        // SAFETY: rows, panel and results are as long as the caller promises; `first + count` is at most k,
        // and both are multiples of STEP.
        unsafe {
            // After the first block of k, sums go on from the results.
            let (start, start_stride) =
                if first == 0 { (operands.start, operands.start_stride) } else { (operands.out.cast_const(), operands.out_stride) };
            let now = Operands { x: operands.x.add(first), k: count, panel: panel.add(first * PANEL), start, start_stride, ..operands };
            let mut row = 0;
            while row < whole {
                block(tiles, now.rows(row, ROWS));
                row += ROWS;
            }
            if whole < rows {
                last_rows(tiles, now.rows(whole, rows - whole));
            }
        }
        first += count;
    }
}

/// Fewer rows than a block: it is filled with rows of zeros.
///
/// # Safety
/// As [`multiply`]; k is at most BLOCK.
unsafe fn last_rows<T: Tiles>(tiles: &mut T, operands: Operands<bf16>) {
    let mut x = Scratch([[bf16::ZERO; BLOCK]; ROWS]);
    let mut sums = Sums([[0.0; PANEL]; ROWS]);
    // SAFETY: only `operands.rows` rows are read and written, in bounds by the caller's promise; the filled
    // block lies in the two arrays above.
    unsafe {
        for row in 0..operands.rows {
            let from = std::slice::from_raw_parts(operands.x.add(row * operands.stride), operands.k);
            x.0[row][..operands.k].copy_from_slice(from);
            if !operands.start.is_null() {
                let start = std::slice::from_raw_parts(operands.start.add(row * operands.start_stride), PANEL);
                sums.0[row].copy_from_slice(start);
            }
        }
        let all: *mut f32 = sums.0.as_mut_ptr().cast();
        let whole = Operands {
            x: x.0.as_ptr().cast(),
            stride: BLOCK,
            rows: ROWS,
            start: all,
            start_stride: PANEL,
            out: all,
            out_stride: PANEL,
            ..operands
        };
        block(tiles, whole);
        for row in 0..operands.rows {
            std::slice::from_raw_parts_mut(operands.out.add(row * operands.out_stride), PANEL).copy_from_slice(&sums.0[row]);
        }
    }
}

/// Rows of a filled block, on cache lines.
#[repr(align(64))]
struct Scratch([[bf16; BLOCK]; ROWS]);
/// Sums of a filled block, on cache lines.
#[repr(align(64))]
struct Sums([[f32; PANEL]; ROWS]);

/// 32 rows times a panel.
///
/// # Safety
/// What [`Operands`] says, for [`ROWS`] rows.
#[inline(always)]
unsafe fn block<T: Tiles>(tiles: &mut T, operands: Operands<bf16>) {
    const WEIGHTS: usize = PANEL * 2 * size_of::<bf16>();
    let Operands { x, stride, k, panel, start, start_stride, out, out_stride, .. } = operands;
    let (bytes, results, starts) = (stride * size_of::<bf16>(), out_stride * size_of::<f32>(), start_stride * size_of::<f32>());
    // SAFETY: a tile of results is 16 rows of 16 f32, `results` bytes apart; a tile of weights is 16 pairs of
    // k of 16 columns, WEIGHTS bytes apart.
    unsafe {
        if start.is_null() {
            tiles.zero::<0>();
            tiles.zero::<1>();
            tiles.zero::<2>();
            tiles.zero::<3>();
        } else {
            // All rows of a bias are the same one: they stand 0 bytes apart.
            let (upper, lower) = (start.cast::<u8>(), start.add(TILE * start_stride).cast::<u8>());
            tiles.load::<0>(upper, starts);
            tiles.load::<1>(upper.add(TILE_BYTES), starts);
            tiles.load::<2>(lower, starts);
            tiles.load::<3>(lower.add(TILE_BYTES), starts);
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
        let (upper, lower) = (out.cast::<u8>(), out.add(TILE * out_stride).cast::<u8>());
        tiles.store::<0>(upper, results);
        tiles.store::<1>(upper.add(TILE_BYTES), results);
        tiles.store::<2>(lower, results);
        tiles.store::<3>(lower.add(TILE_BYTES), results);
    }
}

/// The processor's own tiles. Configured when made, released when dropped: outside a kernel, a thread has no
/// tile state to save.
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
        // SAFETY: the operand is 64 bytes of a valid configuration, and `available` was asked before any
        // kernel was made.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly, preserves_flags)) };
        Self(())
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        // SAFETY: only the tiles lose their content.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

// The compiler never uses tile registers itself, so that they keep their content from one instruction here to
// the next.
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

/// Whether the processor has tiles of bf16 and int8, the operating system keeps their state, and this process
/// may use them.
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
        state & TILE_STATE == TILE_STATE && permitted() && agrees()
    })
}

/// Whether tiles multiply as the portable kernel does. Tried once, so that tiles are never used on a
/// processor (or an emulator) where they do not.
fn agrees() -> bool {
    const SIZES: (usize, usize) = (ROWS + 5, BLOCK + STEP);
    let (rows, k) = SIZES;
    let number = |i: usize| bf16::from_f32(((i * 37 + 11) % 17) as f32 - 8.0);
    let x: Vec<bf16> = (0..rows * k).map(number).collect();
    let panel: Vec<bf16> = (0..k * PANEL).map(|i| number(i * 3 + 5)).collect();
    let product = |multiply: super::Multiply<bf16>| {
        let mut out = vec![0f32; rows * PANEL];
        let (start, out_at) = (std::ptr::null(), out.as_mut_ptr());
        let operands =
            Operands { x: x.as_ptr(), stride: k, rows, k, panel: panel.as_ptr(), start, start_stride: 0, out: out_at, out_stride: PANEL };
        // SAFETY: the lengths are those of the vectors; neither kernel needs the panel on a cache line. The
        // caller has found that the processor has tiles.
        unsafe { multiply(operands) };
        out
    };
    // Sums of small integers are exact in any order.
    let same = product(bf16) == product(super::portable::multiply::<bf16>);
    if !same {
        tracing::warn!("this processor's AMX tiles do not multiply as they should: they are not used");
    }
    same
}

/// Whether this process may use tiles. Linux lets a process have their state if it asks; other systems that
/// enable tiles need no request.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: the request has no pointers.
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
    fn the_loop_over_tiles_multiplies_as_the_definition() {
        for (rows, k, biased) in [(1, 32, true), (31, 288, false), (32, 256, true), (33, 320, true), (70, 544, false)] {
            let (stride, out_stride) = (k + 32, PANEL + 5);
            let small = |i: usize| bf16::from_f32(((i * 37 + 11) % 17) as f32 - 8.0);
            let x: Vec<bf16> = (0..rows * stride).map(small).collect();
            let panel: Vec<bf16> = (0..k * PANEL).map(|i| small(i * 3 + 5)).collect();
            let bias: Vec<f32> = (0..PANEL).map(|c| c as f32).collect();
            let mut out = vec![f32::NAN; rows * out_stride];
            let mut tiles = InMemory([[[0; TILE_BYTES]; TILE]; 8]);
            let start = if biased { bias.as_ptr() } else { std::ptr::null() };
            let (x_at, panel_at, out_at) = (x.as_ptr(), panel.as_ptr(), out.as_mut_ptr());
            // SAFETY: the lengths are those of the vectors.
            unsafe {
                let operands = Operands { x: x_at, stride, rows, k, panel: panel_at, start, start_stride: 0, out: out_at, out_stride };
                multiply(&mut tiles, operands);
            }
            for row in 0..rows {
                for column in 0..PANEL {
                    let weight = |k: usize| panel[(k / 2 * PANEL + column) * 2 + k % 2].to_f32();
                    let sum: f32 = (0..k).map(|i| x[row * stride + i].to_f32() * weight(i)).sum();
                    let sum = sum + if biased { bias[column] } else { 0.0 };
                    assert_eq!(out[row * out_stride + column], sum, "{rows} rows of {k}, at {row}, {column}");
                }
            }
        }
    }
}
