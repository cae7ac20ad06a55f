//! The micro-kernels: a few rows times one panel of packed weights, written once per processor.
#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::bf16;

use super::{Isa, PANEL, RowsRef};

/// A number format of a product's operands. Products sum in f32.
pub trait Element: Copy + Default + Send + Sync + std::fmt::Debug + 'static {
    /// As `--precision` calls it.
    const NAME: &'static str;
    /// Neighbours in k that stand together in a panel, since one lane of a dot-product instruction takes them at once.
    const GROUP: usize;
    /// k is padded with zeros to a multiple of this.
    const STEP: usize;

    /// The nearest number of this format, ties to even.
    fn of(value: f32) -> Self;

    /// [`Self::of`] of a panel's row; with the processor's own instruction where it has one, which takes numbers below 2⁻¹²⁶ for 0.
    #[inline(always)]
    fn round(isa: Isa, from: &[f32; PANEL], to: &mut [Self; PANEL]) {
        let _ = isa;
        round_each(from, to);
    }

    fn get(self) -> f32;

    /// The kernel for a set of instructions, or for as much of it as this processor has.
    fn kernel(isa: Isa) -> Kernel<Self>;
}

#[inline(always)]
fn round_each<E: Element>(from: &[f32; PANEL], to: &mut [E; PANEL]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = E::of(from));
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const GROUP: usize = 1;
    const STEP: usize = 1;

    #[inline(always)]
    fn of(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn get(self) -> f32 {
        self
    }

    fn kernel(isa: Isa) -> Kernel<Self> {
        let isa = Isa::at_most(Some(isa));
        #[cfg(target_arch = "x86_64")]
        match isa {
            Isa::Portable => {}
            Isa::Avx2 => return Kernel { name: "f32 avx2", isa, rows: avx2::F32_ROWS, multiply: avx2::f32 },
            _ => return Kernel { name: "f32 avx512", isa, rows: avx512::ROWS, multiply: avx512::f32 },
        }
        Kernel { name: "f32 portable", isa, rows: portable::ROWS, multiply: portable::multiply::<f32> }
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const GROUP: usize = 2;
    const STEP: usize = 32;

    /// Without the branches of `half`, so that loops over it vectorise. Infinities and NaN stay what they are, but for NaN's payload.
    #[inline(always)]
    fn of(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let kept = if value.is_nan() { bits | 0x0040_0000 } else { rounded };
        Self::from_bits((kept >> 16) as u16)
    }

    #[inline(always)]
    fn round(isa: Isa, from: &[f32; PANEL], to: &mut [Self; PANEL]) {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512Bf16 && is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the processor has the instruction, as was seen just now; AVX-512 F comes with it.
            return unsafe { avx512::round(from, to) };
        }
        let _ = isa;
        round_each(from, to);
    }

    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn kernel(isa: Isa) -> Kernel<Self> {
        let isa = Isa::at_most(Some(isa));
        #[cfg(target_arch = "x86_64")]
        match isa {
            Isa::Portable => {}
            Isa::Avx2 => return Kernel { name: "bf16 avx2", isa, rows: avx2::BF16_ROWS, multiply: avx2::bf16 },
            Isa::Avx512 => return Kernel { name: "bf16 avx512", isa, rows: avx512::WIDENED_ROWS, multiply: avx512::bf16_widened },
            Isa::Avx512Bf16 => return Kernel { name: "bf16 avx512-bf16", isa, rows: avx512::ROWS, multiply: avx512::bf16 },
            Isa::Amx => return Kernel { name: "bf16 amx", isa, rows: amx::ROWS, multiply: amx::bf16 },
        }
        Kernel { name: "bf16 portable", isa, rows: portable::ROWS, multiply: portable::multiply::<bf16> }
    }
}

/// The operands of one call.
///
/// What a kernel relies on: the processor has its instructions; `rows` (at least 1) rows of `k` numbers, `stride` apart, can be read from `x`; `panel`
/// holds `k · PANEL` numbers and starts on a cache line; `k` is a multiple of the format's step; `out` has room for `rows` rows of PANEL numbers,
/// `out_stride` apart; from `start`, unless it is null, as many rows can be read, `start_stride` apart.
#[derive(Clone, Copy)]
struct Operands<E> {
    x: *const E,
    stride: usize,
    rows: usize,
    k: usize,
    panel: *const E,
    /// What the sums begin with: null for zeros.
    start: *const f32,
    start_stride: usize,
    out: *mut f32,
    out_stride: usize,
}

impl<E> Operands<E> {
    /// The same operands for some of the rows.
    ///
    /// # Safety
    /// `first + rows` is at most the number of rows.
    #[inline(always)]
    unsafe fn rows(self, first: usize, rows: usize) -> Self {
        // SAFETY: within the rows by the caller's promise.
        unsafe {
            let start = if self.start.is_null() { self.start } else { self.start.add(first * self.start_stride) };
            Self { x: self.x.add(first * self.stride), rows, start, out: self.out.add(first * self.out_stride), ..self }
        }
    }
}

/// What the sums of a product begin with.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    Zero,
    /// A number for each column.
    Bias(&'a [f32; PANEL]),
    /// What the results hold already.
    Results,
}

/// # Safety
/// What [`Operands`] says.
type Multiply<E> = unsafe fn(Operands<E>);

/// A micro-kernel that this processor can run.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<E> {
    /// Number format and instructions.
    pub name: &'static str,
    /// What runs beside it, for all that is no product.
    pub isa: Isa,
    /// Rows that it does at once.
    pub rows: usize,
    multiply: Multiply<E>,
}

impl<E: Element> Kernel<E> {
    /// `out[i, c] = start + Σ_k x[i, k] · panel[k, c]`; `k` is padded, as the panel is. Rows of results stand `out_stride` apart.
    ///
    /// # Panics
    /// Where a slice is too short.
    #[inline]
    pub fn multiply(&self, x: RowsRef<'_, E>, k: usize, panel: &[E], start: Start<'_>, out: &mut [f32], out_stride: usize) {
        let rows = x.rows();
        if rows == 0 {
            return;
        }
        let readable = x.readable_from(0).len();
        assert!((rows - 1) * x.stride() + k <= readable, "{rows} rows, {} apart, of {k} numbers in {readable}", x.stride());
        assert!(panel.len() == k * PANEL && k.is_multiple_of(E::STEP), "a panel of {k} steps");
        assert!(panel.as_ptr().addr().is_multiple_of(64), "a panel starts on a cache line");
        assert!(out_stride >= PANEL && (rows - 1) * out_stride + PANEL <= out.len(), "{rows} rows of results, {out_stride} apart");
        let out = out.as_mut_ptr();
        let (start, start_stride) = match start {
            Start::Zero => (std::ptr::null(), 0),
            Start::Bias(bias) => (bias.as_ptr(), 0),
            Start::Results => (out.cast_const(), out_stride),
        };
        let operands = Operands {
            x: x.readable_from(0).as_ptr(),
            stride: x.stride(),
            rows,
            k,
            panel: panel.as_ptr(),
            start,
            start_stride,
            out,
            out_stride,
        };
        // SAFETY: the lengths were checked just now, and `Element::kernel` makes a kernel only for instructions that this processor has.
        unsafe { (self.multiply)(operands) }
    }
}

/// Adds rows of results to `out`, whose rows stand `stride` apart.
///
/// # Safety
/// `out` has room for `results.len()` rows of PANEL numbers, `stride` apart, that nobody else looks at; the processor has the instructions `isa`.
#[inline(always)]
pub(super) unsafe fn add_rows(isa: Isa, results: &[[f32; PANEL]], out: *mut f32, stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        // SAFETY: by the caller's promise.
        return unsafe { avx512::add_rows(results, out, stride) };
    }
    let _ = isa;
    for (row, results) in results.iter().enumerate() {
        for (column, x) in results.iter().enumerate() {
            // SAFETY: by the caller's promise.
            unsafe { *out.add(row * stride + column) += x };
        }
    }
}
