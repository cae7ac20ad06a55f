//! What the peers that learn by gradient share: the steps of a session, the frozen backbone's [CLS] of its
//! samples, and predictions chunk by chunk. Optimiser, schedule, order of samples and kept states are those
//! of DeLo's own training.
use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Device, Tensor, Var};
use rand_chacha::ChaCha8Rng;

use crate::data::samples::read_ahead;
use crate::data::{Label, Samples, Split};
use crate::random::{Purpose, stream};
use crate::training::optimiser::AdamW;
use crate::training::prefix::{CHUNK, FrozenPrefix};
use crate::training::schedule::Schedule;
use crate::training::trainer::batches;
use crate::training::{Session, TrainError};
use delo_engine::Packed;
use delo_model::PerModality;
use delo_model::input::Sample;

/// Bytes that the kept states of a session's samples may take. They change no result.
const CACHE_BYTES: usize = 1 << 30;

/// The samples of one step.
pub(super) struct Step<'a> {
    /// Counted from 0.
    pub number: usize,
    /// Positions among the session's training samples.
    pub positions: &'a [usize],
    /// The states that enter layer 0.
    pub state: Packed,
    /// The classes of each sample among those of the session.
    pub labels: Vec<&'a Label>,
}

/// The stream of a session's parameters at the start.
pub(super) fn start_stream(session: &Session<'_>) -> ChaCha8Rng {
    stream(Purpose::Start, session.settings.seed, (session.data.tasks[session.task].id, 0))
}

/// The layers of a list that the backbone has: a method for a deeper backbone uses as many as there are.
pub(super) fn layers_of(session: &Session<'_>, wanted: &[usize]) -> Vec<usize> {
    let layers = session.engine.backbone().config.num_hidden_layers;
    wanted.iter().copied().filter(|&layer| layer < layers).collect()
}

/// The training samples of the session.
///
/// # Errors
/// There is none, or a setting is outside its range.
pub(super) fn training_samples<'a>(session: &Session<'a>) -> Result<Samples<'a>, TrainError> {
    let config = &session.engine.backbone().config;
    session.settings.check(config.num_hidden_layers, config.patch_size)?;
    let rows = session.data.rows(session.task, Split::Train);
    if rows.is_empty() {
        return Err(TrainError::NoSamples(session.data.tasks[session.task].name.clone()));
    }
    Ok(Samples::new(session.data, rows, session.missing, session.processor))
}

/// Steps over the session's training samples: `loss` of each is lowered by AdamW in `vars`. Returns the
/// number of steps.
///
/// # Errors
/// A sample that cannot be read; a failed forward or backward pass; a loss that is not finite.
pub(super) fn fit(
    session: &Session<'_>,
    vars: BTreeMap<String, Var>,
    mut loss: impl FnMut(&Step<'_>) -> candle_core::Result<Tensor>,
) -> Result<usize, TrainError> {
    let Session { engine, data, settings, .. } = session;
    let samples = training_samples(session)?;
    let rows = data.rows(session.task, Split::Train);
    let prefix = FrozenPrefix::new(engine, samples, 0, session.dummy_image(), CACHE_BYTES, &mut |_, _| {})?;
    let mut optimiser = AdamW::new(vars, settings.adamw())?;
    let batches = batches(rows.len(), settings, data.tasks[session.task].id);
    let schedule = Schedule::new(settings.lr, batches.len(), settings.warmup);
    read_ahead(
        batches.iter().enumerate(),
        |(_, batch)| prefix.decode(batch),
        |(number, batch), decoded| {
            let state = Packed::concat(&prefix.states(batch, &decoded)?)?;
            let labels = batch.iter().map(|&position| &data.items[rows[position]].label).collect();
            let loss = loss(&Step { number, positions: batch, state, labels })?;
            if !loss.to_scalar::<f32>()?.is_finite() {
                return Err(TrainError::Diverged { step: number, lr: settings.lr });
            }
            optimiser.step(&loss.backward()?, schedule.at(number))?;
            Ok::<_, TrainError>(())
        },
    )?;
    Ok(batches.len())
}

/// Calls `work` with the states that enter layer 0 of the session's training samples, chunk by chunk.
///
/// # Errors
/// A sample that cannot be read; those of `work`.
pub(super) fn walk_training_samples(
    session: &Session<'_>,
    mut work: impl FnMut(Packed) -> candle_core::Result<()>,
) -> Result<(), TrainError> {
    training_samples(session)?.for_each_chunk(CHUNK, |_: Range<usize>, samples| Ok(work(embed(session, samples)?)?))
}

/// The rows of each sample, from the states that enter layer 0 of a chunk of samples.
///
/// # Errors
/// A failed forward pass.
pub(super) fn in_chunks(
    session: &Session<'_>,
    samples: &[Sample],
    mut rows: impl FnMut(Packed) -> candle_core::Result<Vec<Vec<f32>>>,
) -> Result<Vec<Vec<f32>>, TrainError> {
    let mut out = Vec::with_capacity(samples.len());
    for chunk in samples.chunks(CHUNK) {
        out.extend(rows(embed(session, chunk)?)?);
    }
    Ok(out)
}

fn embed(session: &Session<'_>, samples: &[Sample]) -> candle_core::Result<Packed> {
    session.engine.embed(samples, session.dummy_image())
}

/// The frozen backbone's CLS tokens of the samples of a state that enters layer 0, `[samples, d]` each: the
/// state after the last layer and the final norm.
///
/// # Errors
/// A failed forward pass.
pub(super) fn frozen_cls(session: &Session<'_>, state: &Packed) -> candle_core::Result<PerModality<Tensor>> {
    let layers = session.engine.backbone().config.num_hidden_layers;
    session.engine.cls(&session.engine.run_frozen(state, 0..layers)?)
}

/// The frozen text CLS of each training sample, `[samples, d]`: the query of L2P and DualPrompt. It is
/// computed once for a session.
///
/// # Errors
/// A sample that cannot be read; a failed forward pass.
pub(super) fn training_queries(session: &Session<'_>) -> Result<Tensor, TrainError> {
    let mut chunks = Vec::new();
    walk_training_samples(session, |state| {
        chunks.push(frozen_cls(session, &state)?.text);
        Ok(())
    })?;
    Ok(Tensor::cat(&chunks, 0)?)
}

/// Some rows of a tensor, by the numbers of its first dimension.
///
/// # Errors
/// A number out of range.
pub(super) fn pick(tensor: &Tensor, rows: impl IntoIterator<Item = usize>) -> candle_core::Result<Tensor> {
    let rows: Vec<u32> = rows.into_iter().map(|row| row as u32).collect();
    let count = rows.len();
    tensor.index_select(&Tensor::from_vec(rows, count, &Device::Cpu)?, 0)
}

/// The same rows for each sample: `[length, width]` → `[samples, length, width]`.
///
/// # Errors
/// A tensor of another rank.
pub(super) fn for_each_sample(rows: &Tensor, samples: usize) -> candle_core::Result<Tensor> {
    let (length, width) = rows.dims2()?;
    rows.reshape((1, length, width))?.expand((samples, length, width))?.contiguous()
}

/// Numbers of all variables of a map.
pub(super) fn count<K>(vars: &BTreeMap<K, Var>) -> usize {
    vars.values().map(|var| var.elem_count()).sum()
}

/// The mean over the rows of 1 − cos(query, key), both `[rows, d]`; gradients reach the keys alone.
///
/// # Errors
/// Tensors of different shapes.
pub(super) fn pull(queries: &Tensor, keys: &Tensor) -> candle_core::Result<Tensor> {
    crate::training::objective::alignment(&queries.detach(), keys)
}
