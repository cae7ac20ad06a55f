//! Prompts behind the tokens of the samples of a packed matrix.
use candle_core::{Device, Result, Tensor};

use crate::packed::{Packed, Span};
use delo_model::method::{Prompts, SampleRows};

/// The samples of `state` with these prompts behind their tokens.
///
/// # Errors
/// Prompts of another number of samples or another width.
pub(super) fn join(prompts: &Prompts, state: &Packed) -> Result<Packed> {
    let (added, keeps) = match prompts {
        Prompts::Append(added) => (added, true),
        Prompts::Replace(added) => (added, false),
    };
    let SampleRows { rows, lengths } = added;
    let (tokens, d) = state.hidden.dims2()?;
    added.check(state.spans.len(), d)?;
    let (mut index, mut spans, mut next) = (Vec::new(), Vec::new(), tokens);
    for (span, &length) in state.spans.iter().zip(lengths) {
        let kept = if keeps { span.prompts } else { 0 };
        let start = index.len();
        index.extend((span.start..span.prompts().start + kept).map(|row| row as u32));
        index.extend((next..next + length).map(|row| row as u32));
        next += length;
        spans.push(Span { start, prompts: kept + length, ..*span });
    }
    let all = if rows.elem_count() == 0 { state.hidden.clone() } else { Tensor::cat(&[&state.hidden, rows], 0)? };
    let count = index.len();
    let hidden = all.index_select(&Tensor::from_vec(index, count, &Device::Cpu)?, 0)?;
    Ok(Packed { hidden, spans: spans.into() })
}
