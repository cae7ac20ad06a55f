//! The frozen prefix: the states entering the first adapted layer do not change while a task trains, so they
//! are computed once where memory allows it, and at each use otherwise.

use std::ops::Range;

use candle_core::Result;

use super::error::TrainError;
use crate::data::{DatasetError, Samples};
use delo_engine::{Engine, Packed};
use delo_model::input::Sample;

/// Samples that go through the frozen layers together.
pub const CHUNK: usize = 32;

/// The states entering the first adapted layer of a session's samples. As many as fit a budget are kept; of
/// the others neither states nor pixels are.
#[derive(Debug)]
pub struct FrozenPrefix<'a> {
    engine: &'a Engine,
    samples: Samples<'a>,
    layers: Range<usize>,
    dummy_image: [usize; 2],
    /// By position in `samples`; `None` where the state is not kept.
    kept: Vec<Option<Packed>>,
}

/// The samples of some positions that are decoded because their states are not kept: one for each such
/// position, in order.
#[derive(Debug)]
pub struct Decoded(Vec<Sample>);

impl<'a> FrozenPrefix<'a> {
    /// The states entering layer `first`. Every sample is decoded once, so that one that cannot be read is
    /// found before training begins; its state is computed and kept while all kept states take at most
    /// `budget` bytes.
    ///
    /// `progress` is called with the number of samples that are ready, and the number of all.
    ///
    /// # Errors
    /// A sample that cannot be read; a failed forward pass.
    pub fn new(
        engine: &'a Engine,
        samples: Samples<'a>,
        first: usize,
        dummy_image: [usize; 2],
        budget: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> std::result::Result<Self, TrainError> {
        let mut prefix = Self { engine, samples, layers: 0..first, dummy_image, kept: vec![None; samples.len()] };
        let mut left = budget;
        samples.for_each_chunk(CHUNK, |chunk, decoded| {
            let fitting = decoded.iter().take_while(|sample| {
                let rest = left.checked_sub(prefix.state_bytes(sample));
                rest.map(|rest| left = rest).is_some()
            });
            let states = prefix.compute(&decoded[..fitting.count()])?;
            prefix.kept[chunk.clone()].iter_mut().zip(states).for_each(|(kept, state)| *kept = Some(state));
            progress(chunk.end, samples.len());
            Ok::<_, TrainError>(())
        })?;
        Ok(prefix)
    }

    /// Memory of the state of a sample, in bytes.
    fn state_bytes(&self, sample: &Sample) -> usize {
        self.engine.tokens(self.dummy_image, sample) * self.engine.backbone().config.hidden_size * size_of::<f32>()
    }

    /// Decodes the samples at these positions whose states are not kept.
    ///
    /// # Errors
    /// A sample that cannot be read.
    pub fn decode(&self, positions: &[usize]) -> std::result::Result<Decoded, DatasetError> {
        let absent: Vec<usize> = positions.iter().copied().filter(|&position| self.kept[position].is_none()).collect();
        self.samples.read(&absent).map(Decoded)
    }

    /// The states of the samples at these positions, one stream each; `decoded` is what [`Self::decode`] gave
    /// for them.
    ///
    /// # Errors
    /// A failed forward pass.
    pub fn states(&self, positions: &[usize], decoded: &Decoded) -> Result<Vec<Packed>> {
        let mut computed = self.compute(&decoded.0)?.into_iter();
        let state = |&position: &usize| {
            let state = self.kept[position].clone().or_else(|| computed.next());
            state.ok_or_else(|| candle_core::Error::Msg(format!("sample {position} was not decoded")))
        };
        positions.iter().map(state).collect()
    }

    fn compute(&self, samples: &[Sample]) -> Result<Vec<Packed>> {
        if samples.is_empty() {
            return Ok(Vec::new());
        }
        let packed = self.engine.run_frozen(&self.engine.embed(samples, self.dummy_image)?, self.layers.clone())?;
        (0..samples.len()).map(|row| packed.sample(row)).collect()
    }
}
