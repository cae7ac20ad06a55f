//! The report as a table of text.
use std::fmt;

use super::{ChurnReport, Quantiles, Report, ServerReport};

fn percent(x: Option<f64>) -> String {
    x.map_or("-".into(), |x| format!("{:.1} %", 100.0 * x))
}

fn ms(x: Option<f64>) -> String {
    x.map_or("-".into(), |x| format!("{:.1}", 1000.0 * x))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "scenario   {}, {:.1} requests/s for {:.1} s", self.scenario, self.rate, self.seconds)?;
        if let [first, rest @ ..] = self.capacities.as_slice() {
            let after = rest.iter().map(|after| format!(", {after:.1}/s after")).collect::<String>();
            writeln!(f, "capacity   {first:.1}/s before{after}, closed loop")?;
        }
        writeln!(f, "requests   {} offered, {} sent, {} dropped, {} ok", self.offered, self.sent, self.dropped, self.ok)?;
        writeln!(f, "goodput    {:.1}/s, {} of capacity", self.goodput, percent(self.goodput_of_capacity))?;
        writeln!(f, "answers    task right {}, label right {}", percent(self.right_task), percent(self.right_label))?;
        if self.outcomes_reported + self.outcomes_refused > 0 {
            writeln!(f, "outcomes   {} reported, {} refused", self.outcomes_reported, self.outcomes_refused)?;
        }
        self.server.iter().try_for_each(|server| server.fmt(f))?;
        self.churn.iter().try_for_each(|churn| churn.fmt(f))?;
        self.memory_line(f)?;
        writeln!(f)?;
        writeln!(f, "{:<20} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}", "latency, ms", "count", "p50", "p90", "p99", "p99.9", "max")?;
        let mut row = |name: &str, count: u64, q: &Quantiles| {
            let [p50, p90, p99, p99_9, max] = [q.p50, q.p90, q.p99, q.p99_9, q.max].map(ms);
            writeln!(f, "{name:<20} {count:>9} {p50:>9} {p90:>9} {p99:>9} {p99_9:>9} {max:>9}")
        };
        for (code, report) in &self.codes {
            row(code, report.count, &report.latency)?;
        }
        for (name, client) in &self.clients {
            row(&format!("OK, {name}"), client.ok, &client.latency)?;
        }
        if self.deadline_overrun.max.is_some() {
            let late = self.codes.get("DEADLINE_EXCEEDED").map_or(0, |report| report.count);
            row("after the deadline", late, &self.deadline_overrun)?;
        }
        row("sent late by", self.sent, &self.lag)?;
        for failure in &self.failed {
            writeln!(f, "FAILED     {failure}")?;
        }
        Ok(())
    }
}

impl Report {
    fn memory_line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some([before, after]) = self.memory else { return Ok(()) };
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let change = self.memory_change.map_or(String::new(), |change| format!(", change {:+.1} %", 100.0 * change));
        writeln!(
            f,
            "memory     {:.1} MiB before, {:.1} after, peak {:.1}{change}",
            mib(before.resident),
            mib(after.resident),
            mib(after.peak)
        )
    }
}

impl fmt::Display for ServerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batches, samples, unanswered, compute_p50, compute_p99_9 } = self;
        let mean = if *batches > 0.0 { samples / batches } else { 0.0 };
        let (p50, p99_9) = (ms(*compute_p50), ms(*compute_p99_9));
        writeln!(
            f,
            "server     {batches} batches of {mean:.1} samples, {unanswered} computed and not answered; a batch takes about {p50} ms, p99.9 {p99_9} ms"
        )
    }
}

impl fmt::Display for ChurnReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cycles, changes, failed, took, answers, answers_of_no_live_version, .. } = self;
        writeln!(
            f,
            "churn      {cycles} cycles, {changes} changes, {failed} failed; a change takes {} ms, at most {}",
            ms(took.p50),
            ms(took.max)
        )?;
        writeln!(f, "versions   {answers} answers checked, {answers_of_no_live_version} of a version that was not live meanwhile")
    }
}
