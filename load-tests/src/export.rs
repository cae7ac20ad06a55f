//! A scenario's requests as a file for other generators.
use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::pb::{ClassifyRequest, Priority};
use crate::plan::Plan;

/// Writes one request for each item of the data set as a JSON list of `delo.v1.ClassifyRequest`: what `ghz --data-file` takes and repeats. Phases are not in it:
/// the requests are those of the time after them.
///
/// # Errors
/// A file that can't be written.
pub fn write(plan: &Plan, path: &Path) -> io::Result<()> {
    let requests = (0..plan.samples() as u64).map(|n| json(&plan.message(&plan.request(n, Duration::MAX))));
    std::fs::write(path, Value::Array(requests.collect()).to_string())
}

/// A request as protobuf's JSON mapping writes it.
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
    fn every_item_is_written_as_protobufs_json_has_it() {
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
