//! A cell of a peer that learns all sessions one after another. It keeps no state between processes: an
//! interrupted cell begins again.
use super::{Outcome, Run, RunError, timed};
use delo_train::eval::LearnerEvaluation;
use delo_train::peers::named::named;

impl Run<'_> {
    pub(super) fn learner(&self, say: &mut dyn FnMut(&str)) -> Result<Outcome, RunError> {
        let mut learner = named(&self.cell.method, self.cell.peer.clone())?;
        let of = |&split| (split, LearnerEvaluation::new(self.data, self.missing, self.processor, split));
        let mut evaluations: Vec<_> = self.cell.splits.iter().map(of).collect();
        let (mut training_seconds, mut evaluation_seconds) = (0.0, 0.0);
        for (task, of_task) in self.data.tasks.iter().enumerate() {
            let session = self.session(task, &self.cell.settings);
            timed(&mut training_seconds, || learner.learn(&session))?;
            say(&format!("{}: learnt, {training_seconds:.0} s until now", of_task.name));
            for (_, evaluation) in &mut evaluations {
                timed(&mut evaluation_seconds, || evaluation.after_session(&*learner, &session))?;
            }
        }
        Ok(Outcome {
            evaluated: evaluations.into_iter().map(|(split, evaluation)| (split, evaluation.finish())).collect(),
            choices: learner.choices(),
            training_seconds,
            evaluation_seconds,
            parameters: learner.parameters(),
            head_parameters: learner.head_parameters(),
            steps: learner.steps(),
        })
    }
}
