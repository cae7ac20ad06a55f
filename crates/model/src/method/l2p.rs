//! Prompts at the input, as L2P has them (learning to prompt, Wang et al., CVPR 2022; METHOD.md 8): a pool of
//! 10 prompts of 5 tokens with keys. A sample takes the 5 prompts whose keys have the largest cosines with
//! its frozen text CLS; the loss draws these keys to the sample.
//!
//! A task has a pool of its own, independent of those of other tasks, and the server's rule decides the task.
//! The published continual learner has one pool for all sessions: that one is the peer `l2p` of the
//! benchmark.
use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, bail};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::additions::{Additions, ChosenKeys, LayerInput, Prompts, SampleRows};
use super::normal::gaussian;
use super::prompts::{PromptPool, nearest};
use super::{Adapter, BackboneShape, Learner, LossTerm, MethodKind, MethodSpec, Target, Tensors, flat, tensor_of};

/// The most prompts of a pool.
const MAX_POOL: usize = 4096;
/// The most tokens that a sample takes.
const MAX_TOKENS: usize = 1024;
/// The name of the prompts in the artifact, `[pool, length, d]`; [`KEYS`] is that of their keys, `[pool, d]`.
const TOKENS: &str = "prompts.tokens";
const KEYS: &str = "prompts.keys";

/// The pool of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct L2pSpec {
    /// Prompts of the pool.
    pub pool: usize,
    /// Tokens of a prompt.
    pub length: usize,
    /// Prompts that a sample takes.
    pub chosen: usize,
    /// The number of the backbone's layers.
    pub layers: usize,
    /// d: the backbone's width.
    pub hidden: usize,
}

impl L2pSpec {
    /// The pool of METHOD.md 8.
    pub fn of(layers: usize, hidden: usize) -> Self {
        Self { pool: 10, length: 5, chosen: 5, layers, hidden }
    }

    /// The prompts and the keys.
    fn tensors<'a>(&self, tensors: &'a Tensors) -> Result<[&'a Tensor; 2]> {
        let Self { pool, length, hidden, .. } = *self;
        Ok([tensor_of(tensors, TOKENS, &[pool, length, hidden])?, tensor_of(tensors, KEYS, &[pool, hidden])?])
    }
}

impl MethodSpec for L2pSpec {
    fn kind(&self) -> MethodKind {
        MethodKind::L2p
    }

    fn field(&self) -> &'static str {
        "l2p"
    }

    fn backbone(&self) -> BackboneShape {
        BackboneShape { layers: self.layers, hidden: self.hidden }
    }

    fn first_adapted_layer(&self) -> usize {
        0
    }

    fn targets(&self) -> &'static [Target] {
        &[]
    }

    fn validate(&self) -> std::result::Result<(), String> {
        let Self { pool, length, chosen, .. } = *self;
        if !(1..=MAX_POOL).contains(&pool) {
            return Err(format!("a pool of {pool} prompts: it has 1 to {MAX_POOL}"));
        }
        if !(1..=pool).contains(&chosen) {
            return Err(format!("a sample takes {chosen} prompts: it must be 1 to the {pool} of the pool"));
        }
        if length == 0 || chosen.saturating_mul(length) > MAX_TOKENS {
            return Err(format!("{chosen} prompts of {length} tokens for a sample: together they have 1 to {MAX_TOKENS} tokens"));
        }
        Ok(())
    }

    fn reads_frozen_cls(&self) -> bool {
        true
    }

    fn terms(&self) -> &'static [LossTerm] {
        &[LossTerm::KeyPull]
    }

    fn summary(&self) -> String {
        let Self { pool, length, chosen, .. } = self;
        format!("{chosen} of {pool} prompts of {length} tokens at the input")
    }

    /// Prompts and keys are Gaussian (σ = 0.02).
    fn start(&self, rng: &mut ChaCha8Rng) -> Result<Box<dyn Learner>> {
        let Self { pool, length, hidden, .. } = *self;
        let tokens = Var::from_tensor(&gaussian(rng, (pool, length, hidden))?)?;
        Ok(Box::new(Pool { tokens, keys: Var::from_tensor(&gaussian(rng, (pool, hidden))?)?, spec: self.clone() }))
    }

    fn learner(&self, tensors: &Tensors) -> Result<Box<dyn Learner>> {
        let [tokens, keys] = self.tensors(tensors)?;
        Ok(Box::new(Pool { tokens: Var::from_tensor(tokens)?, keys: Var::from_tensor(keys)?, spec: self.clone() }))
    }

    fn adapter(&self, tensors: &Tensors) -> Result<Adapter> {
        let [tokens, keys] = self.tensors(tensors)?;
        Ok(Adapter::prompts(PromptPool::new(self.hidden, self.length, self.chosen, flat(tokens)?, flat(keys)?)))
    }
}

/// The pool of one task.
#[derive(Debug)]
struct Pool {
    spec: L2pSpec,
    /// `[pool, length, d]`
    tokens: Var,
    /// `[pool, d]`
    keys: Var,
}

impl Pool {
    /// The numbers of the prompts that each sample takes, by its frozen CLS `[samples, d]`:
    /// `[samples · chosen]`.
    fn choose(&self, frozen_cls: &Tensor) -> Result<Tensor> {
        let keys = flat(&self.keys)?;
        let chosen: Vec<u32> = frozen_cls.to_vec2::<f32>()?.iter().flat_map(|query| nearest(&keys, query, self.spec.chosen)).collect();
        let count = chosen.len();
        Tensor::from_vec(chosen, count, self.keys.device())
    }
}

impl Learner for Pool {
    fn vars(&self) -> BTreeMap<String, Var> {
        [(TOKENS.to_owned(), self.tokens.clone()), (KEYS.to_owned(), self.keys.clone())].into()
    }

    fn tensors(&self) -> Result<Tensors> {
        Ok([(TOKENS.to_owned(), self.tokens.as_tensor().copy()?), (KEYS.to_owned(), self.keys.as_tensor().copy()?)].into())
    }

    fn additions(&self, layer: usize, input: LayerInput<'_>) -> Result<Additions> {
        if layer > 0 {
            return Ok(Additions::default());
        }
        let Some(frozen_cls) = input.frozen_cls else { bail!("l2p chooses prompts by the frozen text CLS of each sample, and has none") };
        let L2pSpec { length, chosen, hidden, .. } = self.spec;
        let prompts = self.tokens.index_select(&self.choose(frozen_cls)?, 0)?.reshape((frozen_cls.dim(0)?, chosen * length, hidden))?;
        Ok(Additions { prompts: Some(Prompts::Append(SampleRows::equal(&prompts)?)), ..Additions::default() })
    }

    fn chosen_keys(&self, frozen_cls: &Tensor) -> Result<Option<ChosenKeys>> {
        let (samples, hidden) = frozen_cls.dims2()?;
        let chosen = self.spec.chosen;
        let keys = self.keys.index_select(&self.choose(frozen_cls)?, 0)?;
        let queries = frozen_cls.detach().unsqueeze(1)?.expand((samples, chosen, hidden))?.reshape((samples * chosen, hidden))?;
        Ok(Some(ChosenKeys { keys, queries, chosen }))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::method::{Method, TaskModel};
    use crate::modality::PerModality;

    fn spec() -> L2pSpec {
        L2pSpec { pool: 4, length: 3, chosen: 2, layers: 3, hidden: 8 }
    }

    #[test]
    fn a_pool_has_the_numbers_of_the_paper() {
        let model = TaskModel::init(Method::L2p { l2p: L2pSpec::of(12, 768) }, 4, 0).unwrap();
        assert_eq!(model.adapter_parameters(), 10 * 5 * 768 + 10 * 768);
    }

    #[test]
    fn artifact_tensors_give_the_same_parameters_back_and_a_sample_is_served_the_prompts_that_it_learns_with() {
        let model = TaskModel::init(Method::L2p { l2p: spec() }, 4, 7).unwrap();
        let tensors = model.to_tensors().unwrap();
        let back = TaskModel::from_tensors(model.method().clone(), 4, &tensors).unwrap();
        for (name, var) in model.vars() {
            assert_eq!(flat(&var).unwrap(), flat(&back.vars()[&name]).unwrap(), "{name}");
        }
        let mut rng = rand::SeedableRng::seed_from_u64(3);
        let cls = gaussian(&mut rng, (5, 8)).unwrap();
        let input = LayerInput { queries: PerModality { image: &cls, text: &cls }, frozen_cls: Some(&cls) };
        let Some(Prompts::Append(learnt)) = model.additions(0, input).unwrap().prompts else { panic!("no prompts") };
        assert_eq!(learnt.lengths, [6; 5]);
        let pool = spec().adapter(&tensors).unwrap();
        let pool = pool.prompt_pool().unwrap();
        let served: Vec<f32> =
            cls.to_vec2::<f32>().unwrap().iter().flat_map(|cls| pool.tokens_for(cls).flatten().copied().collect::<Vec<_>>()).collect();
        assert_eq!(served, flat(&learnt.rows).unwrap());
        assert!(model.additions(1, input).unwrap().is_empty(), "prompts come in at the input alone");
        assert!(model.additions(0, LayerInput { frozen_cls: None, ..input }).unwrap_err().to_string().contains("frozen text CLS"));
    }

    #[test]
    fn the_chosen_keys_stand_beside_the_samples_that_chose_them_and_gradients_reach_them_alone() {
        let model = TaskModel::init(Method::L2p { l2p: spec() }, 4, 7).unwrap();
        let keys: Vec<f32> = (0..4).flat_map(|key| (0..8).map(move |i| f32::from(u8::from(i == key)))).collect();
        model.vars()[KEYS].set(&Tensor::from_vec(keys, (4, 8), &Device::Cpu).unwrap()).unwrap();
        let cls = Tensor::new(&[[0f32, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        let ChosenKeys { keys, queries, chosen } = model.chosen_keys(&cls).unwrap().unwrap();
        let places = |t: &Tensor| -> Vec<Option<usize>> {
            t.to_vec2::<f32>().unwrap().iter().map(|row| row.iter().position(|&x| x == 1.0)).collect()
        };
        assert_eq!((places(&keys), chosen), (vec![Some(3), Some(1)], 2));
        assert_eq!(queries.to_vec2::<f32>().unwrap(), vec![cls.to_vec2::<f32>().unwrap().remove(0); 2]);
        let gradients = (keys * queries).unwrap().sum_all().unwrap().backward().unwrap();
        let of_keys = gradients.get(&model.vars()[KEYS]).unwrap().to_vec2::<f32>().unwrap();
        assert!(of_keys[0].iter().all(|&x| x == 0.0) && of_keys[3].iter().any(|&x| x != 0.0));
        assert!(gradients.get(&model.vars()[TOKENS]).is_none());
    }

    #[test]
    fn dimensions_at_their_bounds_are_valid_and_those_beyond_are_refused_with_what_they_must_be() {
        let of = |pool, length, chosen| L2pSpec { pool, length, chosen, ..spec() };
        for valid in [of(1, 1, 1), of(4096, 1, 1024), of(2, 512, 2)] {
            assert_eq!(valid.validate(), Ok(()), "{valid:?}");
        }
        let refused = |pool, length, chosen| of(pool, length, chosen).validate().unwrap_err();
        assert_eq!(refused(0, 1, 1), "a pool of 0 prompts: it has 1 to 4096");
        assert_eq!(refused(4097, 1, 1), "a pool of 4097 prompts: it has 1 to 4096");
        assert_eq!(refused(3, 1, 4), "a sample takes 4 prompts: it must be 1 to the 3 of the pool");
        assert_eq!(refused(3, 1, 0), "a sample takes 0 prompts: it must be 1 to the 3 of the pool");
        assert_eq!(refused(3, 0, 2), "2 prompts of 0 tokens for a sample: together they have 1 to 1024 tokens");
        assert_eq!(refused(3, 513, 2), "2 prompts of 513 tokens for a sample: together they have 1 to 1024 tokens");
    }
}
