//! Signals of the frozen backbone, for the peers that learn on nothing else.
use crate::data::{Samples, Split};
use crate::training::{Session, TrainError};
use delo_model::input::Sample;
use delo_model::routing::keys::KeySignal;

/// Samples that go through the frozen layers together.
const CHUNK: usize = 32;

/// A signal of each sample, `[samples][width]`.
pub(super) type Rows = Vec<Vec<f32>>;

/// A signal of the items of the session's task in one split, in the order of the list.
///
/// # Errors
/// A sample that cannot be read; a failed forward pass.
pub(super) fn of_split(session: &Session<'_>, split: Split, signal: KeySignal) -> Result<Rows, TrainError> {
    let rows = session.data.rows(session.task, split);
    let samples = Samples::new(session.data, rows, session.missing, session.processor);
    let mut signals = Vec::with_capacity(rows.len());
    samples.for_each_chunk(CHUNK, |_, chunk| {
        signals.extend(of_samples(session, chunk, signal)?);
        Ok::<_, TrainError>(())
    })?;
    Ok(signals)
}

/// A signal of some samples.
///
/// # Errors
/// A failed forward pass.
pub(super) fn of_samples(session: &Session<'_>, samples: &[Sample], signal: KeySignal) -> Result<Rows, TrainError> {
    if samples.is_empty() {
        return Ok(Vec::new());
    }
    Ok(session.frozen_signals(samples, &[signal])?[&signal].to_vec2::<f32>()?)
}

/// Refuses a signal of a layer that the backbone does not have.
///
/// # Errors
/// A sentence that names the layers that there are.
pub(super) fn check(session: &Session<'_>, signal: KeySignal) -> Result<(), TrainError> {
    let layers = session.engine.backbone().config.num_hidden_layers;
    if signal.layer().is_some_and(|layer| layer > layers) {
        let message = format!("signal {signal}: the backbone has layers 0 to {}, and @{layers} after the last", layers - 1);
        return Err(candle_core::Error::Msg(message).into());
    }
    Ok(())
}
