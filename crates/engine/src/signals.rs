//! The frozen backbone's signals, from which the task is decided (METHOD.md 4, ROUTING.md 2).
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::Result;

use super::backend::Backend;
use super::packed::Span;
use delo_kernels::elementwise::dot;
use delo_model::input::Presence;
use delo_model::routing::keys::KeySignal;
use delo_model::routing::projection::project;

/// Vectors of some samples, `[samples, width]`.
type Rows = Vec<Vec<f32>>;

/// Signals that are read while a pass goes through the layers. A part that several signals need is read once.
pub(super) struct Reader {
    /// What is still to be read, by falling layer: the next part is the last one.
    ahead: Vec<(usize, Part)>,
    /// What was read, by layer.
    read: BTreeMap<(usize, Part), Rows>,
    layers: usize,
}

/// What is read of the state at one layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// (q^v + q^t) / 2. `[d]`
    MeanQuery,
    /// The text CLS. `[d]`
    TextCls,
    /// The mean over text tokens, the mean over patches, the text CLS and the image CLS, each scaled to length
    /// 1. `[4 d]`
    Four,
    /// The mean over text tokens and the mean over patches, each scaled to length 1. `[2 d]`
    Two,
    /// The pooler's output. `[d]`
    Pooled,
    /// The text CLS after the final norm, by which samples choose prompts. `[d]`
    NormalisedCls,
}

impl Part {
    /// Whether it needs nothing but the text CLS after the last layer.
    fn is_of_last_cls(self) -> bool {
        matches!(self, Self::Pooled | Self::NormalisedCls)
    }
}

/// The parts of a signal on a backbone of this many layers, in order, each with the layer that the state enters.
fn parts(signal: KeySignal, layers: usize) -> Vec<(usize, Part)> {
    match signal {
        KeySignal::MeanQuery { layer } => vec![(layer, Part::MeanQuery)],
        KeySignal::TextCls { layer } => vec![(layer, Part::TextCls)],
        KeySignal::Pooled => vec![(layers, Part::Pooled)],
        KeySignal::Parts { layer } => vec![(layer, Part::Four)],
        KeySignal::Summary => vec![(layers, Part::Two), (layers, Part::Pooled)],
        KeySignal::PartsPooled { layer, .. } => vec![(layer, Part::Four), (layers, Part::Pooled)],
    }
}

impl Reader {
    /// A reader of these signals on a backbone of this many layers.
    pub(super) fn new(signals: &[KeySignal], layers: usize) -> Self {
        let ahead: BTreeSet<(usize, Part)> = signals.iter().flat_map(|&signal| parts(signal, layers)).collect();
        Self { ahead: ahead.into_iter().rev().collect(), read: BTreeMap::new(), layers }
    }

    /// The same reader, which also reads the text CLS after the last layer and the final norm
    /// ([`Self::frozen_cls`]).
    pub(super) fn with_frozen_cls(mut self) -> Self {
        self.ahead.insert(0, self.frozen_cls_part());
        self
    }

    fn frozen_cls_part(&self) -> (usize, Part) {
        (self.layers, Part::NormalisedCls)
    }

    /// Whether everything is read.
    pub(super) fn is_done(&self) -> bool {
        self.ahead.is_empty()
    }

    /// Reads what the signals need of the state that enters `layer`.
    fn read<B: Backend>(&mut self, backbone: &B, hidden: &B::Hidden, spans: &[Span], layer: usize) -> Result<()> {
        while let Some(part) = self.ahead.pop_if(|(at, _)| *at == layer) {
            self.read.insert(part, rows(backbone, hidden, spans, part.1)?);
        }
        Ok(())
    }

    /// Runs frozen layers and reads on the way: from the state that enters `layers.start` to the one that
    /// enters `layers.end`, both included.
    pub(super) fn run<B: Backend>(&mut self, backbone: &B, hidden: &mut B::Hidden, spans: &[Span], layers: Range<usize>) -> Result<()> {
        let mut at = layers.start;
        self.read(backbone, hidden, spans, at)?;
        while let Some(&(next, _)) = self.ahead.last()
            && next <= layers.end
        {
            backbone.run(hidden, spans, at..next, None)?;
            at = next;
            self.read(backbone, hidden, spans, at)?;
        }
        backbone.run(hidden, spans, at..layers.end, None)
    }

    /// Runs the frozen layers that are needed to read what is left, from the state that enters `first`. Where
    /// only parts of the text CLS after the last layer are left, that layer computes nothing else.
    pub(super) fn run_to_end<B: Backend>(&mut self, backbone: &B, mut hidden: B::Hidden, spans: &[Span], first: usize) -> Result<()> {
        let mut at = first;
        self.read(backbone, &hidden, spans, at)?;
        while let Some(&(next, _)) = self.ahead.last() {
            if self.ahead.iter().all(|(_, part)| part.is_of_last_cls()) {
                let cls = backbone.run_to_cls(hidden, spans, at)?;
                for part in self.ahead.drain(..) {
                    self.read.insert(part, if part.1 == Part::Pooled { backbone.pool(&cls)? } else { backbone.normalised(&cls)? });
                }
                return Ok(());
            }
            backbone.run(&mut hidden, spans, at..next, None)?;
            at = next;
            self.read(backbone, &hidden, spans, at)?;
        }
        Ok(())
    }

    /// Keeps what was read of these samples alone.
    pub(super) fn keep(&mut self, samples: &[usize]) {
        for rows in self.read.values_mut() {
            *rows = samples.iter().map(|&i| std::mem::take(&mut rows[i])).collect();
        }
    }

    /// The text CLS of each sample after the last layer and the final norm, `[samples, d]`, once everything
    /// is read; empty where it was not to be read.
    pub(super) fn frozen_cls(&self) -> Rows {
        self.read.get(&self.frozen_cls_part()).cloned().unwrap_or_default()
    }

    /// A signal of each sample, `[samples, width]`, once everything is read.
    pub(super) fn signal(&self, signal: KeySignal, spans: &[Span]) -> Rows {
        let read: Vec<(Part, &Rows)> = parts(signal, self.layers).iter().map(|part| (part.1, &self.read[part])).collect();
        let width = match signal {
            KeySignal::MeanQuery { .. } | KeySignal::TextCls { .. } | KeySignal::Pooled => {
                return read.into_iter().next().map_or_else(Vec::new, |(_, rows)| rows.clone());
            }
            KeySignal::PartsPooled { width, .. } => width,
            KeySignal::Parts { .. } | KeySignal::Summary => None,
        };
        let joined = |(i, span): (usize, &Span)| {
            let mut out = Vec::new();
            for (part, rows) in &read {
                match part {
                    Part::Pooled => out.extend(unit(&rows[i], false)),
                    _ => out.extend(&rows[i]),
                }
            }
            if let Some(width) = width {
                out = project(&out, width.get().into());
            }
            out.extend([Presence::Complete, Presence::ImageOnly, Presence::TextOnly].map(|p| f32::from(u8::from(p == span.presence))));
            out
        };
        spans.iter().enumerate().map(joined).collect()
    }
}

/// The wanted signals, `[samples, width]` each, from the state that enters layer 0.
pub(super) fn signals<B: Backend>(
    backbone: &B,
    hidden: B::Hidden,
    spans: &[Span],
    layers: usize,
    wanted: &[KeySignal],
) -> Result<BTreeMap<KeySignal, Rows>> {
    let mut reader = Reader::new(wanted, layers);
    reader.run_to_end(backbone, hidden, spans, 0)?;
    Ok(wanted.iter().map(|&signal| (signal, reader.signal(signal, spans))).collect())
}

/// A part of a signal, `[samples, …]`, read of the state that enters a layer. The mean of a missing modality
/// is zero where it is scaled to length 1.
fn rows<B: Backend>(backbone: &B, hidden: &B::Hidden, spans: &[Span], part: Part) -> Result<Rows> {
    let means = |rows: fn(&Span) -> Range<usize>| backbone.means(hidden, &spans.iter().map(rows).collect::<Vec<_>>());
    let sides = || {
        Ok::<_, candle_core::Error>([(means(Span::words)?, Some(Presence::ImageOnly)), (means(Span::patches)?, Some(Presence::TextOnly))])
    };
    match part {
        Part::MeanQuery => {
            let (visual, textual) = (means(|span| span.query_rows().image)?, means(|span| span.query_rows().text)?);
            let mean = |(v, t): (Vec<f32>, Vec<f32>)| v.iter().zip(&t).map(|(v, t)| (v + t) / 2.0).collect();
            Ok(visual.into_iter().zip(textual).map(mean).collect())
        }
        Part::TextCls => means(text_cls),
        Part::Pooled => backbone.pooled(hidden, spans),
        Part::NormalisedCls => backbone.normalised(&backbone.cls(hidden, spans)?),
        Part::Two => Ok(joined(spans, &sides()?)),
        Part::Four => {
            let [words, patches] = sides()?;
            Ok(joined(spans, &[words, patches, (means(text_cls)?, None), (means(|span| span.image_cls()..span.image_cls() + 1)?, None)]))
        }
    }
}

fn text_cls(span: &Span) -> Range<usize> {
    span.start..span.start + 1
}

/// Vectors of each sample one after another, each scaled to length 1; zero where the sample's modalities are
/// those beside the vectors.
fn joined(spans: &[Span], vectors: &[(Rows, Option<Presence>)]) -> Rows {
    let of_sample = |(i, span): (usize, &Span)| {
        let scaled = vectors.iter().flat_map(|(rows, missing)| unit(&rows[i], *missing == Some(span.presence)));
        scaled.collect()
    };
    spans.iter().enumerate().map(of_sample).collect()
}

/// A vector scaled to length 1; zero where it is of a missing modality, or zero itself.
fn unit(x: &[f32], missing: bool) -> impl Iterator<Item = f32> + use<'_> {
    let length = dot(x, x).sqrt();
    let scale = if missing || length == 0.0 { 0.0 } else { 1.0 / length };
    x.iter().map(move |x| x * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_scaled_to_length_1_and_those_of_a_missing_modality_are_zero() {
        let patterns = [Presence::Complete, Presence::ImageOnly, Presence::TextOnly];
        let spans = patterns.map(|presence| Span { start: 0, text: 3, image: 2, prompts: 0, presence });
        let (words, patches) = (vec![vec![3.0, 4.0]; 3], vec![vec![0.0, -2.0]; 3]);
        let pooled = vec![vec![0.0, 0.0], vec![5.0, 0.0], vec![0.0, 0.5]];
        let two = joined(&spans, &[(words, Some(Presence::ImageOnly)), (patches, Some(Presence::TextOnly))]);
        let reader = Reader { ahead: Vec::new(), read: [((6, Part::Two), two), ((6, Part::Pooled), pooled)].into(), layers: 6 };
        let rows = reader.signal(KeySignal::Summary, &spans);
        assert_eq!(rows[0], [0.6, 0.8, 0.0, -1.0, 0.0, 0.0, 1.0, 0.0, 0.0], "zero stays zero");
        assert_eq!(rows[1], [0.0, 0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
        assert_eq!(rows[2], [0.6, 0.8, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    }
}
