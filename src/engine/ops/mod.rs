//! The differentiable pieces of the packed forward, as candle operations over streams `[tokens, d]`. Weights of the backbone are frozen: the
//! backward pass of each operation yields gradients of its inputs alone.
pub mod attention;
pub mod elementwise;
pub mod gelu;
pub mod layer_norm;
pub mod linear;
pub mod low_rank;
pub mod matrix;
pub mod segment_mean;

pub use attention::Attention;
pub use gelu::Gelu;
pub use layer_norm::FrozenLayerNorm;
pub use linear::FrozenLinear;
pub use low_rank::LowRank;
pub use segment_mean::SegmentMean;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};

use super::packed::Span;

/// The values of a contiguous f32 operand.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (from, to) =
        layout.contiguous_offsets().ok_or_else(|| candle_core::Error::Msg("packed operations take contiguous tensors".to_owned()))?;
    Ok(&storage.as_slice::<f32>()?[from..to])
}

/// Calls `f` with the values of a contiguous f32 tensor on the CPU.
pub(crate) fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(values(storage, layout)?)),
        _ => Err(candle_core::Error::Msg("the packed forward runs on the CPU: load the backbone on the CPU device".to_owned())),
    }
}

/// One mutable slice of rows for each span, in order. Spans follow one another and cover all rows.
fn rows_mut<'a>(mut rest: &'a mut [f32], spans: &[Span], width: usize) -> Vec<&'a mut [f32]> {
    let mut out = Vec::with_capacity(spans.len());
    for span in spans {
        let (head, tail) = rest.split_at_mut(span.tokens() * width);
        out.push(head);
        rest = tail;
    }
    out
}
