//! The kernel in plain Rust, for processors that no other one fits. The compiler turns its arrays, half as
//! wide as a panel, into the vectors that the target has: NEON's on AArch64.
use super::super::PANEL;
use super::Operands;
use crate::Float;

/// Rows that are computed at once.
pub const ROWS: usize = 4;

/// # Safety
/// See [`Operands`].
pub(super) unsafe fn multiply<E: Float>(operands: Operands<E>) {
    for first in (0..operands.rows).step_by(ROWS) {
        let count = ROWS.min(operands.rows - first);
        // SAFETY: each block reads and writes the rows of its part, in bounds by the caller's promise.
        unsafe {
            let part = operands.rows(first, count);
            match count {
                1 => block::<E, 1>(part),
                2 => block::<E, 2>(part),
                3 => block::<E, 3>(part),
                _ => block::<E, 4>(part),
            }
        }
    }
}

/// Where the target multiplies and adds in one instruction, so does this.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

/// # Safety
/// See [`Operands`], for M rows.
#[inline(always)]
unsafe fn block<E: Float, const M: usize>(operands: Operands<E>) {
    // Half a panel at a time: its sums fit the registers.
    const HALF: usize = PANEL / 2;
    let Operands { x, stride, k, panel, start, start_stride, out, out_stride, .. } = operands;
    // SAFETY: M rows of `k` numbers and the panel can be read by the caller's promise.
    let (x, panel) = unsafe { (std::slice::from_raw_parts(x, (M - 1) * stride + k), std::slice::from_raw_parts(panel, k * PANEL)) };
    for half in 0..2 {
        let mut sums = [[0f32; HALF]; M];
        if !start.is_null() {
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: M rows of PANEL numbers can be read.
                sums.copy_from_slice(unsafe { std::slice::from_raw_parts(start.add(row * start_stride + half * HALF), HALF) });
            }
        }
        for (step, group) in panel.chunks_exact(PANEL * E::K_INTERLEAVE).enumerate() {
            for part in 0..E::K_INTERLEAVE {
                let mut weights = [0f32; HALF];
                for (c, w) in weights.iter_mut().enumerate() {
                    *w = group[(half * HALF + c) * E::K_INTERLEAVE + part].get();
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = x[row * stride + step * E::K_INTERLEAVE + part].get();
                    for (sum, &w) in sums.iter_mut().zip(&weights) {
                        *sum = multiply_add(value, w, *sum);
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: there is room for M rows of PANEL numbers.
            unsafe { std::slice::from_raw_parts_mut(out.add(row * out_stride + half * HALF), HALF) }.copy_from_slice(sums);
        }
    }
}
