//! The arithmetic of a forward on a CPU. It knows neither the backbone nor the method.
//!
//! | module | holds |
//! | --- | --- |
//! | `format` | number formats: what weights and activations are, what they are summed in, and their scales |
//! | `matrix` | row-major matrices, and views that several threads write |
//! | `packed_matrix` | weights in the order in which a product reads them, with the scale of each column |
//! | `activations` | a product's rows in its kernel's format, with the scale of each row |
//! | `micro` | the matrix kernels, one file for each set of instructions |
//! | `product` | rows times packed weights, block by block |
//! | `sinks` | what is done with each block of a product's results |
//! | [`attention`] | self-attention within each sample |
//! | [`norm`] | layer normalisation, and means of rows |
//! | [`elementwise`] | exp, erf, tanh, GELU, and sums in a fixed order |
//! | `isa` | which vector instructions the processor has |
//! | `parallel` | pieces of work on the threads of the compute pool |
//!
//! **Invariant: a number is one chain over k in a fixed order, so its bits depend neither on the batch nor on
//! the number of threads.** Work is divided by rows, columns, heads and samples, never along a sum.
//!
//! Only the micro-kernels are written for each set of instructions. The fastest that the processor has is
//! chosen at run time, and the tests compare each with the definition. Everything else is one piece of Rust,
//! compiled again for each set of instructions ([`Isa::run`]).
#![warn(missing_docs)]

mod activations;
pub mod attention;
pub mod elementwise;
mod format;
mod isa;
mod matrix;
mod micro;
pub mod norm;
mod packed_matrix;
mod parallel;
mod product;
mod sinks;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use activations::Activations;
pub use format::{Float, Format, Number};
pub use half::bf16;
pub use isa::Isa;
pub use matrix::{Matrix, RowsMut, RowsRef, WholeRows};
pub use micro::{Implementation, Kernel, Start};
pub use packed_matrix::{PackedMatrix, pack_column};
pub use parallel::{make_pool, parallel, threads};
pub use product::{Tile, TileSink, product, product_panels};
pub use sinks::{MapSink, ResidualSink};

/// Columns of a panel: packed weights stand in panels this wide, for every kernel.
pub const PANEL: usize = 32;

/// The number formats that a user may choose for the products of a forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    /// Single precision.
    F32,
    /// The upper half of an f32, summed in f32.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 2] = [Self::F32, Self::Bf16];

    /// bf16 where these instructions multiply it, else f32. bf16 is then faster, and changes answers little.
    pub fn fastest(isa: Isa) -> Self {
        if isa >= Isa::Avx512Bf16 { Self::Bf16 } else { Self::F32 }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => <f32 as Format>::NAME,
            Self::Bf16 => <bf16 as Format>::NAME,
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|p| p.to_string() == text).ok_or_else(|| format!("{text:?} is no precision: give f32 or bf16"))
    }
}
