//! The sequence of requests: the content and the sender of the n-th request.
use std::time::Duration;

use crate::pb;
use crate::samples::Sample;
use crate::scenario::{Client, Mix, Priority, Scenario};

/// All requests that may be sent, and the groups that send them. The same seed gives the same requests.
#[derive(Debug)]
pub struct Plan {
    samples: Vec<Sample>,
    groups: Vec<Group>,
    /// Phases with their ends; after the last one, each group's own mix applies.
    phases: Vec<(Duration, Mix)>,
    seed: u64,
}

/// A group of callers.
#[derive(Debug)]
pub struct Group {
    pub name: String,
    /// Its share of all requests, in (0, 1].
    pub share: f64,
    pub deadline: Duration,
    mix: Mix,
    priority: pb::Priority,
}

/// One request.
#[derive(Debug)]
pub struct Planned<'a> {
    /// The number of the group that sends it.
    pub group: usize,
    /// The sample that it sends.
    pub sample: &'a Sample,
    /// Whether the image and the text are sent.
    pub sent: (bool, bool),
}

impl Plan {
    /// The requests of a scenario, made of these samples.
    ///
    /// # Panics
    /// If there is no sample.
    pub fn new(scenario: &Scenario, samples: Vec<Sample>) -> Self {
        assert!(!samples.is_empty(), "a data set without items is refused when it is read");
        let groups = scenario.groups();
        let weights: f64 = groups.iter().map(|group| group.share).sum();
        let group = |client: Client| Group {
            share: client.share / weights,
            deadline: Duration::from_secs_f64(client.deadline_seconds.unwrap_or(scenario.deadline_seconds)),
            mix: client.mix.unwrap_or(scenario.mix),
            priority: match client.priority {
                None => pb::Priority::Unspecified,
                Some(Priority::Interactive) => pb::Priority::Interactive,
                Some(Priority::Bulk) => pb::Priority::Bulk,
            },
            name: client.name,
        };
        let mut end = Duration::ZERO;
        let phases = scenario.phases.iter().map(|phase| {
            end += Duration::from_secs(phase.seconds);
            (end, phase.mix)
        });
        Self { phases: phases.collect(), samples, groups: groups.into_iter().map(group).collect(), seed: scenario.seed }
    }

    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Number of samples. The n-th request takes the n-th sample, and starts again after the last.
    pub fn samples(&self) -> usize {
        self.samples.len()
    }

    /// The `n`-th request, which is due at this time since the start.
    pub fn request(&self, n: u64, due: Duration) -> Planned<'_> {
        let sample = &self.samples[(n % self.samples.len() as u64) as usize];
        let mut at = self.draw(n, 0);
        let group = self.groups.iter().position(|group| {
            at -= group.share;
            at < 0.0
        });
        // Shares sum to 1 up to rounding.
        let group = group.unwrap_or(self.groups.len() - 1);
        let phase = self.phases.iter().find(|(end, _)| due < *end);
        let Mix { both, image, text } = phase.map_or(self.groups[group].mix, |(_, mix)| *mix);
        let at = self.draw(n, 1) * (both + image + text);
        let sent = if at < both {
            (true, true)
        } else if at < both + image {
            (true, false)
        } else {
            (false, true)
        };
        Planned { group, sample, sent }
    }

    /// A number in [0, 1) by SplitMix64 that depends on the seed, the request and the purpose.
    fn draw(&self, n: u64, purpose: u64) -> f64 {
        let mut x = (self.seed ^ n.rotate_left(20) ^ (purpose << 62)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) as f64 / 2f64.powi(64) * (1.0 - f64::EPSILON)
    }

    /// The message of a planned request.
    pub fn message(&self, planned: &Planned<'_>) -> pb::ClassifyRequest {
        let (image, text) = planned.sent;
        pb::ClassifyRequest {
            image: image.then(|| planned.sample.image.clone()),
            text: text.then(|| planned.sample.text.clone()),
            priority: self.groups[planned.group].priority.into(),
            ..pb::ClassifyRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(more: &str) -> Plan {
        let text = format!("name = 'x'\ndata = 'd'\nrate = 1\nduration_seconds = 60\n{more}");
        let scenario: Scenario = toml::from_str(&text).unwrap();
        scenario.check().unwrap();
        let sample = |i: usize| Sample { image: vec![0].into(), text: i.to_string(), task: "t".into(), labels: Vec::new() };
        Plan::new(&scenario, (0..100).map(sample).collect())
    }

    /// The share of 10,000 requests at this second that satisfy a condition.
    fn share(plan: &Plan, second: u64, holds: impl Fn(&Planned) -> bool) -> f64 {
        (0..10_000).filter(|n| holds(&plan.request(*n, Duration::from_secs(second)))).count() as f64 / 10_000.0
    }

    #[test]
    fn the_mix_decides_which_modalities_are_sent() {
        let plan = plan("[mix]\nboth = 2.0\nimage = 1.0\ntext = 1.0");
        assert!((share(&plan, 0, |r| r.sent == (true, true)) - 0.5).abs() < 0.02);
        assert!((share(&plan, 0, |r| r.sent == (true, false)) - 0.25).abs() < 0.02);
        assert_eq!(share(&plan, 0, |r| r.sent == (false, false)), 0.0);
    }

    #[test]
    fn phases_change_the_mix_over_time() {
        let plan = plan("mix = {both = 1}\n[[phase]]\nseconds = 10\nmix = {text = 1}\n[[phase]]\nseconds = 10\nmix = {image = 1}");
        for (second, sent) in [(0, (false, true)), (9, (false, true)), (10, (true, false)), (20, (true, true)), (59, (true, true))] {
            assert_eq!(share(&plan, second, |r| r.sent == sent), 1.0, "second {second}");
        }
    }

    #[test]
    fn groups_get_their_shares_their_mixes_and_their_priorities() {
        let more = "mix = {both = 1}\n[[client]]\nname = 'a'\nshare = 3\npriority = 'interactive'\ndeadline_seconds = 2\n[[client]]\nname = 'b'\nshare = 1\nmix = {text = 1}\npriority = 'bulk'";
        let plan = plan(more);
        assert!((share(&plan, 0, |r| r.group == 0) - 0.75).abs() < 0.02);
        assert_eq!(share(&plan, 0, |r| r.group == 1 && r.sent != (false, true)), 0.0);
        let request = (0..100).map(|n| plan.request(n, Duration::ZERO)).find(|r| r.group == 1).unwrap();
        let message = plan.message(&request);
        assert_eq!((message.priority(), message.image, message.text), (pb::Priority::Bulk, None, Some(request.sample.text.clone())));
        assert_eq!(plan.groups().iter().map(|g| g.deadline.as_secs()).collect::<Vec<_>>(), [2, 10]);
    }

    #[test]
    fn every_sample_is_sent_and_the_seed_repeats_the_requests() {
        let (one, same, other) =
            (plan("mix = {both = 1, text = 1}"), plan("mix = {both = 1, text = 1}"), plan("seed = 1\nmix = {both = 1, text = 1}"));
        let sent = |plan: &Plan| (0..1000).map(|n| plan.request(n, Duration::ZERO).sent).collect::<Vec<_>>();
        assert_eq!(sent(&one), sent(&same));
        assert_ne!(sent(&one), sent(&other));
        let texts: std::collections::BTreeSet<_> = (0..100).map(|n| one.request(n, Duration::ZERO).sample.text.clone()).collect();
        assert_eq!(texts.len(), one.samples());
    }
}
