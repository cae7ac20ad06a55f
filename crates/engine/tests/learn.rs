//! The layers that learn give what plain candle operations give, forward and backward, with everything that a
//! method may add to them.
use std::sync::OnceLock;

use candle_core::backprop::GradStore;
use candle_core::{D, Device, Tensor, Var};
use candle_nn::ops::softmax;
use delo_engine::{Additions, Engine, Packed, Prompts, SampleRows, Span};
use delo_fixtures::{difference, engine, random_sample};
use delo_model::input::Sample;
use delo_model::method::{FactorPairs, Target};
use delo_model::model_dir::ModelDir;
use delo_model::vilt::{EncoderLayer, Vilt};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The backbone as plain candle operations.
fn reference() -> &'static Vilt {
    static VILT: OnceLock<Vilt> = OnceLock::new();
    VILT.get_or_init(|| Vilt::load(&ModelDir::Embedded, &Device::Cpu).unwrap())
}

fn random(rng: &mut ChaCha8Rng, rows: usize, width: usize, scale: f32) -> Tensor {
    let values: Vec<f32> = (0..rows * width).map(|_| (rng.random::<f32>() - 0.5) * scale).collect();
    Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
}

/// What is learnt in one layer.
struct Learnt {
    /// Numbers of prompts, and whether they replace those of earlier layers.
    prompts: Option<(Vec<usize>, bool)>,
    prefix: Option<Vec<usize>>,
    /// Factor pairs of a target.
    pairs: usize,
    vars: Vars,
}

struct Vars {
    prompts: Option<Var>,
    prefix: Option<Var>,
    factors: Option<[Var; 2]>,
}

impl Learnt {
    fn new(rng: &mut ChaCha8Rng, samples: usize, d: usize, kind: usize) -> Self {
        let lengths = |rng: &mut ChaCha8Rng| -> Vec<usize> { (0..samples).map(|i| rng.random_range(usize::from(i == 0)..5)).collect() };
        let prompts = (kind & 1 > 0).then(|| (lengths(rng), kind & 8 > 0));
        let prefix = (kind & 2 > 0).then(|| lengths(rng));
        let pairs = if kind & 4 > 0 { rng.random_range(1..4) } else { 0 };
        let mut var = |rows: usize, width: usize, scale: f32| Var::from_tensor(&random(rng, rows, width, scale)).unwrap();
        let vars = Vars {
            prompts: prompts.as_ref().map(|(lengths, _)| var(lengths.iter().sum(), d, 1.0)),
            prefix: prefix.as_ref().map(|lengths| var(lengths.iter().sum(), 2 * d, 2.0)),
            factors: (pairs > 0).then(|| [(); 2].map(|()| var(samples * Target::COUNT * pairs, d, 0.3))),
        };
        Self { prompts, prefix, pairs, vars }
    }

    fn all(&self) -> Vec<&Var> {
        let Vars { prompts, prefix, factors } = &self.vars;
        prompts.iter().chain(prefix).chain(factors.iter().flatten()).collect()
    }

    fn additions(&self, samples: usize) -> Additions {
        let rows = |var: &Option<Var>, lengths: &[usize]| SampleRows {
            rows: var.as_ref().unwrap().as_tensor().clone(),
            lengths: lengths.to_vec(),
        };
        let prompts = self.prompts.as_ref().map(|(lengths, replace)| {
            let rows = rows(&self.vars.prompts, lengths);
            if *replace { Prompts::Replace(rows) } else { Prompts::Append(rows) }
        });
        let shape = |var: &Var| var.reshape((samples, Target::COUNT * self.pairs, ())).unwrap();
        Additions {
            prompts,
            prefix: self.prefix.as_ref().map(|lengths| rows(&self.vars.prefix, lengths)),
            pairs: self.vars.factors.as_ref().map(|[a, b]| FactorPairs { a: shape(a), b: shape(b), pairs: self.pairs }),
        }
    }
}

/// Rows of one sample.
fn part(rows: &Tensor, lengths: &[usize], sample: usize) -> Option<Tensor> {
    let before = lengths[..sample].iter().sum();
    (lengths[sample] > 0).then(|| rows.narrow(0, before, lengths[sample]).unwrap())
}

fn joined(first: Tensor, second: Option<Tensor>) -> Tensor {
    second.map_or(first.clone(), |second| Tensor::cat(&[first, second], 0).unwrap())
}

/// One layer of one sample in plain operations: `[tokens, d]` → `[tokens, d]`.
fn plain_layer(layer: &EncoderLayer, heads: usize, h: &Tensor, learnt: &Learnt, sample: usize) -> Tensor {
    let (tokens, d) = h.dims2().unwrap();
    let x = layer.layernorm_before.forward(h).unwrap();
    let updated = |map: &delo_model::vilt::Linear, target: usize| {
        let out = map.forward(&x).unwrap();
        let Some(factors) = &learnt.vars.factors else { return out };
        let [a, b] = [0, 1].map(|side| factors[side].narrow(0, (sample * Target::COUNT + target) * learnt.pairs, learnt.pairs).unwrap());
        (out + x.matmul(&a.t().unwrap()).unwrap().matmul(&b).unwrap()).unwrap()
    };
    let (query, mut key, mut value) = (updated(&layer.query, 0), updated(&layer.key, 1), updated(&layer.value, 2));
    if let Some(prefix) = learnt.prefix.as_ref().and_then(|lengths| part(learnt.vars.prefix.as_ref().unwrap(), lengths, sample)) {
        key = joined(key, Some(prefix.narrow(1, 0, d).unwrap()));
        value = joined(value, Some(prefix.narrow(1, d, d).unwrap()));
    }
    let split = |x: &Tensor| x.reshape((x.dim(0).unwrap(), heads, d / heads)).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
    let scores = (split(&query).matmul(&split(&key).t().unwrap()).unwrap() / ((d / heads) as f64).sqrt()).unwrap();
    let context = softmax(&scores, D::Minus1).unwrap().matmul(&split(&value)).unwrap();
    let context = context.transpose(0, 1).unwrap().reshape((tokens, d)).unwrap();
    let h = (h + layer.attention_output.forward(&context).unwrap()).unwrap();
    let inner = layer.intermediate.forward(&layer.layernorm_after.forward(&h).unwrap()).unwrap().gelu_erf().unwrap();
    (&h + layer.output.forward(&inner).unwrap()).unwrap()
}

/// All layers of one sample, and its own tokens' number: the state after them.
fn plain_layers(h: &Tensor, learnt: &[Learnt], first: usize, sample: usize) -> Tensor {
    let (vilt, own) = (reference(), h.dim(0).unwrap());
    let heads = vilt.description.config.num_attention_heads;
    let mut h = h.clone();
    for (layer, learnt) in vilt.layers[first..].iter().zip(learnt) {
        if let Some((lengths, replace)) = &learnt.prompts {
            let kept = if *replace { h.narrow(0, 0, own).unwrap() } else { h };
            h = joined(kept, part(learnt.vars.prompts.as_ref().unwrap(), lengths, sample));
        }
        h = plain_layer(layer, heads, &h, learnt, sample);
    }
    h
}

fn state(samples: &[Sample]) -> Packed {
    engine().embed(samples, engine().default_dummy_image()).unwrap()
}

/// A scalar of some rows that depends on every number.
fn loss(rows: &Tensor) -> Tensor {
    let weights: Vec<f32> = (0..rows.elem_count()).map(|i| ((i * 37 % 29) as f32 - 14.0) / 14.0).collect();
    (rows * Tensor::from_vec(weights, rows.shape(), &Device::Cpu).unwrap()).unwrap().sum_all().unwrap()
}

fn largest(t: &Tensor) -> f32 {
    t.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

fn gradients_agree(learnt: &[Learnt], found: &GradStore, expected: &GradStore) {
    for var in learnt.iter().flat_map(Learnt::all) {
        let [found, expected] = [found, expected].map(|of| of.get(var.as_tensor()).unwrap());
        assert!(
            difference(found, expected) <= 2e-4 * largest(expected).max(1.0),
            "gradient of {:?}: {}",
            var.dims(),
            difference(found, expected)
        );
    }
}

fn learning(rng: &mut ChaCha8Rng, samples: usize, kinds: &[usize]) -> Vec<Learnt> {
    let d = engine().backbone().config.hidden_size;
    kinds.iter().map(|&kind| Learnt::new(rng, samples, d, kind)).collect()
}

/// The bits of a kind: prompts (1), a prefix (2), low-rank updates (4), prompts that replace (8).
const KINDS: usize = 16;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn added_prompts_prefixes_and_updates_give_the_plain_layers_results_and_gradients(
        seed in 0u64..10_000,
        seeds in prop::collection::vec(0u64..10_000, 1..4),
        kinds in prop::collection::vec(0..KINDS, 2..=2),
    ) {
        let (engine, mut rng): (&Engine, _) = (engine(), ChaCha8Rng::seed_from_u64(seed));
        let samples: Vec<Sample> = seeds.iter().map(|&seed| random_sample(seed)).collect();
        let learnt = learning(&mut rng, samples.len(), &kinds);
        let first = engine.backbone().config.num_hidden_layers - kinds.len();
        let entering = engine.run_frozen(&state(&samples), 0..first).unwrap();
        let adapt = |layer: usize, _: &Packed| Ok(learnt[layer - first].additions(samples.len()));

        // All rows of the last layer, then its text CLS alone through the pooler, then both CLS through the
        // norm.
        let whole = engine.run_adapted(&entering, first..first + kinds.len(), adapt).unwrap();
        let plain: Vec<Tensor> = (0..samples.len())
            .map(|i| plain_layers(&entering.sample(i).unwrap().hidden, &learnt, first, i))
            .collect();
        let all = Tensor::cat(&plain, 0).unwrap();
        let bar = 1e-4 * largest(&all).max(1.0);
        prop_assert!(difference(&whole.hidden, &all) < bar);
        for (span, own) in whole.spans.iter().zip(entering.spans.iter()) {
            prop_assert_eq!((span.text, span.image, span.presence), (own.text, own.image, own.presence));
        }
        let pooled = engine.run_adapted_to_pooled(&entering, first, adapt).unwrap();
        let rows = |row: fn(&Span) -> usize| {
            let starts = whole.spans.iter().map(|span| row(span) as u32).collect::<Vec<_>>();
            all.index_select(&Tensor::new(starts, &Device::Cpu).unwrap(), 0).unwrap()
        };
        let (text, image) = (rows(|span| span.start), rows(Span::image_cls));
        let plain_pooled = reference().pool(&text).unwrap();
        prop_assert!(difference(&pooled, &plain_pooled) < 1e-4);
        let cls = engine.cls(&whole).unwrap();
        let norm = &reference().pooler.layernorm;
        let (plain_text, plain_image) = (norm.forward(&text).unwrap(), norm.forward(&image).unwrap());
        prop_assert!(difference(&cls.text, &plain_text) < 1e-3 && difference(&cls.image, &plain_image) < 1e-3);

        if learnt.iter().any(|learnt| !learnt.all().is_empty()) {
            let backward = |t: &Tensor| loss(t).backward().unwrap();
            gradients_agree(&learnt, &backward(&whole.hidden), &backward(&all));
            gradients_agree(&learnt, &backward(&pooled), &backward(&plain_pooled));
            gradients_agree(&learnt, &backward(&cls.image), &backward(&plain_image));
        }
    }
}

#[test]
fn a_layer_without_additions_behind_a_prompted_one_passes_gradients_on() {
    let engine = engine();
    let samples = [random_sample(3), random_sample(4)];
    let learnt = learning(&mut ChaCha8Rng::seed_from_u64(5), 2, &[1, 0]);
    let first = engine.backbone().config.num_hidden_layers - 2;
    let entering = engine.run_frozen(&state(&samples), 0..first).unwrap();
    let pooled = engine.run_adapted_to_pooled(&entering, first, |layer, _| Ok(learnt[layer - first].additions(2))).unwrap();
    let plain: Vec<Tensor> =
        (0..2).map(|i| plain_layers(&entering.sample(i).unwrap().hidden, &learnt, first, i).narrow(0, 0, 1).unwrap()).collect();
    let plain = reference().pool(&Tensor::cat(&plain, 0).unwrap()).unwrap();
    gradients_agree(&learnt, &loss(&pooled).backward().unwrap(), &loss(&plain).backward().unwrap());
}

#[test]
fn prompts_are_part_of_no_query_and_additions_that_do_not_fit_are_refused() {
    let (engine, samples) = (engine(), [random_sample(0), random_sample(1)]);
    let (entering, d) = (state(&samples), engine.backbone().config.hidden_size);
    let prompts = SampleRows { rows: random(&mut ChaCha8Rng::seed_from_u64(1), 5, d, 1.0), lengths: vec![2, 3] };
    let append = |rows: SampleRows| Additions { prompts: Some(Prompts::Append(rows)), ..Additions::default() };
    let mut seen = Vec::new();
    let state = engine
        .run_adapted(&entering, 0..2, |layer, state| {
            seen.push(state.spans.iter().map(|span| (span.prompts, span.patches().len(), span.words().len())).collect::<Vec<_>>());
            Ok(if layer == 0 { append(prompts.clone()) } else { Additions::default() })
        })
        .unwrap();
    assert_eq!(seen[1].iter().map(|of| of.0).collect::<Vec<_>>(), [2, 3]);
    let own = |of: &[(usize, usize, usize)]| of.iter().map(|of| (of.1, of.2)).collect::<Vec<_>>();
    assert_eq!(own(&seen[0]), own(&seen[1]));
    assert_eq!(state.hidden.dim(0).unwrap(), entering.hidden.dim(0).unwrap() + 5);
    let short = SampleRows { lengths: vec![2, 2], ..prompts.clone() };
    let error = engine.run_adapted(&entering, 0..1, |_, _| Ok(append(short.clone()))).unwrap_err().to_string();
    assert!(error.contains("expected 2 samples"), "{error}");
    let narrow = Additions { prefix: Some(prompts), ..Additions::default() };
    let mut narrow = Some(narrow);
    assert!(engine.run_adapted(&entering, 0..1, |_, _| Ok(narrow.take().unwrap())).is_err(), "a prefix has a key and a value");
}
