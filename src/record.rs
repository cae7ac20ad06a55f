//! A line of a file of decision records (`records.file`): a decision, with or without what was asked, or a reported
//! outcome. `delo serve` writes them, `delo replay` reads them.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use delo_proto as pb;

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    Decision(Box<Decision>),
    Outcome(Outcome),
}

/// What was asked, as far as it is recorded, and what was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// RFC 3339, UTC.
    pub time: String,
    pub request_id: String,
    pub model: String,
    /// The task that the request named; empty where the server decided.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub given_task: String,
    /// The share that the request wanted rejected, where it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reject: Option<f32>,
    pub answer: Answer,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
}

/// What was answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Empty for a rejected sample.
    pub task: String,
    pub version: u64,
    /// SHA-256 of the partition, hexadecimal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// The best label and its score; absent for a rejected sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
    /// `None` where the request named the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
    /// `PRESENT` or `PROXIED`.
    pub image: String,
    pub text: String,
}

/// How the task was decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Routing {
    /// The likeliest task, of a rejected sample too.
    pub task: String,
    pub cosine: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typicality: Option<f32>,
    #[serde(default)]
    pub rejected: bool,
    #[serde(default)]
    pub early: bool,
}

/// An image, a text, or both, as they arrived.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Payload {
    /// The encoded file, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub image: Option<bytes::Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// What a caller reported to be true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// RFC 3339, UTC.
    pub time: String,
    pub request_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub true_task: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub true_labels: Vec<String>,
}

impl Answer {
    /// What a response says. `digest`: SHA-256 of the partition that answered.
    pub fn of(response: &pb::ClassifyResponse, digest: String) -> Self {
        let best = response.scores.first();
        let modalities = response.modalities.unwrap_or_default();
        let modality = |value: pb::Modality| value.as_str_name().to_owned();
        Self {
            task: response.task.clone(),
            version: response.partition_version,
            digest,
            label: best.map(|best| best.label.clone()),
            score: best.map(|best| best.score),
            routing: response.routing.as_ref().map(|routing| Routing {
                task: routing.task.clone(),
                cosine: routing.cosine,
                margin: routing.margin,
                probability: routing.probability,
                typicality: routing.typicality,
                rejected: routing.rejected,
                early: routing.early,
            }),
            image: modality(modalities.image()),
            text: modality(modalities.text()),
        }
    }

    /// Whether the sample was told that it belongs to no resident task.
    pub fn is_rejected(&self) -> bool {
        self.routing.as_ref().is_some_and(|routing| routing.rejected)
    }
}

fn to_base64<S: Serializer>(image: &Option<bytes::Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
    image.as_ref().map(|image| STANDARD.encode(image)).serialize(serializer)
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bytes::Bytes>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| STANDARD.decode(text).map(Into::into).map_err(serde::de::Error::custom)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written_and_one_without_payload_names_none() {
        let answer = Answer { task: "food".into(), version: 3, label: Some("pizza".into()), score: Some(0.5), ..Answer::default() };
        let payload = Payload { image: Some(vec![0, 255, 7].into()), text: Some("eine Pizza".into()) };
        let decision = Decision {
            time: "2026-01-01T00:00:00Z".into(),
            request_id: "a".into(),
            model: "m".into(),
            given_task: String::new(),
            reject: Some(0.05),
            answer,
            payload: Some(payload),
        };
        for record in [Record::Decision(Box::new(decision.clone())), Record::Decision(Box::new(Decision { payload: None, ..decision }))] {
            let line = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
            let Record::Decision(decision) = &record else { unreachable!() };
            assert_eq!(line.contains("Pizza"), decision.payload.is_some());
        }
    }
}
