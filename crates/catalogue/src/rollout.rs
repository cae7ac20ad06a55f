//! Versions on trial beside the live ones.
use std::sync::Arc;

use super::Resident;

/// A share of a task's traffic: more than 0, at most 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Share(f64);

impl TryFrom<f64> for Share {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        if share > 0.0 && share <= 1.0 { Ok(Self(share)) } else { Err(format!("a share of traffic is above 0 and at most 1, not {share}")) }
    }
}

impl From<Share> for f64 {
    fn from(share: Share) -> Self {
        share.0
    }
}

impl Share {
    /// Whether this ticket falls into the share. The tickets are hashed, so that consecutive tickets are
    /// spread evenly; a ticket that falls into a share also falls into every larger share.
    pub(crate) fn takes(self, ticket: u64) -> bool {
        // The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection without visible pattern.
        let mut x = ticket.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        (x >> 11) as f64 / ((1u64 << 53) as f64) < self.0
    }
}

/// How a version is tried.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialMode {
    /// It answers this share of the task's traffic.
    Canary(Share),
    /// It is computed in addition to the live version and compared with it; callers never receive its
    /// answers.
    Shadow,
}

/// A version of a task on trial, beside the live version. The task is decided by the live version's key for
/// both.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The version on trial.
    pub resident: Arc<Resident>,
    /// How it is tried.
    pub mode: TrialMode,
}
