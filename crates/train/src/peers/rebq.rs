//! RebQ, reconstruct before query (Zhao et al. 2024, arXiv 2403.11373; METHOD.md 8): three pools of prompts
//! (memory, image, text) in the first layers, of which each session is given a share (`weighted_pool.rs`).
//!
//! - A sample that lost a modality first goes through the backbone with memory prompts at the input, chosen
//!   by the [CLS] of the other; what comes out at the lost one's [CLS] is its query.
//! - Image and text prompts, chosen by the frozen [CLS] of their modality or the reconstructed one, are
//!   prefixes of keys and values in the pass that is classified.
//! - Memory prompts learn to reconstruct: each complete sample has a copy without one modality, drawn anew at
//!   each step; the loss is the squared distance between the lost [CLS] of the copy and that of the complete
//!   sample, which goes through memory prompts too and gets no gradient.
//!
//! As in the public code: half of a prompt's vectors are keys and half values; memory prompts replace those
//! of the layer before; a complete sample has the sum of both modalities' memory prompts; the reconstruction
//! has the weight 0.01; logits of earlier sessions are left out of the loss. Ours: every share begins
//! orthonormal (the code gives later sessions zeros); the frozen pooler stands before the head; a backbone
//! with fewer layers has prompts in all of them.
use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};

use super::ContinualLearner;
use super::fit::{Step, fit, frozen_cls, in_chunks, pick, start_stream, walk_training_samples};
use super::heads::{Competing, Heads};
use super::hidden_side::HiddenSide;
use super::weighted_pool::WeightedPool;
use crate::random::{Purpose, below, stream};
use crate::training::{Session, TrainError};
use delo_engine::{Additions, Packed, Prompts, SampleRows};
use delo_model::PerModality;
use delo_model::input::{Presence, Sample};

/// The hyper-parameters of RebQ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RebqSettings {
    /// Prompts of a pool, shared out equally among the sessions of the data set.
    pub pool: usize,
    /// Vectors of a prompt, an even number.
    pub length: usize,
    /// The number of first layers with prompts.
    pub depth: usize,
    /// Weight of the reconstruction in the loss.
    pub reconstruction: f64,
}

impl Default for RebqSettings {
    /// The values of METHOD.md 8; the weight of the reconstruction is that of the public code.
    fn default() -> Self {
        Self { pool: 128, length: 8, depth: 8, reconstruction: 0.01 }
    }
}

/// The pools of one layer.
#[derive(Debug)]
struct LayerPools {
    memory: WeightedPool,
    image: WeightedPool,
    text: WeightedPool,
}

/// RebQ after some sessions.
#[derive(Debug, Default)]
pub struct Rebq {
    settings: RebqSettings,
    layers: Vec<LayerPools>,
    heads: Heads,
    steps: usize,
}

/// The frozen [CLS] of some samples, `[samples, d]` for each modality, and which modalities they have.
struct Queries {
    cls: PerModality<Tensor>,
    presence: Vec<Presence>,
}

/// The frozen [CLS] of a session's training samples.
struct TrainingQueries {
    /// Of the samples as they are, `[samples, d]`.
    whole: PerModality<Tensor>,
    /// Of the samples without the other modality, `[samples, d]`; of samples that are not complete, as
    /// `whole`.
    alone: PerModality<Tensor>,
}

impl Queries {
    /// 1 for each sample whose [CLS] of a modality is lost, else 0, `[samples, 1]`.
    fn lost(&self, keeps: Presence) -> Result<Tensor> {
        let flags: Vec<f32> = self.presence.iter().map(|&presence| f32::from(u8::from(presence == keeps))).collect();
        let count = flags.len();
        Tensor::from_vec(flags, (count, 1), &Device::Cpu)
    }
}

/// `kept` where the flag is 0, `other` where it is 1. Flags `[samples, 1]`.
fn choose(flags: &Tensor, kept: &Tensor, other: &Tensor) -> Result<Tensor> {
    kept.broadcast_mul(&(1.0 - flags)?)? + other.broadcast_mul(flags)?
}

impl Rebq {
    /// Before the first session.
    pub fn new(settings: RebqSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// The variables that the newest session changes.
    fn vars(&self) -> BTreeMap<String, Var> {
        let mut vars = self.heads.vars(Competing::Session);
        for (layer, LayerPools { memory, image, text }) in self.layers.iter().enumerate() {
            vars.extend(
                [("memory", memory), ("image", image), ("text", text)]
                    .into_iter()
                    .flat_map(|(name, pool)| pool.vars(&format!("{name}.{layer:02}"))),
            );
        }
        vars
    }

    /// A share of each pool and a head for a new session.
    fn grow(&mut self, session: &Session<'_>) -> Result<()> {
        let RebqSettings { pool, length, depth, .. } = self.settings;
        if length % 2 == 1 {
            bail!("a prompt of RebQ has {length} vectors: give an even number, half of them are keys and half values");
        }
        let (mut rng, config) = (start_stream(session), &session.engine.backbone().config);
        let (places, d) = ((pool / session.data.tasks.len()).max(1), config.hidden_size);
        let mut earlier = std::mem::take(&mut self.layers).into_iter();
        for _ in 0..depth.min(config.num_hidden_layers) {
            let pools = earlier.next();
            let (memory, image, text) = pools.map_or((None, None, None), |of| (Some(of.memory), Some(of.image), Some(of.text)));
            let mut grown = |pool| WeightedPool::grown(pool, places, length, d, &mut rng);
            self.layers.push(LayerPools { memory: grown(memory)?, image: grown(image)?, text: grown(text)? });
        }
        self.heads.grow(session.data.tasks[session.task].labels.len(), d, &mut rng)
    }

    /// The [CLS] of both modalities after a pass with memory prompts.
    fn reconstruct(&self, session: &Session<'_>, state: &Packed, queries: &Queries) -> Result<PerModality<Tensor>> {
        let layers = session.engine.backbone().config.num_hidden_layers;
        let has = |keeps| (1.0 - queries.lost(keeps)?)?.unsqueeze(2);
        let (has_image, has_text) = (has(Presence::TextOnly)?, has(Presence::ImageOnly)?);
        let after = session.engine.run_adapted(state, 0..layers, |layer, _| {
            let Some(LayerPools { memory, .. }) = self.layers.get(layer) else { return Ok(Additions::default()) };
            let of_image = memory.prompts(&queries.cls.image)?.broadcast_mul(&has_image)?;
            let of_text = memory.prompts(&queries.cls.text)?.broadcast_mul(&has_text)?;
            let prompts = Some(Prompts::Replace(SampleRows::equal(&(of_image + of_text)?)?));
            Ok(Additions { prompts, ..Additions::default() })
        })?;
        session.engine.cls(&after)
    }

    /// The pooled output of the classified pass. `reconstructed`: the [CLS] that replace lost ones.
    fn pooled(&self, session: &Session<'_>, state: &Packed, queries: &Queries, reconstructed: &PerModality<Tensor>) -> Result<Tensor> {
        let of_image = choose(&queries.lost(Presence::TextOnly)?, &queries.cls.image, &reconstructed.image)?;
        let of_text = choose(&queries.lost(Presence::ImageOnly)?, &queries.cls.text, &reconstructed.text)?;
        let half = self.settings.length / 2;
        let prefix = |pool: &WeightedPool, queries: &Tensor| {
            let prompts = pool.prompts(queries)?;
            Tensor::cat(&[prompts.narrow(1, 0, half)?, prompts.narrow(1, half, half)?], 2)
        };
        session.engine.run_adapted_to_pooled(state, 0, |layer, _| {
            let Some(LayerPools { image, text, .. }) = self.layers.get(layer) else { return Ok(Additions::default()) };
            let prefixes = Tensor::cat(&[prefix(text, &of_text)?, prefix(image, &of_image)?], 1)?;
            Ok(Additions { prefix: Some(SampleRows::equal(&prefixes)?), ..Additions::default() })
        })
    }

    fn loss(&self, session: &Session<'_>, step: &Step<'_>, frozen: &TrainingQueries, hidden: &HiddenSide) -> Result<Tensor> {
        let task = session.data.tasks[session.task].id;
        let mut rng = stream(Purpose::Hidden, session.settings.seed, (task, step.number as u64));
        let mut presence: Vec<Presence> = step.state.spans.iter().map(|span| span.presence).collect();
        let (samples, mut parts) = (presence.len(), vec![step.state.clone()]);
        // Each complete sample again without one modality: the sample's number and what the copy keeps.
        let mut copies = Vec::new();
        for sample in (0..samples).filter(|&i| presence[i] == Presence::Complete) {
            let keeps = [Presence::ImageOnly, Presence::TextOnly][below(&mut rng, 2)];
            copies.push((sample, keeps));
            parts.push(hidden.copy(&step.state.sample(sample)?, keeps)?);
        }
        presence.extend(copies.iter().map(|&(_, keeps)| keeps));
        let cls = |whole: &Tensor, alone: &Tensor| -> Result<Tensor> {
            let of_samples = pick(whole, step.positions.iter().copied())?;
            if copies.is_empty() {
                return Ok(of_samples);
            }
            Tensor::cat(&[of_samples, pick(alone, copies.iter().map(|&(sample, _)| step.positions[sample]))?], 0)
        };
        let cls = PerModality { image: cls(&frozen.whole.image, &frozen.alone.image)?, text: cls(&frozen.whole.text, &frozen.alone.text)? };
        let both = Queries { cls, presence };
        let reconstructed = self.reconstruct(session, &Packed::concat(&parts)?, &both)?;

        let first = |rows: &Tensor| rows.narrow(0, 0, samples);
        let queries = Queries {
            cls: PerModality { image: first(&both.cls.image)?, text: first(&both.cls.text)? },
            presence: both.presence[..samples].to_vec(),
        };
        let of_samples = PerModality { image: first(&reconstructed.image)?, text: first(&reconstructed.text)? };
        let pooled = self.pooled(session, &step.state, &queries, &of_samples)?;
        let mut loss = self.heads.loss(&pooled, &step.labels, Competing::Session)?;
        let mut distances = Vec::new();
        for (place, &(sample, keeps)) in copies.iter().enumerate() {
            let lost = if keeps == Presence::ImageOnly { &reconstructed.text } else { &reconstructed.image };
            distances.push((lost.get(samples + place)? - lost.get(sample)?.detach())?.sqr()?.mean_all()?);
        }
        if !distances.is_empty() {
            loss = (loss + (Tensor::stack(&distances, 0)?.mean_all()? * self.settings.reconstruction)?)?;
        }
        Ok(loss)
    }
}

impl TrainingQueries {
    fn of(session: &Session<'_>, hidden: &HiddenSide) -> std::result::Result<Self, TrainError> {
        let mut chunks: [Vec<Tensor>; 4] = Default::default();
        walk_training_samples(session, |state| {
            let whole = frozen_cls(session, &state)?;
            let alone = |keeps: Presence| {
                let copy = |sample: usize| {
                    let one = state.sample(sample)?;
                    if one.spans[0].presence == Presence::Complete { hidden.copy(&one, keeps) } else { Ok(one) }
                };
                let copies = (0..state.spans.len()).map(copy).collect::<Result<Vec<_>>>()?;
                frozen_cls(session, &Packed::concat(&copies)?)
            };
            let found = [whole.image, whole.text, alone(Presence::ImageOnly)?.image, alone(Presence::TextOnly)?.text];
            chunks.iter_mut().zip(found).for_each(|(chunks, found)| chunks.push(found));
            Ok(())
        })?;
        let [whole_image, whole_text, image, text] = chunks.map(|chunks| Tensor::cat(&chunks, 0));
        Ok(Self { whole: PerModality { image: whole_image?, text: whole_text? }, alone: PerModality { image: image?, text: text? } })
    }
}

impl ContinualLearner for Rebq {
    fn learn(&mut self, session: &Session<'_>) -> std::result::Result<(), TrainError> {
        let hidden = HiddenSide::of(session)?;
        let frozen = TrainingQueries::of(session, &hidden)?;
        self.grow(session)?;
        self.steps += fit(session, self.vars(), |step| self.loss(session, step, &frozen, &hidden))?;
        Ok(())
    }

    /// One sample at a time: its prompts are products whose bits could depend on the other rows.
    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> std::result::Result<Vec<Vec<f32>>, TrainError> {
        in_chunks(session, samples, |state| {
            let mut rows = Vec::with_capacity(state.spans.len());
            for sample in 0..state.spans.len() {
                let one = state.sample(sample)?;
                let queries = Queries { cls: frozen_cls(session, &one)?, presence: vec![one.spans[0].presence] };
                let complete = queries.presence[0] == Presence::Complete;
                let reconstructed = if complete { queries.cls.clone() } else { self.reconstruct(session, &one, &queries)? };
                rows.extend(self.heads.logits(&self.pooled(session, &one, &queries, &reconstructed)?)?);
            }
            Ok(rows)
        })
    }

    fn parameters(&self) -> usize {
        self.layers.iter().flat_map(|of| [&of.memory, &of.image, &of.text]).map(WeightedPool::elements).sum()
    }

    fn head_parameters(&self) -> usize {
        self.heads.elements()
    }

    fn steps(&self) -> usize {
        self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::testing::{Toy, keeps_its_promises, learns_several_labels, numbers};

    #[test]
    fn rebq_learns_without_a_task_id_and_gives_the_same_bits_in_any_batch() {
        keeps_its_promises(|| Rebq::new(RebqSettings::default()));
    }

    #[test]
    fn rebq_learns_several_labels() {
        learns_several_labels(Rebq::new(RebqSettings::default()));
    }

    #[test]
    fn shares_of_earlier_sessions_stay() {
        let toy = Toy::new(false);
        let mut peer = Rebq::new(RebqSettings { pool: 20, ..RebqSettings::default() });
        peer.learn(&toy.session(0)).unwrap();
        let learnt = |peer: &Rebq| peer.layers.iter().map(|of| numbers(&of.text.vars("x")["x.prompts"])).collect::<Vec<_>>();
        let before = learnt(&peer);
        peer.learn(&toy.session(1)).unwrap();
        let d = toy.session(0).engine.backbone().config.hidden_size;
        for (layer, before) in peer.layers.iter().zip(&before) {
            assert_eq!((before.len(), &layer.text.frozen_prompts()), (10 * 8 * d, before));
        }
        assert_ne!(before, learnt(&peer));
    }

    #[test]
    fn a_copy_without_one_side_is_the_sample_embedded_without_it() {
        let toy = Toy::new(false);
        let session = toy.session(0);
        let complete = toy.samples(0).into_iter().find(|sample| sample.presence() == Presence::Complete).unwrap();
        let embed = |sample: &Sample| session.engine.embed(std::slice::from_ref(sample), session.dummy_image()).unwrap();
        let hidden = HiddenSide::of(&session).unwrap();
        let without = [
            (Presence::ImageOnly, Sample { text: None, ..complete.clone() }),
            (Presence::TextOnly, Sample { image: None, ..complete.clone() }),
        ];
        for (keeps, sample) in without {
            let (copy, expected) = (hidden.copy(&embed(&complete), keeps).unwrap(), embed(&sample));
            assert_eq!((numbers(&copy.hidden), &copy.spans), (numbers(&expected.hidden), &expected.spans));
        }
    }

    #[test]
    fn memory_prompts_learn_to_reconstruct_the_lost_cls() {
        let toy = Toy::new(false);
        let session = toy.session(0);
        let mut peer = Rebq::new(RebqSettings { reconstruction: 10.0, ..RebqSettings::default() });
        peer.grow(&session).unwrap();
        let hidden = HiddenSide::of(&session).unwrap();
        let samples: Vec<Sample> = toy.samples(0).into_iter().filter(|sample| sample.presence() == Presence::Complete).collect();
        let state = session.engine.embed(&samples, session.dummy_image()).unwrap();
        let distance = |peer: &Rebq| {
            let cls = |state: &Packed| {
                let presence = state.spans.iter().map(|span| span.presence).collect();
                peer.reconstruct(&session, state, &Queries { cls: frozen_cls(&session, state).unwrap(), presence }).unwrap()
            };
            let copies: Vec<Packed> =
                (0..samples.len()).map(|i| hidden.copy(&state.sample(i).unwrap(), Presence::ImageOnly).unwrap()).collect();
            let (whole, lost) = (cls(&state).text, cls(&Packed::concat(&copies).unwrap()).text);
            (whole - lost).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap()
        };
        let before = distance(&peer);
        let frozen = TrainingQueries::of(&session, &hidden).unwrap();
        fit(&session, peer.vars(), |step| peer.loss(&session, step, &frozen, &hidden)).unwrap();
        let after = distance(&peer);
        assert!(after < 0.7 * before, "from {before} to {after}");
    }
}
