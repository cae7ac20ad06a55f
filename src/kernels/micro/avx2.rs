//! AVX2 with FMA: f32, and bf16 widened to f32. Half a panel at a time, since there are 16 registers.
use std::arch::x86_64::*;

use half::bf16;

use super::super::PANEL;
use super::avx512::by_rows;

/// Six rows of two vectors each: 12 sums, two vectors of weights and one number of a row.
pub const F32_ROWS: usize = 6;
/// Four vectors of widened weights leave room for four rows.
pub const BF16_ROWS: usize = 4;

/// # Safety
/// See [`super::Multiply`].
pub unsafe fn f32(x: *const f32, stride: usize, rows: usize, k: usize, panel: *const f32, out: *mut f32, out_stride: usize) {
    // SAFETY: each block reads and writes the rows that it was given, in bounds by the caller's promise.
    unsafe { by_rows!(block_f32, 6, x, stride, rows, k, panel, out, out_stride, [1, 2, 3, 4, 5, 6]) }
}

/// # Safety
/// See [`super::Multiply`].
pub unsafe fn bf16(x: *const bf16, stride: usize, rows: usize, k: usize, panel: *const bf16, out: *mut f32, out_stride: usize) {
    // SAFETY: as above.
    unsafe { by_rows!(block_bf16, 4, x, stride, rows, k, panel, out, out_stride, [1, 2, 3, 4]) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn store<const M: usize>(sums: [[__m256; 2]; M], out: *mut f32, out_stride: usize) {
    for (row, [low, high]) in sums.into_iter().enumerate() {
        // SAFETY: `out` holds M rows of at least 16 numbers, `out_stride` apart.
        unsafe {
            _mm256_storeu_ps(out.add(row * out_stride), low);
            _mm256_storeu_ps(out.add(row * out_stride + 8), high);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn block_f32<const M: usize>(x: *const f32, stride: usize, k: usize, panel: *const f32, out: *mut f32, out_stride: usize) {
    for half in 0..2 {
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        // SAFETY: `k` steps of the panel and of M rows are readable.
        unsafe {
            for step in 0..k {
                let weights = panel.add(step * PANEL + half * 16);
                let (low, high) = (_mm256_load_ps(weights), _mm256_load_ps(weights.add(8)));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_broadcast_ss(&*x.add(row * stride + step));
                    sums[0] = _mm256_fmadd_ps(value, low, sums[0]);
                    sums[1] = _mm256_fmadd_ps(value, high, sums[1]);
                }
            }
            store(sums, out.add(half * 16), out_stride);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn block_bf16<const M: usize>(x: *const bf16, stride: usize, k: usize, panel: *const bf16, out: *mut f32, out_stride: usize) {
    let high_half = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    for half in 0..2 {
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        // SAFETY: as above, two bf16 at a time. A bf16 is the upper half of an f32: even k is shifted up, odd k keeps its place.
        unsafe {
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
            store(sums, out.add(half * 16), out_stride);
        }
    }
}
