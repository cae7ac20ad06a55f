//! The steps of one sample on its way to an answer, with their times: told in the answer and its trailers on
//! demand, and as spans of a trace.
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{Span, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;

use delo_engine::Marks;
use delo_proto as pb;

/// What happens to a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The text becomes tokens.
    Tokenize,
    /// The image is decoded, resized and normalised.
    Decode,
    /// It waits for its batch.
    Queue,
    /// Its batch is computed.
    Compute,
    /// Of [`Self::Compute`]: the frozen layers, as far as the decision or the first adapted layer needs them.
    Frozen,
    /// Of [`Self::Compute`]: the tasks are decided.
    Decision,
    /// Of [`Self::Compute`]: the adapted layers and the heads.
    Adapted,
}

impl Step {
    /// Its name in traces and trailers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenize => "tokenize",
            Self::Decode => "decode",
            Self::Queue => "queue",
            Self::Compute => "compute",
            Self::Frozen => "frozen",
            Self::Decision => "decision",
            Self::Adapted => "adapted",
        }
    }

    fn is_of_compute(self) -> bool {
        matches!(self, Self::Frozen | Self::Decision | Self::Adapted)
    }
}

/// The steps that a sample has passed, with their times.
#[derive(Clone, Debug)]
pub struct Steps {
    arrived: Instant,
    passed: Vec<(Step, Range<Instant>)>,
    /// Samples of its batch; 0 before there was one.
    batch_samples: usize,
}

impl Steps {
    /// Of a sample that arrives now.
    pub fn begin() -> Self {
        Self { arrived: Instant::now(), passed: Vec::with_capacity(7), batch_samples: 0 }
    }

    pub fn passed(&mut self, steps: impl IntoIterator<Item = (Step, Range<Instant>)>) {
        self.passed.extend(steps);
    }

    /// The sample was computed in a batch of so many samples.
    pub fn batch(&mut self, samples: usize, marks: &Marks) {
        self.batch_samples = samples;
        let Marks { began, frozen, decided, ended } = *marks;
        self.passed([(Step::Frozen, began..frozen), (Step::Decision, frozen..decided), (Step::Adapted, decided..ended)]);
    }

    fn seconds(&self, step: Step) -> f64 {
        self.passed.iter().filter(|(passed, _)| *passed == step).map(|(_, time)| length(time).as_secs_f64()).sum()
    }

    /// As an answer carries them; the answer is given now.
    pub fn timings(&self) -> pb::Timings {
        pb::Timings {
            total_seconds: self.arrived.elapsed().as_secs_f64(),
            decode_seconds: self.seconds(Step::Decode),
            tokenize_seconds: self.seconds(Step::Tokenize),
            queue_seconds: self.seconds(Step::Queue),
            compute_seconds: self.seconds(Step::Compute),
            frozen_seconds: self.seconds(Step::Frozen),
            decision_seconds: self.seconds(Step::Decision),
            adapted_seconds: self.seconds(Step::Adapted),
            batch_samples: u32::try_from(self.batch_samples).unwrap_or(u32::MAX),
        }
    }

    /// The value of a `server-timing` header (W3C Server Timing): milliseconds of each step that was passed.
    fn server_timing(&self) -> String {
        let mut value = format!("total;dur={:.3}", millis(self.arrived.elapsed()));
        for (step, time) in &self.passed {
            // Writing to a string can't fail.
            let _ = write!(value, ", {};dur={:.3}", step.name(), millis(length(time)));
        }
        value
    }
}

fn length(time: &Range<Instant>) -> Duration {
    time.end.saturating_duration_since(time.start)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Where the steps of a call's sample are left for the layer that writes trailers; an `Arc` of it is in the
/// extensions of the request.
#[derive(Debug, Default)]
pub struct ServerTiming(OnceLock<String>);

impl ServerTiming {
    pub fn get(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}

/// The trace of one call: its span is the parent of those of its samples. In the extensions of the request.
#[derive(Clone, Debug)]
pub struct CallTrace {
    pub tracer: SdkTracer,
    pub context: Context,
}

/// Who is told the steps of a sample.
#[derive(Clone, Debug, Default)]
pub struct Observers {
    /// `None` where nobody exports spans of this call.
    pub trace: Option<CallTrace>,
    /// `None` where the caller asked for no trailers.
    pub trailers: Option<Arc<ServerTiming>>,
    /// The call has several samples, each with a span of its own.
    pub is_one_of_many: bool,
}

impl Observers {
    /// Tells the steps of a sample that is answered, or refused, now. `wanted`: the request asked for them.
    pub fn tell(&self, steps: &Steps, wanted: bool, attributes: impl FnOnce() -> Vec<KeyValue>) {
        if let Some(trailers) = self.trailers.as_ref().filter(|_| wanted && !self.is_one_of_many) {
            // Set before: an earlier attempt of the same call.
            let _ = trailers.0.set(steps.server_timing());
        }
        if let Some(CallTrace { tracer, context }) = self.trace.as_ref().filter(|trace| trace.context.span().span_context().is_sampled()) {
            trace(tracer, context, steps, self.is_one_of_many, attributes());
        }
    }
}

/// Exports the steps as spans below the call's.
fn trace(tracer: &SdkTracer, call: &Context, steps: &Steps, own_span: bool, attributes: Vec<KeyValue>) {
    let clock = Clock::now();
    let start = |name: &'static str, parent: &Context, time: &Range<Instant>, attributes: Vec<KeyValue>| {
        let builder = tracer.span_builder(name).with_start_time(clock.time(time.start)).with_attributes(attributes);
        builder.start_with_context(tracer, parent)
    };
    let whole = steps.arrived..Instant::now();
    let sample = if own_span {
        call.with_span(start("sample", call, &whole, attributes))
    } else {
        attributes.into_iter().for_each(|attribute| call.span().set_attribute(attribute));
        call.clone()
    };
    let compute = steps.passed.iter().find(|(step, _)| *step == Step::Compute).map(|(step, time)| {
        let samples = KeyValue::new("delo.batch.samples", i64::try_from(steps.batch_samples).unwrap_or(i64::MAX));
        sample.with_span(start(step.name(), &sample, time, vec![samples]))
    });
    for (step, time) in steps.passed.iter().filter(|(step, _)| *step != Step::Compute) {
        let parent = compute.as_ref().filter(|_| step.is_of_compute()).unwrap_or(&sample);
        start(step.name(), parent, time, Vec::new()).end_with_timestamp(clock.time(time.end));
    }
    if let (Some(compute), Some((_, time))) = (&compute, steps.passed.iter().find(|(step, _)| *step == Step::Compute)) {
        compute.span().end_with_timestamp(clock.time(time.end));
    }
    if own_span {
        sample.span().end_with_timestamp(clock.time(whole.end));
    }
}

/// The two clocks at one moment.
struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "traces of several machines are put together by the time of day")]
    fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    /// The time of day of a moment that has passed.
    fn time(&self, instant: Instant) -> SystemTime {
        self.time - self.instant.saturating_duration_since(instant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_the_steps_are_told_by_name_in_seconds_and_in_milliseconds() {
        let mut steps = Steps::begin();
        let at = |millis| steps.arrived + Duration::from_millis(millis);
        let (decode, queue, compute) = (at(0)..at(2), at(2)..at(5), at(5)..at(15));
        let marks = Marks { began: at(5), frozen: at(9), decided: at(10), ended: at(15) };
        steps.passed([(Step::Decode, decode), (Step::Queue, queue), (Step::Compute, compute)]);
        steps.batch(3, &marks);
        let told = steps.timings();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(told.decode_seconds, 0.002) && close(told.queue_seconds, 0.003) && close(told.compute_seconds, 0.010), "{told:?}");
        assert!(close(told.frozen_seconds, 0.004) && close(told.decision_seconds, 0.001) && close(told.adapted_seconds, 0.005), "{told:?}");
        assert_eq!((told.tokenize_seconds, told.batch_samples), (0.0, 3));
        let header = steps.server_timing();
        assert!(
            header.starts_with("total;dur=")
                && header.ends_with(
                    "decode;dur=2.000, queue;dur=3.000, compute;dur=10.000, frozen;dur=4.000, decision;dur=1.000, adapted;dur=5.000"
                ),
            "{header}"
        );
    }
}
