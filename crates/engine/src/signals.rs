//! The frozen backbone's signals, from which the task is decided (METHOD.md 4, ROUTING.md 2).
use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::Result;

use super::backend::Backend;
use super::packed::Span;
use delo_kernels::elementwise::dot;
use delo_model::input::Presence;
use delo_model::routing::keys::KeySignal;

/// The wanted signals, `[samples, width]` each, from the state that enters layer 0.
pub(super) fn signals<B: Backend>(
    backbone: &B,
    mut hidden: B::Hidden,
    spans: &[Span],
    layers: usize,
    wanted: &[KeySignal],
) -> Result<BTreeMap<KeySignal, Vec<Vec<f32>>>> {
    if wanted == [KeySignal::Pooled] {
        return Ok(BTreeMap::from([(KeySignal::Pooled, backbone.run_to_pooled(hidden, spans, 0, None)?)]));
    }
    let last = wanted.iter().map(|s| s.layer().unwrap_or(layers)).max().unwrap_or(0);
    let mut out = BTreeMap::new();
    for layer in 0..=last {
        for &signal in wanted.iter().filter(|s| s.layer().unwrap_or(layers) == layer) {
            out.insert(signal, signal_at(backbone, &hidden, spans, signal)?);
        }
        if layer < last {
            backbone.run(&mut hidden, spans, layer..layer + 1, None)?;
        }
    }
    Ok(out)
}

/// One signal, `[samples, width]`, computed from the state that enters the signal's layer; for a signal
/// without a layer, from the state after the last layer.
pub(super) fn signal_at<B: Backend>(backbone: &B, hidden: &B::Hidden, spans: &[Span], signal: KeySignal) -> Result<Vec<Vec<f32>>> {
    let means = |rows: fn(&Span) -> Range<usize>| backbone.means(hidden, &spans.iter().map(rows).collect::<Vec<_>>());
    match signal {
        KeySignal::MeanQuery { .. } => {
            let (visual, textual) = (means(|span| span.query_rows().image)?, means(|span| span.query_rows().text)?);
            let mean = |(v, t): (Vec<f32>, Vec<f32>)| v.iter().zip(&t).map(|(v, t)| (v + t) / 2.0).collect();
            Ok(visual.into_iter().zip(textual).map(mean).collect())
        }
        KeySignal::TextCls { .. } => means(|span| span.start..span.start + 1),
        KeySignal::Pooled => backbone.pooled(hidden, spans),
        KeySignal::Parts { .. } => {
            let more = [means(|span| span.start..span.start + 1)?, means(|span| span.image_cls()..span.image_cls() + 1)?];
            Ok(parts(spans, &means(Span::words)?, &means(Span::patches)?, &more))
        }
        KeySignal::Summary => Ok(parts(spans, &means(Span::words)?, &means(Span::patches)?, &[backbone.pooled(hidden, spans)?])),
    }
}

/// For each sample, one row of `[samples, (2 + more) d + 3]` (ROUTING.md 2): the mean over text tokens, the
/// mean over patches and the vectors of `more` (`[samples, d]` each), all scaled to length 1, then the
/// modality pattern as a one-hot vector. The mean of a missing modality is zero.
fn parts(spans: &[Span], words: &[Vec<f32>], patches: &[Vec<f32>], more: &[Vec<Vec<f32>>]) -> Vec<Vec<f32>> {
    let of_sample = |(i, span): (usize, &Span)| {
        let text = (&words[i], span.presence == Presence::ImageOnly);
        let image = (&patches[i], span.presence == Presence::TextOnly);
        let mut out = Vec::new();
        for (part, missing) in [text, image].into_iter().chain(more.iter().map(|rows| (&rows[i], false))) {
            let length = dot(part, part).sqrt();
            let scale = if missing || length == 0.0 { 0.0 } else { 1.0 / length };
            out.extend(part.iter().map(|x| x * scale));
        }
        out.extend([Presence::Complete, Presence::ImageOnly, Presence::TextOnly].map(|p| f32::from(u8::from(p == span.presence))));
        out
    };
    spans.iter().enumerate().map(of_sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_scaled_to_length_1_and_those_of_a_missing_modality_are_zero() {
        let patterns = [Presence::Complete, Presence::ImageOnly, Presence::TextOnly];
        let spans = patterns.map(|presence| Span { start: 0, text: 3, image: 2, presence });
        let (words, patches) = (vec![vec![3.0, 4.0]; 3], vec![vec![0.0, -2.0]; 3]);
        let more = [vec![vec![0.0, 0.0], vec![5.0, 0.0], vec![0.0, 0.5]]];
        let rows = parts(&spans, &words, &patches, &more);
        assert_eq!(rows[0], [0.6, 0.8, 0.0, -1.0, 0.0, 0.0, 1.0, 0.0, 0.0], "zero stays zero");
        assert_eq!(rows[1], [0.0, 0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
        assert_eq!(rows[2], [0.6, 0.8, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    }
}
