//! Prompts behind the tokens of the samples that take them (METHOD.md 8).
use candle_core::Result;

use super::backend::Backend;
use super::packed::Span;
use delo_model::method::Adapter;

/// The same samples, one after another from row 0: their spans in a packed matrix of these samples alone.
pub(super) fn repacked(spans: &[Span]) -> Vec<Span> {
    let mut start = 0;
    let placed = spans.iter().map(|span| {
        let placed = Span { start, ..*span };
        start = placed.end();
        placed
    });
    placed.collect()
}

/// The state that enters layer 0 with the prompts that each sample takes from its adapter's pool behind its
/// tokens. `spans` are packed. `frozen_cls`: the text CLS of each sample's frozen pass after the final norm,
/// `[d]`; it may be missing where the adapter has no prompts.
///
/// # Errors
/// A backend that computes no prompts; a sample that takes prompts and has no frozen CLS.
pub(super) fn with_prompts<'a, B: Backend>(
    backbone: &B,
    hidden: B::Hidden,
    spans: Vec<Span>,
    samples: impl Iterator<Item = (&'a Adapter, Option<&'a [f32]>)>,
) -> Result<(B::Hidden, Vec<Span>)> {
    let of_sample = |(adapter, frozen_cls): (&'a Adapter, Option<&'a [f32]>)| -> Result<Vec<&'a [f32]>> {
        let Some(pool) = adapter.prompt_pool() else { return Ok(Vec::new()) };
        let cls = frozen_cls.ok_or_else(|| candle_core::Error::Msg("a sample that takes prompts has no frozen pass".to_owned()))?;
        Ok(pool.tokens_for(cls).collect())
    };
    let rows = samples.map(of_sample).collect::<Result<Vec<_>>>()?;
    if rows.iter().all(Vec::is_empty) {
        return Ok((hidden, spans));
    }
    let hidden = backbone.append(&hidden, &spans, &rows)?;
    let longer: Vec<Span> = spans.iter().zip(&rows).map(|(span, rows)| Span { prompts: span.prompts + rows.len(), ..*span }).collect();
    Ok((hidden, repacked(&longer)))
}
