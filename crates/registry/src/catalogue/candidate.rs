//! A partition on its way into the catalogue: read, checked, warmed up.
use std::sync::Arc;

use delo_catalogue::{Catalogue, Resident};
use delo_engine::{Engine, EngineError, Query};
use delo_model::Partition;
use delo_model::input::{Pixels, Sample};
use delo_model::partition::Artifact;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::ChangeError;
use crate::artifact::ReadArtifact;
use crate::ledger::VersionRecord;

/// A partition that was read and checked and is not yet part of a catalogue.
pub struct Candidate {
    pub partition: Partition,
    /// The file that it was read from.
    pub artifact: ReadArtifact,
}

impl Candidate {
    /// Checks an artifact and binds it to the engine's backbone. Blocks: it hashes the tensors and converts
    /// them.
    ///
    /// # Errors
    /// [`ChangeError::Partition`]: an artifact that is damaged, or of another backbone.
    pub fn check(artifact: ReadArtifact, engine: &Engine) -> Result<Self, ChangeError> {
        let parsed = Artifact::parse_hashed(artifact.bytes(), artifact.digest())?;
        if let Some(part) = parsed.meta.method.ablation() {
            let (field, reason) = (
                parsed.meta.method.field().to_owned(),
                format!(
                    "it was trained without {part}, to measure what that is worth; servers refuse it: evaluate it with `delo eval` \
                 or `delo benchmark`, and load a partition that was trained with it"
                ),
            );
            return Err(delo_model::partition::PartitionError::Field { field, reason }.into());
        }
        let partition = parsed.bind(engine.backbone())?.in_precision(engine.precision());
        Ok(Self { partition, artifact })
    }

    /// The entry of the ledger for this partition, loaded at this moment from `origin`.
    #[expect(clippy::disallowed_methods, reason = "a version tells people when it was loaded; nothing is decided by it")]
    pub fn record(&self, origin: String) -> VersionRecord {
        let Partition { meta, checksum, digest, .. } = &self.partition;
        VersionRecord {
            digest: digest.clone(),
            checksum: checksum.clone(),
            origin,
            created: meta.created.clone(),
            delo_version: meta.delo_version.clone(),
            multi_label: meta.multi_label,
            loaded: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
        }
    }
}

/// Classifies a blank image with a partition that is not live yet. This proves that it will serve, and
/// touches its memory before the first request does. Blocks: it computes.
///
/// # Errors
/// [`ChangeError::WarmUp`]: the forward pass fails, or its scores are not finite.
pub fn warm_up(engine: &Engine, catalogue: &Catalogue, resident: &Arc<Resident>) -> Result<(), ChangeError> {
    let [height, width] = resident.dummy_image();
    let sample = Sample { text: None, image: Some(Pixels::dummy(height, width)) };
    let failed = |reason: String| ChangeError::WarmUp { task: resident.task().to_owned(), reason };
    let answer = engine.classify(catalogue, &[Query::given(sample, resident.clone())]).pop();
    let answer = answer.unwrap_or(Err(EngineError::NothingLoaded)).map_err(|e| failed(e.to_string()))?;
    if answer.scores.iter().all(|score| score.is_finite()) {
        return Ok(());
    }
    Err(failed("its scores are not finite, its weights are out of range; train it again".to_owned()))
}
