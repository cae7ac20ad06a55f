//! int8 with scales, in plain Rust, for the tests alone: holds [`Format`] to what int8 dot-product
//! instructions need.
//!
//! As `vpdpbusd` multiplies: unsigned activations times signed weights, four neighbours in k a lane, in i32.
//! A weight is `scale · code` with one scale for each column. An activation is `scale · (code − 128)` with
//! one scale for each row, taken from the row's largest number; the columns' sums begin with
//! `−128 · Σ_k code` to make up for the offset.
use half::bf16;

use super::{Implementation, Operands};
use crate::{Activations, Float, Format, Isa, PANEL, RowsRef};

/// Activations are stored with this offset.
const OFFSET: i32 = 128;
/// The largest code: as many steps in both directions.
const LARGEST: f32 = 127.0;

/// The format.
#[derive(Clone, Copy, Debug)]
pub struct Int8;

/// What is known of all weights of a column.
#[derive(Clone, Copy, Debug, Default)]
pub struct Column {
    scale: f32,
    /// −128 · Σ codes
    start: i32,
}

/// The step between codes, given the numbers; 1 where all are zero.
fn step(numbers: impl Iterator<Item = f32>) -> f32 {
    let largest = numbers.fold(0.0, |most: f32, x| most.max(x.abs()));
    if largest > 0.0 { largest / LARGEST } else { 1.0 }
}

fn code(value: f32, step: f32) -> i32 {
    (value / step).round_ties_even().clamp(-LARGEST, LARGEST) as i32
}

impl Int8 {
    /// The number that an activation stands for.
    pub fn activation_value(code: u8, scale: f32) -> f32 {
        (i32::from(code) - OFFSET) as f32 * scale
    }
}

impl Format for Int8 {
    const NAME: &'static str = "int8";
    const K_INTERLEAVE: usize = 4;
    const K_STEP: usize = 4;

    type Float = bf16;
    type Weight = i8;
    type Activation = u8;
    type Accumulator = i32;
    type ColumnScale = Column;
    type RowScale = f32;

    const KERNELS: &'static [Implementation<Self>] = &[Implementation { name: "int8 portable", needs: Isa::Portable, rows: 4, multiply }];

    fn column_scale(weights: &[f32]) -> Column {
        let scale = step(weights.iter().copied());
        Column { scale, start: -OFFSET * weights.iter().map(|&x| code(x, scale)).sum::<i32>() }
    }

    fn weight(value: f32, column: Column) -> i8 {
        code(value, column.scale) as i8
    }

    fn weight_value(weight: i8, column: Column) -> f32 {
        f32::from(weight) * column.scale
    }

    fn activations(isa: Isa, rows: RowsRef<'_, bf16>) -> Activations<'_, Self> {
        Activations::quantised(
            isa,
            rows,
            #[inline(always)]
            |row: &[bf16], out: &mut [u8]| {
                let scale = step(row.iter().map(|x| x.get()));
                out.iter_mut().zip(row).for_each(|(to, x)| *to = (code(x.get(), scale) + OFFSET) as u8);
                scale
            },
        )
    }

    fn start(_: &[f32; PANEL], columns: &[Column; PANEL]) -> [i32; PANEL] {
        columns.map(|column| column.start)
    }

    #[inline(always)]
    fn finish<'a>(sums: &'a mut [[i32; PANEL]], rows: &[f32], columns: &[Column; PANEL], bias: &[f32; PANEL]) -> &'a mut [[f32; PANEL]] {
        // An i32 is as wide as the f32 that it becomes.
        let results: &mut [[f32; PANEL]] = bytemuck::cast_slice_mut(sums);
        for (results, row) in results.iter_mut().zip(rows) {
            for ((result, column), bias) in results.iter_mut().zip(columns).zip(bias) {
                *result = result.to_bits().cast_signed() as f32 * (row * column.scale) + bias;
            }
        }
        results
    }
}

/// # Safety
/// See [`Operands`].
unsafe fn multiply(operands: Operands<Int8>) {
    let Operands { x, stride, rows, k, panel, start, start_stride, out, out_stride } = operands;
    for row in 0..rows {
        for column in 0..PANEL {
            // SAFETY: as many rows of `k` activations, of sums to begin with and of results, and `k · PANEL`
            // weights, can be read or written by the caller's promise.
            unsafe {
                let mut sum = if start.is_null() { 0 } else { *start.add(row * start_stride + column) };
                for i in 0..k {
                    let weight = *panel.add((i / Int8::K_INTERLEAVE * PANEL + column) * Int8::K_INTERLEAVE + i % Int8::K_INTERLEAVE);
                    sum += i32::from(*x.add(row * stride + i)) * i32::from(weight);
                }
                *out.add(row * out_stride + column) = sum;
            }
        }
    }
}
