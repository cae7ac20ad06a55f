//! The micro-kernels: a few rows times one panel of packed weights, one file for each set of instructions.
//! The tables [`F32`] and [`BF16`] name them.
#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(test)]
pub(super) mod int8;
mod portable;

use half::bf16;

use super::{Format, Isa, PANEL, RowsRef};

/// A micro-kernel and the instructions that it needs.
#[derive(Debug)]
pub struct Implementation<F: Format> {
    /// Number format and instructions.
    name: &'static str,
    /// The least set of instructions that has all that it uses.
    needs: Isa,
    /// Rows that it does at once.
    rows: usize,
    multiply: Multiply<F>,
}

/// The kernels of f32, the fastest first.
pub(super) const F32: &[Implementation<f32>] = &[
    #[cfg(target_arch = "x86_64")]
    Implementation { name: "f32 avx512", needs: Isa::Avx512, rows: avx512::ROWS, multiply: avx512::f32 },
    #[cfg(target_arch = "x86_64")]
    Implementation { name: "f32 avx2", needs: Isa::Avx2, rows: avx2::F32_ROWS, multiply: avx2::f32 },
    Implementation { name: "f32 portable", needs: Isa::Portable, rows: portable::ROWS, multiply: portable::multiply::<f32> },
];

/// The kernels of bf16, the fastest first.
pub(super) const BF16: &[Implementation<bf16>] = &[
    #[cfg(target_arch = "x86_64")]
    Implementation { name: "bf16 amx", needs: Isa::Amx, rows: amx::ROWS, multiply: amx::bf16 },
    #[cfg(target_arch = "x86_64")]
    Implementation { name: "bf16 avx512-bf16", needs: Isa::Avx512Bf16, rows: avx512::ROWS, multiply: avx512::bf16 },
    #[cfg(target_arch = "x86_64")]
    Implementation { name: "bf16 avx512", needs: Isa::Avx512, rows: avx512::WIDENED_ROWS, multiply: avx512::bf16_widened },
    #[cfg(target_arch = "x86_64")]
    Implementation { name: "bf16 avx2", needs: Isa::Avx2, rows: avx2::BF16_ROWS, multiply: avx2::bf16 },
    Implementation { name: "bf16 portable", needs: Isa::Portable, rows: portable::ROWS, multiply: portable::multiply::<bf16> },
];

/// The operands of one call.
///
/// A kernel relies on all of this:
/// - the processor has the kernel's instructions;
/// - `rows` (at least 1) rows of `k` numbers, `stride` apart, can be read from `x`;
/// - `panel` holds `k · PANEL` weights and starts on a cache line, and `k` is a multiple of the format's
///   step;
/// - `out` has room for `rows` rows of PANEL sums, `out_stride` apart;
/// - from `start`, unless it is null, `rows` rows of PANEL sums can be read, `start_stride` apart.
#[derive(Clone, Copy)]
struct Operands<F: Format> {
    x: *const F::Activation,
    stride: usize,
    rows: usize,
    k: usize,
    panel: *const F::Weight,
    /// What the sums begin with: null for zeros.
    start: *const F::Accumulator,
    start_stride: usize,
    out: *mut F::Accumulator,
    out_stride: usize,
}

impl<F: Format> Operands<F> {
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
pub enum Start<'a, A> {
    /// Zeros.
    Zero,
    /// A number for each column.
    Columns(&'a [A; PANEL]),
    /// What the results hold already.
    Results,
}

/// # Safety
/// What [`Operands`] says.
type Multiply<F> = unsafe fn(Operands<F>);

/// A micro-kernel that this processor can run.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<F: Format> {
    /// Number format and instructions.
    pub name: &'static str,
    /// The instructions that run beside it, for everything that is not a product.
    pub isa: Isa,
    /// Rows that it does at once.
    pub rows: usize,
    multiply: Multiply<F>,
}

impl<F: Format> Kernel<F> {
    /// The fastest kernel with the instructions `isa`, or with as many of them as this processor has.
    pub(super) fn fastest(isa: Isa) -> Self {
        let isa = Isa::at_most(Some(isa));
        let found = F::KERNELS.iter().find(|kernel| kernel.needs <= isa);
        let Implementation { name, rows, multiply, .. } = found.expect("the last kernel of a format is portable");
        Self { name, isa, rows: *rows, multiply: *multiply }
    }

    /// `out[i, c] = start + Σ_k x[i, k] · panel[k, c]`; `k` is padded, as the panel is. Rows of sums stand
    /// `out_stride` apart.
    ///
    /// # Panics
    /// Where a slice is too short.
    #[inline]
    pub fn multiply(
        &self,
        x: RowsRef<'_, F::Activation>,
        k: usize,
        panel: &[F::Weight],
        start: Start<'_, F::Accumulator>,
        out: &mut [F::Accumulator],
        out_stride: usize,
    ) {
        let rows = x.rows();
        if rows == 0 {
            return;
        }
        let readable = x.readable_from(0).len();
        assert!((rows - 1) * x.stride() + k <= readable, "{rows} rows, {} apart, of {k} numbers in {readable}", x.stride());
        assert!(panel.len() == k * PANEL && k.is_multiple_of(F::K_STEP), "a panel of {k} steps");
        assert!(panel.as_ptr().addr().is_multiple_of(64), "a panel starts on a cache line");
        assert!(out_stride >= PANEL && (rows - 1) * out_stride + PANEL <= out.len(), "{rows} rows of results, {out_stride} apart");
        let out = out.as_mut_ptr();
        let (start, start_stride) = match start {
            Start::Zero => (std::ptr::null(), 0),
            Start::Columns(columns) => (columns.as_ptr(), 0),
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
        // SAFETY: the assertions above check the lengths, and `fastest`, which alone makes a kernel, looks
        // only at those whose instructions this processor has.
        unsafe { (self.multiply)(operands) }
    }
}

/// Adds rows of results to `out`, whose rows stand `stride` apart.
///
/// # Safety
/// `out` has room for `results.len()` rows of PANEL numbers, `stride` apart, that no other thread reads or
/// writes; the processor has the instructions `isa`.
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
