//! Number formats: as what weights and activations are stored, in what their products are summed, and which
//! scales turn the sums into results.
use std::fmt::Debug;

use half::bf16;

use super::micro::{self, Implementation};
use super::{Activations, Isa, Kernel, PANEL, RowsRef};

/// A plain number that a matrix holds.
pub trait Number: Copy + Default + Debug + Send + Sync + 'static {}

impl<T: Copy + Default + Debug + Send + Sync + 'static> Number for T {}

/// The number format of a product:
/// `result[i, n] = row scale[i] · column scale[n] · Σ_k x[i, k] · w[n, k] + bias[n]`.
///
/// Each [`Float`] is a format too, without scales. Another format is a type of its own with the same parts:
/// see `micro/int8.rs`, which the tests hold to the definition.
pub trait Format: Copy + Debug + Send + Sync + 'static {
    /// As the command line and the names of kernels call it.
    const NAME: &'static str;
    /// Neighbours in k that stand together in a panel, since one lane of a dot-product instruction takes them
    /// at once.
    const K_INTERLEAVE: usize;
    /// k is padded to a multiple of this: with zeros in the weights, so that what pads the rows does not
    /// count. At most a cache line of activations.
    const K_STEP: usize;

    /// What the numbers between products are stored as: a product's rows before they are brought into this
    /// format.
    type Float: Float;
    /// A weight in a panel.
    type Weight: Number;
    /// A number of a product's rows, as it is multiplied.
    type Activation: Number;
    /// What products are summed in.
    type Accumulator: Number;
    /// What is known of all weights of a column: `()` where weights stand for themselves.
    type ColumnScale: Number;
    /// What is known of all numbers of a row: `()` where activations stand for themselves.
    type RowScale: Number;

    /// The kernels there are, the fastest first; the last one runs anywhere.
    const KERNELS: &'static [Implementation<Self>];

    /// The scale of a column, given its weights `[k]`.
    fn column_scale(weights: &[f32]) -> Self::ColumnScale;

    /// The nearest weight to `value` in a column with this scale.
    fn weight(value: f32, scale: Self::ColumnScale) -> Self::Weight;

    /// The number that a weight stands for.
    fn weight_value(weight: Self::Weight, scale: Self::ColumnScale) -> f32;

    /// The rows as the kernel multiplies them.
    fn activations(isa: Isa, rows: RowsRef<'_, Self::Float>) -> Activations<'_, Self>;

    /// What the sums of a panel's columns begin with.
    fn start(bias: &[f32; PANEL], columns: &[Self::ColumnScale; PANEL]) -> [Self::Accumulator; PANEL];

    /// Turns sums `[rows, PANEL]` into results where they stand. Implementations are `#[inline(always)]`, so
    /// that they are compiled for the kernel's instructions.
    fn finish<'a>(
        sums: &'a mut [[Self::Accumulator; PANEL]],
        rows: &[Self::RowScale],
        columns: &[Self::ColumnScale; PANEL],
        bias: &[f32; PANEL],
    ) -> &'a mut [[f32; PANEL]];

    /// The fastest kernel with these instructions, or with as many of them as this processor has.
    ///
    /// # Panics
    /// Where no entry of [`Self::KERNELS`] is portable.
    fn kernel(isa: Isa) -> Kernel<Self> {
        Kernel::fastest(isa)
    }
}

/// A floating-point number that stands for itself. As a format, its weights and activations are numbers of
/// this one type, summed in f32, and there are no scales.
pub trait Float: Number {
    /// See [`Format::NAME`].
    const NAME: &'static str;
    /// See [`Format::K_INTERLEAVE`].
    const K_INTERLEAVE: usize;
    /// See [`Format::K_STEP`].
    const K_STEP: usize;
    /// See [`Format::KERNELS`].
    const KERNELS: &'static [Implementation<Self>];

    /// The nearest number of this type, ties to even.
    fn of(value: f32) -> Self;

    /// The same number in f32.
    fn get(self) -> f32;

    /// [`Self::of`] of a panel's row, with the processor's own instruction where it has one; that instruction
    /// takes numbers below 2⁻¹²⁶ for 0.
    #[inline(always)]
    fn round(isa: Isa, from: &[f32; PANEL], to: &mut [Self; PANEL]) {
        let _ = isa;
        round_each(from, to);
    }
}

#[inline(always)]
fn round_each<E: Float>(from: &[f32; PANEL], to: &mut [E; PANEL]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = E::of(from));
}

impl<E: Float> Format for E {
    const NAME: &'static str = <E as Float>::NAME;
    const K_INTERLEAVE: usize = <E as Float>::K_INTERLEAVE;
    const K_STEP: usize = <E as Float>::K_STEP;

    type Float = E;
    type Weight = E;
    type Activation = E;
    type Accumulator = f32;
    type ColumnScale = ();
    type RowScale = ();

    const KERNELS: &'static [Implementation<E>] = <E as Float>::KERNELS;

    #[inline(always)]
    fn column_scale(_: &[f32]) {}

    #[inline(always)]
    fn weight(value: f32, (): ()) -> E {
        E::of(value)
    }

    #[inline(always)]
    fn weight_value(weight: E, (): ()) -> f32 {
        weight.get()
    }

    fn activations(_: Isa, rows: RowsRef<'_, E>) -> Activations<'_, E> {
        Activations::as_stored(rows)
    }

    /// The bias: it is the first term of a chain.
    #[inline(always)]
    fn start(bias: &[f32; PANEL], _: &[(); PANEL]) -> [f32; PANEL] {
        *bias
    }

    /// The sums are the results.
    #[inline(always)]
    fn finish<'a>(sums: &'a mut [[f32; PANEL]], _: &[()], _: &[(); PANEL], _: &[f32; PANEL]) -> &'a mut [[f32; PANEL]] {
        sums
    }
}

impl Float for f32 {
    const NAME: &'static str = "f32";
    const K_INTERLEAVE: usize = 1;
    const K_STEP: usize = 1;
    const KERNELS: &'static [Implementation<Self>] = micro::F32;

    #[inline(always)]
    fn of(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
}

impl Float for bf16 {
    const NAME: &'static str = "bf16";
    const K_INTERLEAVE: usize = 2;
    const K_STEP: usize = 32;
    const KERNELS: &'static [Implementation<Self>] = micro::BF16;

    /// Without the branches of `half`, so that loops over it vectorise. Infinities stay what they are; of a
    /// NaN, only the payload may change.
    #[inline(always)]
    fn of(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let kept = if value.is_nan() { bits | 0x0040_0000 } else { rounded };
        Self::from_bits((kept >> 16) as u16)
    }

    #[inline(always)]
    fn get(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn round(isa: Isa, from: &[f32; PANEL], to: &mut [Self; PANEL]) {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512Bf16 && is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the processor has the instruction, as the line above detected; AVX-512 F comes with it.
            return unsafe { micro::avx512::round(from, to) };
        }
        let _ = isa;
        round_each(from, to);
    }
}
