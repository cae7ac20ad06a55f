//! What a partition adds to the backbone's layers, ready to serve, whichever method learnt it.
use std::ops::Range;

use delo_kernels::Precision;

use super::factors::FactorBank;
use super::prefix::Prefix;
use super::prompts::PromptPool;

/// What a partition adds to the backbone's layers, ready to serve. The engine knows nothing else of a method.
#[derive(Clone, Debug, Default)]
pub struct Adapter {
    banks: Layers<FactorBank>,
    prefixes: Layers<Prefix>,
    prompts: Option<PromptPool>,
}

/// Something of consecutive layers.
#[derive(Clone, Debug)]
struct Layers<T> {
    /// The layer of the first entry.
    first: usize,
    of: Vec<T>,
}

impl<T> Default for Layers<T> {
    fn default() -> Self {
        Self { first: 0, of: Vec::new() }
    }
}

impl<T> Layers<T> {
    fn get(&self, layer: usize) -> Option<&T> {
        self.of.get(layer.checked_sub(self.first)?)
    }

    fn map(self, f: impl Fn(T) -> T) -> Self {
        Self { of: self.of.into_iter().map(f).collect(), ..self }
    }
}

impl Adapter {
    /// Low-rank updates in consecutive layers; the first bank is of `first_layer`.
    pub fn low_rank(first_layer: usize, banks: Vec<FactorBank>) -> Self {
        Self { banks: Layers { first: first_layer, of: banks }, ..Self::default() }
    }

    /// Prefixes of keys and values in consecutive layers; the first is of `first_layer`.
    pub fn prefixes(first_layer: usize, prefixes: Vec<Prefix>) -> Self {
        Self { prefixes: Layers { first: first_layer, of: prefixes }, ..Self::default() }
    }

    /// Prompts that go through all layers behind a sample's tokens.
    pub fn prompts(pool: PromptPool) -> Self {
        Self { prompts: Some(pool), ..Self::default() }
    }

    /// The layers with low-rank updates.
    pub fn layers(&self) -> Range<usize> {
        self.banks.first..self.banks.first + self.banks.of.len()
    }

    /// The factors of a layer; `None` where the layer has no low-rank update.
    pub fn bank(&self, layer: usize) -> Option<&FactorBank> {
        self.banks.get(layer)
    }

    /// The prefix of a layer; `None` where the layer has none.
    pub fn prefix(&self, layer: usize) -> Option<&Prefix> {
        self.prefixes.get(layer)
    }

    /// The pool of prompts; `None` where it adds no prompts.
    pub fn prompt_pool(&self) -> Option<&PromptPool> {
        self.prompts.as_ref()
    }

    /// How many tokens it adds to a sample.
    pub fn prompt_tokens(&self) -> usize {
        self.prompts.as_ref().map_or(0, PromptPool::sample_tokens)
    }

    /// Why a backend other than the CPU's refuses what it adds, for a user to read; `None` where all backends
    /// compute it.
    pub fn needs_cpu(&self) -> Option<&'static str> {
        let added = self.prompts.is_some() || !self.prefixes.of.is_empty();
        added.then_some(PROMPTS_ON_CPUS)
    }

    /// The same adapter with its numbers in another format.
    #[must_use]
    pub fn in_precision(self, precision: Precision) -> Self {
        Self {
            banks: self.banks.map(|bank| bank.in_precision(precision)),
            prefixes: self.prefixes.map(|prefix| prefix.in_precision(precision)),
            prompts: self.prompts,
        }
    }
}

/// Why a backend other than the CPU's refuses prompts and prefixes.
pub const PROMPTS_ON_CPUS: &str = "this method adds prompts, which CPUs alone compute: give --device cpu";
