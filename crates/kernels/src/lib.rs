//! The arithmetic of the forward on a CPU: products with weights packed once, attention, norms, and what is done to each number in between.
//! Knows nothing of ViLT nor of DeLo.
//!
//! Only the matrix micro-kernels are written per processor, chosen once at run time, each with the portable one as its twin. All else is one piece
//! of Rust, compiled again for each set of vector instructions ([`Isa::run`]). Every number comes from the same operations in the same order
//! whatever rows are beside it and however many threads work, so results do not depend on the batch.
pub mod attention;
pub mod elementwise;
mod isa;
mod micro;
pub mod norm;
mod packed;
mod parallel;
mod product;
mod rows;
mod sinks;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use half::bf16;
pub use isa::Isa;
pub use micro::{Element, Kernel, Start};
pub use packed::{PackedMatrix, pack_column};
pub use parallel::{make_pool, parallel, threads};
pub use product::{Tile, TileSink, product, product_panels};
pub use rows::{RowsMut, RowsRef, Stream};
pub use sinks::{MapSink, ResidualSink};

/// Columns of a panel: packed weights stand in panels this wide, whatever the kernel.
pub const PANEL: usize = 32;

/// Number format of a product's operands; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    pub const ALL: [Precision; 2] = [Self::F32, Self::Bf16];

    /// The number format that is fastest with these instructions without a loss that matters: bf16 where they multiply it.
    pub fn fastest(isa: Isa) -> Self {
        if isa >= Isa::Avx512Bf16 { Self::Bf16 } else { Self::F32 }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => f32::NAME,
            Self::Bf16 => bf16::NAME,
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|p| p.to_string() == text).ok_or_else(|| format!("{text:?} is no precision: give f32 or bf16"))
    }
}
