//! The Open Inference Protocol over HTTP, with its extension for binary tensors: each request is the protocol's
//! call over gRPC.
use std::collections::{HashMap, VecDeque};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use prost::Message;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tonic::Status;

use super::call::Grpc;
use super::connect::{http_status, with_headers};
use super::{Arrived, json};
use crate::serve::open_inference::tensors::{elements, raw_contents_of};
use crate::serve::status::invalid;
use delo_proto::inference as v2;
use v2::infer_parameter::ParameterChoice;

/// Bytes of the JSON before binary tensors, in requests and answers.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

type Answer = Response<Full<Bytes>>;
type Failed = (Status, HeaderMap);

/// The answer to a request whose path begins with `/v2`.
pub async fn answer(grpc: &Grpc, request: Arrived) -> Answer {
    match route(grpc, &request).await {
        Ok(answer) => answer,
        Err((status, headers)) => with_headers(error(&status), headers),
    }
}

/// An error as the protocol has it: `{"error"}`.
pub fn error(status: &Status) -> Answer {
    let mut answer = json(http_status(status.code()), json!({"error": status.message()}).to_string());
    if let Some(delay) = super::connect::retry_after(status) {
        answer.headers_mut().insert(header::RETRY_AFTER, delay);
    }
    answer
}

/// The method whose role a request needs before its body is read; those without a body decide for themselves.
pub fn method(path: &str, method: &Method) -> &'static str {
    match path.ends_with("/infer") {
        true => "/inference.GRPCInferenceService/ModelInfer",
        false if method == Method::POST => "/inference.GRPCInferenceService/RepositoryIndex",
        false => "/inference.GRPCInferenceService/ServerLive",
    }
}

fn failed(status: Status) -> Failed {
    (status, HeaderMap::new())
}

async fn route(grpc: &Grpc, request: &Arrived) -> Result<Answer, Failed> {
    let path: Vec<String> = request.parts.uri.path().split('/').filter(|part| !part.is_empty()).map(decoded).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let (model, version, rest) = match path.as_slice() {
        ["v2", "models", model, "versions", version, rest @ ..] => (*model, *version, rest),
        ["v2", "models", model, rest @ ..] => (*model, "", rest),
        _ => ("", "", path.as_slice()),
    };
    let (name, version) = (model.to_owned(), version.to_owned());
    let is_get = matches!(request.parts.method, Method::GET | Method::HEAD);
    match rest {
        ["v2"] if is_get => get(grpc, request, "ServerMetadata", &v2::ServerMetadataRequest {}, metadata).await,
        ["v2", "health", "live"] if is_get => {
            get(grpc, request, "ServerLive", &v2::ServerLiveRequest {}, |r: v2::ServerLiveResponse| ready(r.live)).await
        }
        ["v2", "health", "ready"] if is_get => {
            get(grpc, request, "ServerReady", &v2::ServerReadyRequest {}, |r: v2::ServerReadyResponse| ready(r.ready)).await
        }
        ["ready"] if is_get => {
            get(grpc, request, "ModelReady", &v2::ModelReadyRequest { name, version }, |r: v2::ModelReadyResponse| ready(r.ready)).await
        }
        [] if is_get && !name.is_empty() => {
            get(grpc, request, "ModelMetadata", &v2::ModelMetadataRequest { name, version }, model_metadata).await
        }
        ["config"] if is_get => get(grpc, request, "ModelConfig", &v2::ModelConfigRequest { name, version }, config).await,
        ["infer"] => infer(grpc, request, name, version).await,
        ["v2", "repository", "index"] => {
            check_post(request)?;
            get(grpc, request, "RepositoryIndex", &v2::RepositoryIndexRequest::default(), index).await
        }
        ["v2", "repository", "models", model, "load"] => {
            check_post(request)?;
            let load = v2::RepositoryModelLoadRequest { model_name: (*model).to_owned(), ..Default::default() };
            get(grpc, request, "RepositoryModelLoad", &load, |_: v2::RepositoryModelLoadResponse| ready(true)).await
        }
        ["v2", "repository", "models", model, "unload"] => {
            check_post(request)?;
            let unload = v2::RepositoryModelUnloadRequest { model_name: (*model).to_owned(), ..Default::default() };
            get(grpc, request, "RepositoryModelUnload", &unload, |_: v2::RepositoryModelUnloadResponse| ready(true)).await
        }
        _ => Err(failed(Status::not_found("the protocol has no such path, or not with this method"))),
    }
}

/// A part of a path without percent-encoding.
fn decoded(part: &str) -> String {
    percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned()
}

async fn get<T: Message + Default>(
    grpc: &Grpc,
    request: &Arrived,
    method: &str,
    message: &impl Message,
    show: impl FnOnce(T) -> Answer,
) -> Result<Answer, Failed> {
    let (result, headers) = grpc.exchange(&format!("/inference.GRPCInferenceService/{method}"), message, request).await;
    match result {
        Ok(answer) => Ok(with_headers(show(answer), headers)),
        Err(status) => Err((status, headers)),
    }
}

fn ready(is_ready: bool) -> Answer {
    json(if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, "")
}

fn ok(body: &Value) -> Answer {
    json(StatusCode::OK, body.to_string())
}

fn metadata(server: v2::ServerMetadataResponse) -> Answer {
    ok(&json!({"name": server.name, "version": server.version, "extensions": server.extensions}))
}

fn model_metadata(model: v2::ModelMetadataResponse) -> Answer {
    let tensor = |tensor: v2::model_metadata_response::TensorMetadata| json!({"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape});
    let tensors = |tensors: Vec<_>| tensors.into_iter().map(tensor).collect::<Vec<_>>();
    ok(&json!({
        "name": model.name, "versions": model.versions, "platform": model.platform,
        "inputs": tensors(model.inputs), "outputs": tensors(model.outputs),
    }))
}

fn config(config: v2::ModelConfigResponse) -> Answer {
    let config = config.config.unwrap_or_default();
    let input = |tensor: &v2::ModelInput| json!({"name": tensor.name, "data_type": tensor.data_type().as_str_name(), "dims": tensor.dims, "optional": tensor.optional});
    let output =
        |tensor: &v2::ModelOutput| json!({"name": tensor.name, "data_type": tensor.data_type().as_str_name(), "dims": tensor.dims});
    ok(&json!({
        "name": config.name, "platform": config.platform, "backend": config.backend, "max_batch_size": config.max_batch_size,
        "input": config.input.iter().map(input).collect::<Vec<_>>(), "output": config.output.iter().map(output).collect::<Vec<_>>(),
    }))
}

fn index(index: v2::RepositoryIndexResponse) -> Answer {
    let model = |model: &v2::repository_index_response::ModelIndex| json!({"name": model.name, "version": model.version, "state": model.state, "reason": model.reason});
    ok(&index.models.iter().map(model).collect::<Vec<_>>().into())
}

/// Clients of the protocol send no content type with some requests, so that none is asked for.
fn check_post(request: &Arrived) -> Result<(), Failed> {
    if request.parts.method == Method::POST { Ok(()) } else { Err(failed(Status::unimplemented("POST to this path"))) }
}

/// A request to infer, as JSON has it. What the protocol knows and the models don't need is taken and ignored.
#[derive(Debug, Deserialize)]
struct InferRequest {
    #[serde(default)]
    id: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<Output>,
}

#[derive(Debug, Deserialize)]
struct Input {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

async fn infer(grpc: &Grpc, request: &Arrived, model_name: String, model_version: String) -> Result<Answer, Failed> {
    check_post(request)?;
    let (asked, binary) = split(request).map_err(failed)?;
    let parsed: InferRequest = serde_json::from_slice(&asked).map_err(|error| failed(invalid("", error.to_string())))?;
    let all_binary = parsed.parameters.get("binary_data_output") == Some(&Value::Bool(true));
    let wants_binary: HashMap<String, bool> =
        parsed.outputs.iter().filter_map(|output| Some((output.name.clone(), output.parameters.get("binary_data")?.as_bool()?))).collect();
    let message = message(parsed, binary, model_name, model_version).map_err(failed)?;
    let (result, headers) = grpc.exchange("/inference.GRPCInferenceService/ModelInfer", &message, request).await;
    match result {
        Ok(answer) => {
            let is_binary = |name: &str| wants_binary.get(name).copied().unwrap_or(all_binary);
            Ok(with_headers(shown(answer, is_binary), headers))
        }
        Err(status) => Err((status, headers)),
    }
}

/// The JSON of a request, and the binary tensors behind it.
fn split(request: &Arrived) -> Result<(Bytes, Bytes), Status> {
    let Some(length) = request.parts.headers.get(JSON_LENGTH) else { return Ok((request.body.clone(), Bytes::new())) };
    let length = length.to_str().ok().and_then(|text| text.parse().ok()).filter(|length| *length <= request.body.len());
    let length = length.ok_or_else(|| invalid(JSON_LENGTH.as_str(), "it is no number of bytes that the body has"))?;
    let mut asked = request.body.clone();
    let binary = asked.split_off(length);
    Ok((asked, binary))
}

fn message(parsed: InferRequest, mut binary: Bytes, model_name: String, model_version: String) -> Result<v2::ModelInferRequest, Status> {
    let mut inputs = Vec::new();
    for Input { name, shape, datatype, parameters, data } in parsed.inputs {
        let field = |what: &str| format!("inputs.{name}.{what}");
        let contents = match parameters.get("binary_data_size") {
            Some(size) => {
                let size = size.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| *size <= binary.len());
                let size = size.ok_or_else(|| invalid(field("parameters.binary_data_size"), "the body does not hold so many bytes"))?;
                elements(binary.split_to(size)).ok_or_else(|| {
                    invalid(field("data"), "each element of BYTES follows its length, four bytes, the least significant one first")
                })?
            }
            // JSON holds no bytes: images are in base64, and texts where they say so.
            None => {
                let base64 = name == "image" || parameters.get("content_type").and_then(Value::as_str) == Some("base64");
                texts(&data, base64).map_err(|message| invalid(field("data"), message))?
            }
        };
        let contents = Some(v2::InferTensorContents { bytes_contents: contents, ..Default::default() });
        inputs.push(v2::model_infer_request::InferInputTensor { name, datatype, shape, parameters: HashMap::new(), contents });
    }
    if !binary.is_empty() {
        return Err(invalid("inputs", "the body has more bytes than the inputs say (parameters.binary_data_size)"));
    }
    let outputs = parsed.outputs.into_iter().map(|mut output| {
        output.parameters.remove("binary_data");
        Ok(v2::model_infer_request::InferRequestedOutputTensor { name: output.name, parameters: infer_parameters(output.parameters)? })
    });
    Ok(v2::ModelInferRequest {
        model_name,
        model_version,
        id: parsed.id,
        parameters: infer_parameters(parsed.parameters)?,
        inputs,
        outputs: outputs.collect::<Result<_, Status>>()?,
        raw_input_contents: Vec::new(),
    })
}

/// The elements of a tensor of BYTES, in lists of any depth.
fn texts(data: &Value, base64: bool) -> Result<Vec<Bytes>, &'static str> {
    let (mut left, mut texts) = (VecDeque::from([data]), Vec::new());
    while let Some(value) = left.pop_front() {
        match value {
            Value::Array(values) => values.iter().rev().for_each(|value| left.push_front(value)),
            Value::String(text) if base64 => texts.push(STANDARD.decode(text).map_err(|_| "give each element in base64")?.into()),
            Value::String(text) => texts.push(Bytes::copy_from_slice(text.as_bytes())),
            // A modality that the sample lacks.
            Value::Null => texts.push(Bytes::new()),
            _ => return Err("give texts, in lists"),
        }
    }
    Ok(texts)
}

fn infer_parameters(parameters: Map<String, Value>) -> Result<HashMap<String, v2::InferParameter>, Status> {
    let parameter = |(name, value): (String, Value)| {
        let choice = match &value {
            Value::Bool(on) => Some(ParameterChoice::BoolParam(*on)),
            Value::Number(number) => {
                number.as_i64().map(ParameterChoice::Int64Param).or_else(|| number.as_f64().map(ParameterChoice::DoubleParam))
            }
            Value::String(text) => Some(ParameterChoice::StringParam(text.clone())),
            _ => None,
        };
        let choice = choice.ok_or_else(|| invalid(format!("parameters.{name}"), "give true or false, a number or a text"))?;
        Ok((name, v2::InferParameter { parameter_choice: Some(choice) }))
    };
    parameters.into_iter().map(parameter).collect()
}

/// The answer in JSON, with the tensors that are wanted so as bytes behind it.
fn shown(answer: v2::ModelInferResponse, is_binary: impl Fn(&str) -> bool) -> Answer {
    let (mut binary, mut outputs) = (BytesMut::new(), Vec::new());
    for output in answer.outputs {
        let contents = output.contents.unwrap_or_default();
        let mut shown = json!({"name": output.name, "datatype": output.datatype, "shape": output.shape});
        if is_binary(&output.name) {
            let bytes = raw_contents_of(contents);
            shown["parameters"] = json!({"binary_data_size": bytes.len()});
            binary.extend_from_slice(&bytes);
        } else {
            shown["data"] = data(contents);
        }
        outputs.push(shown);
    }
    let mut body = json!({"model_name": answer.model_name, "model_version": answer.model_version, "outputs": outputs});
    if !answer.id.is_empty() {
        body["id"] = answer.id.into();
    }
    let body = body.to_string();
    if binary.is_empty() {
        return json(StatusCode::OK, body);
    }
    let length = HeaderValue::from(body.len());
    let mut answer = json(StatusCode::OK, [body.as_bytes(), &binary].concat());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    answer.headers_mut().insert(JSON_LENGTH, length);
    answer
}

/// The values of a tensor; NaN becomes null.
fn data(contents: v2::InferTensorContents) -> Value {
    let v2::InferTensorContents { bool_contents, uint64_contents, fp32_contents, bytes_contents, .. } = contents;
    let texts = bytes_contents.iter().map(|text| String::from_utf8_lossy(text).into_owned().into());
    let floats = fp32_contents.into_iter().map(Value::from);
    texts.chain(floats).chain(bool_contents.into_iter().map(Value::from)).chain(uint64_contents.into_iter().map(Value::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_from_lists_of_any_depth_and_null_is_a_missing_one() {
        let data = json!([["a"], ["b", [null]]]);
        assert_eq!(texts(&data, false).unwrap(), ["a", "b", ""].map(Bytes::from));
        assert_eq!(texts(&json!(["AQI="]), true).unwrap(), [Bytes::from_static(&[1, 2])]);
        assert!(texts(&json!([1]), false).is_err() && texts(&json!(["?"]), true).is_err());
    }

    #[test]
    fn tensors_behind_the_json_are_those_of_the_inputs_that_say_so() {
        let input = |size: u64| json!({"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}});
        let parsed = |size| serde_json::from_value::<InferRequest>(json!({"inputs": [input(size)]})).unwrap();
        let binary = Bytes::from_static(&[2, 0, 0, 0, b'h', b'i']);
        let read = |size| message(parsed(size), binary.clone(), "delo".to_owned(), String::new());
        assert_eq!(read(6).unwrap().inputs[0].contents.as_ref().unwrap().bytes_contents, [Bytes::from_static(b"hi")]);
        assert!(read(7).is_err() && read(5).is_err() && read(0).is_err());
    }
}
