//! The requests of a scenario as a file for other load generators.
use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::pb::{ClassifyRequest, Priority};
use crate::plan::Plan;

/// Writes one request for each item of the data set as a JSON list of `delo.v1.ClassifyRequest`, which
/// `ghz --data-file` reads and repeats. The requests are those of the time after all phases.
///
/// # Errors
/// A file that can't be written.
pub fn write(plan: &Plan, path: &Path) -> io::Result<()> {
    let requests = (0..plan.samples() as u64).map(|n| json(&plan.message(&plan.request(n, Duration::MAX))));
    std::fs::write(path, Value::Array(requests.collect()).to_string())
}

/// A request in protobuf's JSON mapping.
fn json(request: &ClassifyRequest) -> Value {
    let mut fields = serde_json::Map::new();
    if let Some(image) = &request.image {
        fields.insert("image".into(), STANDARD.encode(image).into());
    }
    if let Some(text) = &request.text {
        fields.insert("text".into(), json!(text));
    }
    if request.priority() != Priority::Unspecified {
        fields.insert("priority".into(), request.priority().as_str_name().into());
    }
    fields.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::Sample;

    #[test]
    fn every_item_is_written_in_protobufs_json_mapping() {
        let text = "name = 'x'\ndata = 'd'\nrate = 1\nduration_seconds = 9\nmix = {both = 1}\n[[client]]\nname = 'b'\nshare = 1\npriority = 'bulk'";
        let sample = Sample { image: vec![0xff, 0xd8, 0].into(), text: "a \"cat\"".into(), task: "t".into(), labels: Vec::new() };
        let plan = Plan::new(&toml::from_str(text).unwrap(), vec![sample; 3]);
        let file = tempfile::NamedTempFile::new().unwrap();
        write(&plan, file.path()).unwrap();
        let written: Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
        let expected = json!({"image": "/9gA", "text": "a \"cat\"", "priority": "BULK"});
        assert_eq!(written, json!([expected, expected, expected]));
    }
}
