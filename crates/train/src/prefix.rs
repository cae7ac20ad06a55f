//! The frozen prefix: the states entering the first adapted layer do not change while a task trains, so each sample's is computed once.
use std::ops::Range;

use candle_core::Result;

use delo_engine::{Engine, Packed};
use delo_model::input::Sample;

/// Samples that go through the frozen layers together.
pub const CHUNK: usize = 32;

/// The states entering the first adapted layer of some samples, kept where they fit the memory budget and computed at each use otherwise.
#[derive(Debug)]
pub struct FrozenPrefix<'a> {
    engine: &'a Engine,
    samples: &'a [Sample],
    layers: Range<usize>,
    dummy_image: [usize; 2],
    cached: Option<Vec<Packed>>,
}

impl<'a> FrozenPrefix<'a> {
    /// The states entering layer `first`, computed at each use.
    pub fn new(engine: &'a Engine, samples: &'a [Sample], first: usize, dummy_image: [usize; 2]) -> Self {
        Self { engine, samples, layers: 0..first, dummy_image, cached: None }
    }

    /// Computes and keeps all states if they take at most `budget` bytes. `done` hears how many samples are ready, of how many.
    pub fn keep(mut self, budget: usize, done: &mut dyn FnMut(usize, usize)) -> Result<Self> {
        if self.bytes() <= budget {
            let mut cached = Vec::with_capacity(self.samples.len());
            let rows: Vec<usize> = (0..self.samples.len()).collect();
            for chunk in rows.chunks(CHUNK) {
                cached.extend(self.compute(chunk)?);
                done(cached.len(), rows.len());
            }
            self.cached = Some(cached);
        }
        Ok(self)
    }

    /// What all states take.
    fn bytes(&self) -> usize {
        let tokens = |sample: &Sample| self.engine.tokens(self.dummy_image, sample);
        self.samples.iter().map(tokens).sum::<usize>() * self.engine.backbone().config.hidden_size * size_of::<f32>()
    }

    /// The states of the samples at `rows`, one stream each.
    pub fn get(&self, rows: &[usize]) -> Result<Vec<Packed>> {
        match &self.cached {
            Some(cached) => Ok(rows.iter().map(|&row| cached[row].clone()).collect()),
            None => self.compute(rows),
        }
    }

    fn compute(&self, rows: &[usize]) -> Result<Vec<Packed>> {
        let samples: Vec<&Sample> = rows.iter().map(|&row| &self.samples[row]).collect();
        let packed = self.engine.run_frozen(&self.engine.embed(&samples, self.dummy_image)?, self.layers.clone())?;
        (0..rows.len()).map(|row| packed.sample(row)).collect()
    }
}
