//! The steps of a session: forward, loss, backward, optimiser (METHOD.md 5).
use std::time::Instant;

use candle_core::Tensor;
use rand::RngCore;

use super::error::TrainError;
use super::objective::{Batch, Objective, targets};
use super::optimiser::AdamW;
use super::prefix::{Decoded, FrozenPrefix};
use super::schedule::Schedule;
use super::session::Session;
use super::statistics::Residual;
use super::step_log::StepRecord;
use crate::data::Label;
use crate::random::{Purpose, below, stream};
use delo_engine::Packed;
use delo_model::input::Presence;
use delo_model::{Method, TaskModel};

/// What the steps of a session change and read.
pub(super) struct Steps<'a> {
    session: &'a Session<'a>,
    /// Of the training samples, in order.
    labels: Vec<&'a Label>,
    /// What learns.
    pub model: TaskModel,
    /// What changes it.
    pub optimiser: AdamW,
    objective: Objective,
    schedule: Schedule,
    /// What the logits start from, where head and adapters learn a residual.
    residual: Option<&'a Residual>,
}

impl<'a> Steps<'a> {
    /// Before the first step on the training samples at `rows` of the data set.
    ///
    /// # Errors
    /// No memory for the parameters.
    pub fn start(session: &'a Session<'a>, rows: &[usize], method: Method, residual: Option<&'a Residual>) -> Result<Self, TrainError> {
        let Session { data, settings, .. } = session;
        let task = &data.tasks[session.task];
        let seed = stream(Purpose::Start, settings.seed, (task.id, 0)).next_u64();
        let objective = settings.objective(data.multi_label, &method);
        let model = TaskModel::init(method, task.labels.len(), seed)?.onto(&session.engine.learning_device())?;
        Ok(Self {
            session,
            labels: rows.iter().map(|&row| &data.items[row].label).collect(),
            optimiser: AdamW::new(model.vars(), settings.adamw())?,
            objective,
            schedule: Schedule::new(settings.lr, settings.epochs * rows.len().div_ceil(settings.batch), settings.warmup),
            model,
            residual,
        })
    }

    /// One step on the samples of `batch`: a single packed forward over them and the proxied copies of the
    /// complete ones. `decoded`: see [`FrozenPrefix::states`].
    pub fn step(
        &mut self,
        step: usize,
        epoch: usize,
        batch: &[usize],
        prefix: &FrozenPrefix<'_>,
        decoded: &Decoded,
    ) -> Result<StepRecord, TrainError> {
        let start = Instant::now();
        let Session { engine, data, settings, .. } = self.session;
        let mut parts = prefix.states(batch, decoded)?;
        let complete: Vec<usize> = (0..batch.len()).filter(|&i| parts[i].spans[0].presence == Presence::Complete).collect();
        if self.objective.consistency > 0.0 {
            let mut rng = stream(Purpose::Hidden, settings.seed, (data.tasks[self.session.task].id, step as u64));
            let keeps = [Presence::ImageOnly, Presence::TextOnly][below(&mut rng, 2)];
            let copies: Vec<Packed> = complete.iter().map(|&i| parts[i].with_presence(&[keeps])).collect();
            parts.extend(copies);
        }
        let mut output = engine.run_task(&Packed::concat(&parts)?, &self.model)?;
        if let Some(Residual { logits, .. }) = self.residual {
            let copied = parts.len() - batch.len();
            let rows = batch.iter().chain(complete.iter().take(copied).map(|&i| &batch[i])).map(|&i| i as u32).collect::<Vec<_>>();
            let rows = Tensor::from_slice(&rows, rows.len(), logits.device())?;
            let of_rows = logits.index_select(&rows, 0)?.to_device(output.logits.device())?;
            output.logits = (output.logits + of_rows)?;
        }
        let labels: Vec<&Label> = batch.iter().map(|&i| self.labels[i]).collect();
        let batch =
            Batch { targets: targets(&labels, output.logits.device())?, complete: complete.into_iter().map(|i| i as u32).collect() };
        let losses = self.objective.losses(&output, &batch)?;
        let value = |t: &Tensor| Ok::<_, candle_core::Error>(f64::from(t.to_scalar::<f32>()?));
        let loss = value(&losses.total)?;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step, lr: settings.lr });
        }
        let lr = self.schedule.at(step);
        self.optimiser.step(&losses.total.backward()?, lr)?;
        Ok(StepRecord {
            step,
            epoch,
            lr,
            loss,
            classification: value(&losses.classification)?,
            alignment: losses.alignment.as_ref().map(value).transpose()?,
            consistency: losses.consistency.as_ref().map(value).transpose()?,
            key_pull: losses.key_pull.as_ref().map(value).transpose()?,
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}
