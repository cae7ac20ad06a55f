//! The resident memory of a process over time.
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

/// Resident memory of a process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    pub resident: u64,
    pub peak: u64,
}

/// The memory of a process now; `None` where the system does not report it (it does on Linux).
pub fn of(process: u32) -> Option<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let kib = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Some(Memory { resident: kib("VmRSS:")? * 1024, peak: kib("VmHWM:")? * 1024 })
}

/// Resident bytes, one value each second from second 0 on.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct Series(pub Vec<u64>);

/// Number of seconds whose median is the value of a moment.
const MOMENT: usize = 5;

impl Series {
    /// The change from the end of one rest to the end of another, as a share. Both times are in seconds since
    /// the first value.
    pub fn change_between_rests(&self, first: Duration, last: Duration) -> Option<f64> {
        self.change(first.as_secs().checked_sub(MOMENT as u64)?, last.as_secs())
    }

    /// The change between two seconds as a share of the first value. Each value is a median of five seconds
    /// that lie between the two; `None` where there are too few values.
    pub fn change(&self, from: u64, to: u64) -> Option<f64> {
        let to = usize::try_from(to).ok()?.min(self.0.len().checked_sub(1)?);
        let seen = self.0.get(usize::try_from(from).ok()?..=to)?;
        let (first, last) = (median(seen.get(..MOMENT.min(seen.len()))?)?, median(&seen[seen.len().saturating_sub(MOMENT)..])?);
        (first > 0).then(|| last as f64 / first as f64 - 1.0)
    }
}

fn median(values: &[u64]) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

/// A task that reads the memory of a process once a second. It ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    task: JoinHandle<()>,
    seen: tokio::sync::watch::Receiver<Series>,
}

impl Watch {
    /// Starts reading now.
    pub fn start(process: u32) -> Self {
        let (sender, seen) = tokio::sync::watch::channel(Series::default());
        let begin = Instant::now();
        let task = tokio::spawn(async move {
            for second in 0u64.. {
                tokio::time::sleep_until((begin + Duration::from_secs(second)).into()).await;
                let Some(memory) = of(process) else { return };
                sender.send_modify(|series| series.0.push(memory.resident));
            }
        });
        Self { task, seen }
    }

    /// Ends the task and returns its values.
    pub fn stop(self) -> Series {
        self.seen.borrow().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn memory_is_read_where_the_system_reports_it() {
        let memory = of(std::process::id()).unwrap();
        assert!(memory.resident > 0 && memory.peak >= memory.resident);
        let watch = Watch::start(std::process::id());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let Series(seen) = watch.stop();
        assert!(seen.len() == 1 && seen[0] > 0, "{seen:?}");
    }

    #[test]
    fn change_ignores_the_warm_up_and_single_peaks() {
        let mut series = Series((0..20).map(|second| if second < 10 { 50 + second } else { 200 }).collect());
        series.0[15] = 900;
        series.0.extend([200, 270, 250, 250, 250]);
        assert_eq!(series.change(10, 24), Some(0.25));
        assert_eq!(series.change(0, 24).map(|c| c > 2.0), Some(true));
        assert_eq!(series.change(10, 9000), Some(0.25));
        assert_eq!(series.change_between_rests(Duration::from_millis(17_900), Duration::from_secs(24)), Some(0.25));
        assert_eq!((series.change(25, 30), Series::default().change(0, 1)), (None, None));
    }
}
