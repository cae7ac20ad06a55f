//! AVX2 with FMA: f32, and bf16 widened to f32. Half a panel at a time, since there are 16 registers.
use std::arch::x86_64::*;

use half::bf16;

use super::super::PANEL;
use super::Operands;
use super::avx512::by_rows;
use crate::Float;

/// Six rows of two vectors each: 12 sums, two vectors of weights and one number of a row.
pub const F32_ROWS: usize = 6;
/// Four vectors of widened weights leave room for four rows.
pub const BF16_ROWS: usize = 4;

/// # Safety
/// See [`Operands`].
pub(super) unsafe fn f32(operands: Operands<f32>) {
    // SAFETY: each block reads and writes the rows of its part, in bounds by the caller's promise.
    unsafe { by_rows!(block_f32, 6, operands, [1, 2, 3, 4, 5, 6]) }
}

/// # Safety
/// See [`Operands`].
pub(super) unsafe fn bf16(operands: Operands<bf16>) {
    // SAFETY: as in `f32`.
    unsafe { by_rows!(block_bf16, 4, operands, [1, 2, 3, 4]) }
}

/// What the sums of M rows begin with, in one half of the panel.
///
/// # Safety
/// See [`Operands`], for M rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn start<E: Float, const M: usize>(operands: &Operands<E>, half: usize) -> [[__m256; 2]; M] {
    let mut sums = [[_mm256_setzero_ps(); 2]; M];
    if !operands.start.is_null() {
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: M rows of PANEL numbers can be read.
            unsafe {
                let start = operands.start.add(row * operands.start_stride + half * 16);
                *sums = [_mm256_loadu_ps(start), _mm256_loadu_ps(start.add(8))];
            }
        }
    }
    sums
}

/// Writes the sums of M rows, in one half of the panel.
///
/// # Safety
/// See [`Operands`], for M rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store<E: Float, const M: usize>(operands: &Operands<E>, half: usize, sums: [[__m256; 2]; M]) {
    for (row, [low, high]) in sums.into_iter().enumerate() {
        // SAFETY: there is room for M rows of PANEL numbers.
        unsafe {
            let out = operands.out.add(row * operands.out_stride + half * 16);
            _mm256_storeu_ps(out, low);
            _mm256_storeu_ps(out.add(8), high);
        }
    }
}

/// # Safety
/// See [`Operands`], for M rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn block_f32<const M: usize>(operands: Operands<f32>) {
    let Operands { x, stride, k, panel, .. } = operands;
    for half in 0..2 {
        // SAFETY: `k` steps of the panel and of M rows are readable.
        unsafe {
            let mut sums = start::<_, M>(&operands, half);
            for step in 0..k {
                let weights = panel.add(step * PANEL + half * 16);
                let (low, high) = (_mm256_load_ps(weights), _mm256_load_ps(weights.add(8)));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_broadcast_ss(&*x.add(row * stride + step));
                    sums[0] = _mm256_fmadd_ps(value, low, sums[0]);
                    sums[1] = _mm256_fmadd_ps(value, high, sums[1]);
                }
            }
            store::<_, M>(&operands, half, sums);
        }
    }
}

/// # Safety
/// See [`Operands`], for M rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn block_bf16<const M: usize>(operands: Operands<bf16>) {
    let Operands { x, stride, k, panel, .. } = operands;
    let high_half = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    for half in 0..2 {
        // SAFETY: as in `block_f32`, two bf16 at a time. A bf16 is the upper half of an f32: even k is
        // shifted up, odd k keeps its place.
        unsafe {
            let mut sums = start::<_, M>(&operands, half);
            for step in 0..k / 2 {
                let weights = panel.add((step * PANEL + half * 16) * 2).cast::<__m256i>();
                let pairs = [_mm256_load_si256(weights), _mm256_load_si256(weights.add(1))];
                let even = pairs.map(|p| _mm256_castsi256_ps(_mm256_slli_epi32(p, 16)));
                let odd = pairs.map(|p| _mm256_castsi256_ps(_mm256_and_si256(p, high_half)));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let pair = x.add(row * stride + 2 * step).cast::<u32>().read_unaligned();
                    let (first, second) = (_mm256_set1_ps(f32::from_bits(pair << 16)), _mm256_set1_ps(f32::from_bits(pair & 0xffff_0000)));
                    for part in 0..2 {
                        sums[part] = _mm256_fmadd_ps(first, even[part], sums[part]);
                        sums[part] = _mm256_fmadd_ps(second, odd[part], sums[part]);
                    }
                }
            }
            store::<_, M>(&operands, half, sums);
        }
    }
}
