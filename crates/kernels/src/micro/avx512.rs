//! AVX-512: f32, bf16 with dot products, and bf16 widened to f32 where there are none.
use std::arch::x86_64::*;

use half::bf16;

use super::super::PANEL;
use super::Operands;
use crate::Float;

/// 14 rows of two vectors each: 28 sums, two vectors of weights and one number of a row fill the 32
/// registers.
pub const ROWS: usize = 14;
/// 12 rows of two vectors each: widening the weights takes the other registers.
pub const WIDENED_ROWS: usize = 12;

/// Calls a block function with its number of rows known to the compiler: whole blocks, then what is left.
macro_rules! by_rows {
    ($block:ident, $most:literal, $operands:ident, [$($m:literal),*]) => {{
        let mut row = 0;
        while row < $operands.rows {
            let count = ($operands.rows - row).min($most);
            let part = $operands.rows(row, count);
            match count {
                $($m => $block::<$m>(part),)*
                _ => unreachable!("a block has 1 to {} rows", $most),
            }
            row += count;
        }
    }};
}
pub(super) use by_rows;

/// # Safety
/// See [`Operands`].
pub(super) unsafe fn f32(operands: Operands<f32>) {
    // SAFETY: each block reads and writes the rows of its part, in bounds by the caller's promise.
    unsafe { by_rows!(block_f32, 14, operands, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]) }
}

/// # Safety
/// See [`Operands`].
pub(super) unsafe fn bf16(operands: Operands<bf16>) {
    // SAFETY: as in `f32`.
    unsafe { by_rows!(block_bf16, 14, operands, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]) }
}

/// # Safety
/// See [`Operands`].
pub(super) unsafe fn bf16_widened(operands: Operands<bf16>) {
    // SAFETY: as in `f32`.
    unsafe { by_rows!(block_widened, 12, operands, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]) }
}

/// # Safety
/// See [`super::add_rows`].
#[inline]
#[target_feature(enable = "avx512f")]
pub unsafe fn add_rows(results: &[[f32; PANEL]], out: *mut f32, stride: usize) {
    for (row, results) in results.iter().enumerate() {
        for half in [0, PANEL / 2] {
            // SAFETY: by the caller's promise.
            unsafe {
                let out = out.add(row * stride + half);
                _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), _mm512_loadu_ps(results.as_ptr().add(half))));
            }
        }
    }
}

/// The nearest bf16, ties to even; numbers below 2⁻¹²⁶ become 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub fn round(from: &[f32; PANEL], to: &mut [bf16; PANEL]) {
    // SAFETY: both arrays are as long as what is read and written; a `__m512bh` is 32 bf16 in order.
    unsafe {
        let (low, high) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(PANEL / 2)));
        let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
        _mm512_storeu_si512(to.as_mut_ptr().cast(), rounded);
    }
}

/// What the sums of M rows begin with.
///
/// # Safety
/// See [`Operands`], for M rows.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn start<E: Float, const M: usize>(operands: &Operands<E>) -> [[__m512; 2]; M] {
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    if !operands.start.is_null() {
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: M rows of PANEL numbers can be read.
            unsafe {
                let start = operands.start.add(row * operands.start_stride);
                *sums = [_mm512_loadu_ps(start), _mm512_loadu_ps(start.add(16))];
            }
        }
    }
    sums
}

/// Writes the sums of M rows.
///
/// # Safety
/// See [`Operands`], for M rows.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<E: Float, const M: usize>(operands: &Operands<E>, sums: [[__m512; 2]; M]) {
    for (row, [low, high]) in sums.into_iter().enumerate() {
        // SAFETY: there is room for M rows of PANEL numbers.
        unsafe {
            let out = operands.out.add(row * operands.out_stride);
            _mm512_storeu_ps(out, low);
            _mm512_storeu_ps(out.add(16), high);
        }
    }
}

/// # Safety
/// See [`Operands`], for M rows.
#[target_feature(enable = "avx512f")]
unsafe fn block_f32<const M: usize>(operands: Operands<f32>) {
    let Operands { x, stride, k, panel, .. } = operands;
    // SAFETY: `k` steps of the panel and of M rows are readable.
    unsafe {
        let mut sums = start::<_, M>(&operands);
        for step in 0..k {
            let weights = panel.add(step * PANEL);
            let (low, high) = (_mm512_load_ps(weights), _mm512_load_ps(weights.add(16)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = _mm512_set1_ps(*x.add(row * stride + step));
                sums[0] = _mm512_fmadd_ps(value, low, sums[0]);
                sums[1] = _mm512_fmadd_ps(value, high, sums[1]);
            }
        }
        store::<_, M>(&operands, sums);
    }
}

/// # Safety
/// See [`Operands`], for M rows.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn block_bf16<const M: usize>(operands: Operands<bf16>) {
    let Operands { x, stride, k, panel, .. } = operands;
    // SAFETY: `k` steps of the panel and of M rows are readable, two bf16 at a time; an `__m512bh` is 64
    // bytes of any content.
    unsafe {
        let mut sums = start::<_, M>(&operands);
        for step in 0..k / 2 {
            let weights = panel.add(step * 2 * PANEL).cast::<__m512i>();
            let low: __m512bh = std::mem::transmute(_mm512_load_si512(weights));
            let high: __m512bh = std::mem::transmute(_mm512_load_si512(weights.add(1)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let pair = x.add(row * stride + 2 * step).cast::<i32>().read_unaligned();
                let value: __m512bh = std::mem::transmute(_mm512_set1_epi32(pair));
                sums[0] = _mm512_dpbf16_ps(sums[0], value, low);
                sums[1] = _mm512_dpbf16_ps(sums[1], value, high);
            }
        }
        store::<_, M>(&operands, sums);
    }
}

/// # Safety
/// See [`Operands`], for M rows.
#[target_feature(enable = "avx512f")]
unsafe fn block_widened<const M: usize>(operands: Operands<bf16>) {
    let Operands { x, stride, k, panel, .. } = operands;
    let high_half = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    // SAFETY: as in `block_bf16`. A bf16 is the upper half of an f32: even k is shifted up, odd k keeps its
    // place.
    unsafe {
        let mut sums = start::<_, M>(&operands);
        for step in 0..k / 2 {
            let weights = panel.add(step * 2 * PANEL).cast::<__m512i>();
            let pairs = [_mm512_load_si512(weights), _mm512_load_si512(weights.add(1))];
            let even = pairs.map(|p| _mm512_castsi512_ps(_mm512_slli_epi32(p, 16)));
            let odd = pairs.map(|p| _mm512_castsi512_ps(_mm512_and_si512(p, high_half)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let pair = x.add(row * stride + 2 * step).cast::<u32>().read_unaligned();
                let (first, second) = (_mm512_set1_ps(f32::from_bits(pair << 16)), _mm512_set1_ps(f32::from_bits(pair & 0xffff_0000)));
                for half in 0..2 {
                    sums[half] = _mm512_fmadd_ps(first, even[half], sums[half]);
                    sums[half] = _mm512_fmadd_ps(second, odd[half], sums[half]);
                }
            }
        }
        store::<_, M>(&operands, sums);
    }
}
