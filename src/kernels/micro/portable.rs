//! The kernel in plain Rust: twin of the others, and what runs where no better one fits. Arrays as wide as a panel become the vectors that the
//! target has, NEON's on AArch64.
use super::super::PANEL;
use super::Element;

pub const ROWS: usize = 4;

/// See [`super::Multiply`].
///
/// # Safety
/// As there.
pub unsafe fn multiply<E: Element>(x: *const E, stride: usize, rows: usize, k: usize, panel: *const E, out: *mut f32, out_stride: usize) {
    // SAFETY: the caller promises these lengths.
    let (x, panel, out) = unsafe {
        (
            std::slice::from_raw_parts(x, (rows - 1) * stride + k),
            std::slice::from_raw_parts(panel, k * PANEL),
            std::slice::from_raw_parts_mut(out, (rows - 1) * out_stride + PANEL),
        )
    };
    for first in (0..rows).step_by(ROWS) {
        let (x, out) = (&x[first * stride..], &mut out[first * out_stride..]);
        match rows - first {
            1 => block::<E, 1>(x, stride, panel, out, out_stride),
            2 => block::<E, 2>(x, stride, panel, out, out_stride),
            3 => block::<E, 3>(x, stride, panel, out, out_stride),
            _ => block::<E, 4>(x, stride, panel, out, out_stride),
        }
    }
}

/// Where the target multiplies and adds in one instruction, so does this.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn block<E: Element, const M: usize>(x: &[E], stride: usize, panel: &[E], out: &mut [f32], out_stride: usize) {
    // Half a panel at a time: its sums fit the registers.
    const HALF: usize = PANEL / 2;
    for half in 0..2 {
        let mut sums = [[0f32; HALF]; M];
        for (step, group) in panel.chunks_exact(PANEL * E::GROUP).enumerate() {
            for part in 0..E::GROUP {
                let mut weights = [0f32; HALF];
                for (c, w) in weights.iter_mut().enumerate() {
                    *w = group[(half * HALF + c) * E::GROUP + part].get();
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = x[row * stride + step * E::GROUP + part].get();
                    for (sum, &w) in sums.iter_mut().zip(&weights) {
                        *sum = multiply_add(value, w, *sum);
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            out[row * out_stride + half * HALF..][..HALF].copy_from_slice(sums);
        }
    }
}
