//! The frozen prefix: the states entering the first adapted layer do not change while a task trains, so each sample's is computed once.
use candle_core::Result;

use crate::engine::{Engine, Packed};
use crate::input::Sample;

/// Samples that go through the frozen layers together.
pub const CHUNK: usize = 32;

/// The states entering layer `first` of some samples, kept where they fit the memory budget and computed at each use otherwise.
#[derive(Debug)]
pub struct FrozenPrefix<'a> {
    engine: &'a Engine,
    samples: &'a [Sample],
    first: usize,
    cached: Option<Vec<Packed>>,
}

impl<'a> FrozenPrefix<'a> {
    /// Computes and keeps all states if they take at most `budget` bytes. `done` hears how many samples are ready, of how many.
    pub fn new(engine: &'a Engine, samples: &'a [Sample], first: usize, budget: usize, done: &mut dyn FnMut(usize, usize)) -> Result<Self> {
        let mut prefix = Self { engine, samples, first, cached: None };
        let width = engine.vilt().layernorm.weight.elem_count();
        let bytes: usize = samples.iter().map(|s| engine.tokens(s) * width * size_of::<f32>()).sum();
        if bytes <= budget {
            let mut cached = Vec::with_capacity(samples.len());
            let rows: Vec<usize> = (0..samples.len()).collect();
            for chunk in rows.chunks(CHUNK) {
                cached.extend(prefix.compute(chunk)?);
                done(cached.len(), samples.len());
            }
            prefix.cached = Some(cached);
        }
        Ok(prefix)
    }

    /// The states of the samples at `rows`, one stream each.
    pub fn get(&self, rows: &[usize]) -> Result<Vec<Packed>> {
        match &self.cached {
            Some(cached) => Ok(rows.iter().map(|&row| cached[row].clone()).collect()),
            None => self.compute(rows),
        }
    }

    fn compute(&self, rows: &[usize]) -> Result<Vec<Packed>> {
        let samples: Vec<Sample> = rows.iter().map(|&row| self.samples[row].clone()).collect();
        let packed = self.engine.run_frozen(&self.engine.embed(&samples)?, 0..self.first)?;
        (0..rows.len()).map(|row| packed.select(&[row])).collect()
    }
}
