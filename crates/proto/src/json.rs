//! Messages as JSON, by protobuf's own mapping: names in lowerCamelCase, bytes in base64, 64-bit numbers as texts,
//! enums by name. A field that has its default is left out.
use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions};

static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| DescriptorPool::decode(crate::DESCRIPTORS).ok());

/// Why JSON is no message, or a message no JSON.
#[derive(Debug)]
pub struct NotJson(pub String);

impl std::fmt::Display for NotJson {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotJson {}

/// A method with one message and one answer, by its path `/package.Service/Method`. `None`: there is none, or it
/// streams.
pub fn unary(path: &str) -> Option<MethodDescriptor> {
    let (service, name) = path.strip_prefix('/')?.split_once('/')?;
    let service = POOL.as_ref()?.get_service_by_name(service)?;
    service.methods().find(|method| method.name() == name && !method.is_client_streaming() && !method.is_server_streaming())
}

/// The encoded message that JSON describes. A field that the message does not have is an error.
///
/// # Errors
/// [`NotJson`] with the place of the error.
pub fn encode(message: MessageDescriptor, json: &[u8]) -> Result<Vec<u8>, NotJson> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let wrong = |error: serde_json::Error| NotJson(error.to_string());
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(message, &mut deserializer, &options).map_err(wrong)?;
    deserializer.end().map_err(wrong)?;
    Ok(prost::Message::encode_to_vec(&message))
}

/// The JSON of an encoded message.
///
/// # Errors
/// [`NotJson`]: the bytes are no such message.
pub fn decode(message: MessageDescriptor, bytes: &[u8]) -> Result<Vec<u8>, NotJson> {
    let message = DynamicMessage::decode(message, bytes).map_err(|error| NotJson(error.to_string()))?;
    let mut json = serde_json::Serializer::new(Vec::new());
    message.serialize_with_options(&mut json, &SerializeOptions::new()).map_err(|error| NotJson(error.to_string()))?;
    Ok(json.into_inner())
}

/// The JSON of a message of a type of this crate, by its full name: `delo.v1.ClassifyResponse` for example.
///
/// # Errors
/// [`NotJson`]: there is no type of this name.
pub fn of(name: &str, message: &impl prost::Message) -> Result<Vec<u8>, NotJson> {
    let descriptor = POOL.as_ref().and_then(|pool| pool.get_message_by_name(name));
    decode(descriptor.ok_or_else(|| NotJson(format!("no message is called {name}")))?, &message.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{ClassifyRequest, ClassifyResponse, Score};

    #[test]
    fn a_request_in_json_is_the_message_and_an_answer_comes_back_as_json() {
        let method = unary("/delo.v1.Classifier/Classify").unwrap();
        let json = br#"{"image": "AQID", "text": "a cat", "topK": 3, "priority": "BULK"}"#;
        let request = ClassifyRequest::decode(encode(method.input(), json).unwrap().as_slice()).unwrap();
        assert_eq!((request.image.as_deref(), request.text.as_deref(), request.top_k), (Some(&[1, 2, 3][..]), Some("a cat"), Some(3)));
        assert_eq!(request.priority(), crate::Priority::Bulk);
        let answer =
            ClassifyResponse { scores: vec![Score { label: "cat".into(), score: 0.5 }], partition_version: 7, ..Default::default() };
        let json: serde_json::Value = serde_json::from_slice(&of("delo.v1.ClassifyResponse", &answer).unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({"scores": [{"label": "cat", "score": 0.5}], "partitionVersion": "7"}));
    }

    #[test]
    fn what_is_no_message_is_told_with_its_place() {
        let input = || unary("/delo.v1.Classifier/Classify").unwrap().input();
        for (json, told) in
            [("{\"txt\": \"a\"}", "txt"), ("{\"text\": 7}", "line 1"), ("{} {}", "trailing"), ("", "EOF"), ("{\"image\": \"?\"}", "line 1")]
        {
            let error = encode(input(), json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(told), "{json}: {error}");
        }
        assert!(unary("/delo.v1.Classifier/ClassifyStream").is_none() && unary("/delo.v1.Classifier/No").is_none() && unary("x").is_none());
    }
}
