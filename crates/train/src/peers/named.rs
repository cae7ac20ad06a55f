//! The peers by the names that a benchmark's plan gives them: the one place that knows which there are.
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ContinualLearner;
use super::dualprompt::DualPrompt;
use super::inflora::InfLora;
use super::joint_head::JointHead;
use super::l2p::L2p;
use super::lda::Lda;
use super::linear_head::LinearHead;
use super::map::Map as MissingAwarePrompts;
use super::msp::Msp;
use super::nearest_mean::NearestMean;
use super::ranpac::RanPac;
use super::rebq::Rebq;
use super::ridge::Ridge;

/// Makes a peer with settings of its own; those that are left out have their defaults.
type Make = fn(Map<String, Value>) -> Result<Box<dyn ContinualLearner>, serde_json::Error>;

/// Each peer with its name.
const PEERS: &[(&str, Make)] = &[
    ("nearest_mean", |settings| Ok(Box::new(NearestMean::new(read(settings)?)))),
    ("ridge", |settings| Ok(Box::new(Ridge::new(&read(settings)?)))),
    ("ranpac", |settings| Ok(Box::new(RanPac::new(read(settings)?)))),
    ("lda", |settings| Ok(Box::new(Lda::new(read(settings)?)))),
    ("linear_head", |settings| Ok(Box::new(LinearHead::new(read(settings)?)))),
    ("joint_head", |settings| Ok(Box::new(JointHead::new(read(settings)?)))),
    ("map", |settings| Ok(Box::new(MissingAwarePrompts::new(read(settings)?)))),
    ("msp", |settings| Ok(Box::new(Msp::new(read(settings)?)))),
    ("l2p", |settings| Ok(Box::new(L2p::new(read(settings)?)))),
    ("dualprompt", |settings| Ok(Box::new(DualPrompt::new(read(settings)?)))),
    ("rebq", |settings| Ok(Box::new(Rebq::new(read(settings)?)))),
    ("inflora", |settings| Ok(Box::new(InfLora::new(read(settings)?)))),
];

/// Why there is no such peer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// A name that no peer has.
    #[error("{0:?} is no method: give one of {known}", known = names().collect::<Vec<_>>().join(", "))]
    Unknown(String),
    /// Settings that the peer does not have, or of the wrong type.
    #[error("settings of {method}: {source}")]
    Settings {
        /// Name of the peer.
        method: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The names of all peers.
pub fn names() -> impl Iterator<Item = &'static str> {
    PEERS.iter().map(|(name, _)| *name)
}

/// The peer of this name, before its first session.
///
/// # Errors
/// [`PeerError`].
pub fn named(name: &str, settings: Map<String, Value>) -> Result<Box<dyn ContinualLearner>, PeerError> {
    let (_, make) = PEERS.iter().find(|(known, _)| *known == name).ok_or_else(|| PeerError::Unknown(name.to_owned()))?;
    make(settings).map_err(|source| PeerError::Settings { method: name.to_owned(), source })
}

fn read<T: DeserializeOwned>(settings: Map<String, Value>) -> Result<T, serde_json::Error> {
    serde_json::from_value(Value::Object(settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_is_made_without_settings_and_refuses_those_that_it_does_not_have() {
        for name in names() {
            assert!(named(name, Map::new()).is_ok(), "{name}");
            let wrong = Map::from_iter([("no_such_setting".to_owned(), 1.into())]);
            let error = named(name, wrong).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(name) && error.contains("no_such_setting"), "{name}: {error}");
        }
        let error = named("none", Map::new()).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("nearest_mean"), "{error}");
    }
}
