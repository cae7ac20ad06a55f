//! Tensors of a request and its answer, as samples and their answers.
use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use tonic::Status;

use super::MODEL;
use super::metadata::{OUTPUTS, datatype};
use crate::serve::reason::Reason;
use crate::serve::status::invalid;
use delo_proto as pb;
use delo_proto::inference as v2;
use v2::DataType;
use v2::infer_parameter::ParameterChoice;
use v2::model_infer_response::InferOutputTensor;

/// The outputs that a request wants.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    names: Vec<String>,
    /// The best labels as `score:index:label`, of the output of this name.
    classified: Option<String>,
    /// The contents in the answer's messages, and not in raw_output_contents.
    typed: bool,
}

impl Wanted {
    /// # Errors
    /// INVALID_ARGUMENT: an output that the model does not have.
    pub fn of(request: &v2::ModelInferRequest) -> Result<Self, Status> {
        let known = |name: &str| OUTPUTS.iter().any(|(known, ..)| *known == name);
        let mut wanted = Self { names: Vec::new(), classified: None, typed: request.raw_input_contents.is_empty() };
        for output in &request.outputs {
            if !known(&output.name) {
                return Err(wrong("outputs.name", "the model has no output of this name: ModelMetadata lists them"));
            }
            if output.parameters.contains_key("classification") {
                wanted.classified = Some(output.name.clone());
            }
            wanted.names.push(output.name.clone());
        }
        if wanted.names.is_empty() {
            let usual = OUTPUTS.iter().map(|(name, ..)| *name).filter(|name| *name != "response");
            wanted.names = usual.map(str::to_owned).collect();
        }
        Ok(wanted)
    }
}

fn wrong(field: impl Into<String>, message: impl Into<String>) -> Status {
    Reason::InvalidInput.refuse(&invalid(field, message))
}

/// The samples of a request, in their order.
///
/// # Errors
/// INVALID_ARGUMENT: tensors or parameters that make no samples.
pub fn samples(request: &v2::ModelInferRequest) -> Result<Vec<pb::ClassifyRequest>, Status> {
    let mut tensors: HashMap<&str, Vec<Bytes>> = HashMap::new();
    if !request.raw_input_contents.is_empty() && request.raw_input_contents.len() != request.inputs.len() {
        return Err(wrong("raw_input_contents", "there must be one for each of the inputs, or none at all"));
    }
    for (i, input) in request.inputs.iter().enumerate() {
        if !matches!(input.name.as_str(), "image" | "text") {
            return Err(wrong("inputs.name", "the model takes the inputs image and text"));
        }
        if input.datatype != "BYTES" {
            return Err(wrong(format!("inputs.{}.datatype", input.name), "give BYTES: encoded images, and texts in UTF-8"));
        }
        let elements = match request.raw_input_contents.get(i) {
            Some(raw) => elements(raw.clone()).ok_or_else(|| {
                wrong("raw_input_contents", "each element of BYTES follows its length, four bytes, the least significant one first")
            })?,
            None => input.contents.as_ref().map(|contents| contents.bytes_contents.clone()).unwrap_or_default(),
        };
        let field = || format!("inputs.{}.shape", input.name);
        let count = usize::try_from(match input.shape.as_slice() {
            [n] | [n, 1] => *n,
            _ => return Err(wrong(field(), "give [n] or [n, 1] for n samples")),
        });
        if count != Ok(elements.len()) {
            return Err(wrong(field(), format!("it does not say how many elements there are: {}", elements.len())));
        }
        if tensors.insert(&input.name, elements).is_some() {
            return Err(wrong("inputs.name", format!("{} is there twice", input.name)));
        }
    }
    let count = tensors.values().map(Vec::len).max().unwrap_or(0);
    if count == 0 || tensors.values().any(|elements| elements.len() != count) {
        return Err(wrong("inputs", "give image, text or both, for the same number of samples; an empty element is a missing one"));
    }
    let shared = shared(request)?;
    let mut element =
        |name: &str, i: usize| tensors.get_mut(name).map(|elements| std::mem::take(&mut elements[i])).filter(|e| !e.is_empty());
    (0..count)
        .map(|i| {
            let text = element("text", i).map(|text| String::from_utf8(text.into()));
            let text = text.transpose().map_err(|_| wrong("inputs.text", format!("the text of sample {i} is not UTF-8")))?;
            let request_id = match request.id.as_str() {
                "" => String::new(),
                id if count == 1 => id.to_owned(),
                id => format!("{id}/{i}"),
            };
            Ok(pb::ClassifyRequest { image: element("image", i), text, request_id, ..shared.clone() })
        })
        .collect()
}

/// What all samples of a request have in common.
fn shared(request: &v2::ModelInferRequest) -> Result<pb::ClassifyRequest, Status> {
    let mut shared = pb::ClassifyRequest::default();
    if request.model_name != MODEL {
        shared.task.clone_from(&request.model_name);
    }
    let classified = request.outputs.iter().find_map(|output| output.parameters.get("classification"));
    if let Some(most) = classified.map(|value| whole(value, "outputs.parameters.classification")).transpose()? {
        shared.top_k = Some(most);
    }
    for (name, value) in &request.parameters {
        let field = format!("parameters.{name}");
        match name.as_str() {
            "top_k" => shared.top_k = Some(whole(value, &field)?),
            "max_candidates" => shared.max_candidates = Some(whole(value, &field)?),
            "priority" => shared.priority = i32::try_from(whole(value, &field)?).unwrap_or_default(),
            "reject" => shared.reject = Some(number(value).ok_or_else(|| wrong(&field, "give a number from 0 to 1"))?),
            "explain" | "timings" => {
                let Some(ParameterChoice::BoolParam(on)) = value.parameter_choice else { return Err(wrong(field, "give true or false")) };
                *(if name == "explain" { &mut shared.explain } else { &mut shared.timings }) = on;
            }
            "task" => {
                let Some(ParameterChoice::StringParam(task)) = &value.parameter_choice else { return Err(wrong(field, "give a text")) };
                shared.task.clone_from(task);
            }
            // Of the protocol over HTTP, and of other servers: they don't change what is answered.
            "binary_data_output" | "timeout" | "sequence_id" | "sequence_start" | "sequence_end" => {}
            _ => {
                let known = "top_k, task, explain, reject, max_candidates, timings and priority";
                return Err(wrong(field, format!("the model has no parameter of this name; it has {known}")));
            }
        }
    }
    Ok(shared)
}

fn whole(value: &v2::InferParameter, field: &str) -> Result<u32, Status> {
    let number = match value.parameter_choice {
        Some(ParameterChoice::Int64Param(n)) => u32::try_from(n).ok(),
        Some(ParameterChoice::Uint64Param(n)) => u32::try_from(n).ok(),
        _ => None,
    };
    number.ok_or_else(|| wrong(field, "give a whole number from 0"))
}

fn number(value: &v2::InferParameter) -> Option<f32> {
    match value.parameter_choice {
        Some(ParameterChoice::DoubleParam(x)) => Some(x as f32),
        Some(ParameterChoice::Int64Param(n)) => Some(n as f32),
        _ => None,
    }
}

/// The elements of a tensor of BYTES: each after its length.
pub fn elements(mut raw: Bytes) -> Option<Vec<Bytes>> {
    let mut elements = Vec::new();
    while !raw.is_empty() {
        let length = raw.split_to_checked(4)?;
        let length = u32::from_le_bytes(length.as_ref().try_into().ok()?);
        elements.push(raw.split_to_checked(usize::try_from(length).ok()?)?);
    }
    Some(elements)
}

trait SplitToChecked: Sized {
    fn split_to_checked(&mut self, at: usize) -> Option<Self>;
}

impl SplitToChecked for Bytes {
    /// The first `at` bytes, which leave; `None` where there are fewer.
    fn split_to_checked(&mut self, at: usize) -> Option<Self> {
        (at <= self.len()).then(|| self.split_to(at))
    }
}

/// One output's values, over all samples.
enum Values {
    Texts(Vec<Bytes>),
    Floats(Vec<f32>),
    Counts(Vec<u64>),
    Flags(Vec<bool>),
}

/// The answer to a request whose samples have these answers.
///
/// # Errors
/// INTERNAL: an answer that is no JSON.
pub fn response(
    request: v2::ModelInferRequest,
    answers: &[pb::ClassifyResponse],
    wanted: &Wanted,
) -> Result<v2::ModelInferResponse, Status> {
    let widest = answers.iter().map(|answer| answer.scores.len()).max().unwrap_or(0);
    let (mut outputs, mut raw) = (Vec::new(), Vec::new());
    for name in &wanted.names {
        let classified = wanted.classified.as_ref() == Some(name);
        let Some((_, kind, per_sample)) = OUTPUTS.iter().find(|(known, ..)| known == name) else { continue };
        let kind = if classified { DataType::TypeString } else { *kind };
        let values = if classified { classes(answers, widest) } else { values(name, answers, widest)? };
        let width = if *per_sample < 0 || classified { widest as i64 } else { *per_sample };
        let contents = if wanted.typed {
            Some(typed(values))
        } else {
            raw.push(raw_contents(&values));
            None
        };
        outputs.push(InferOutputTensor {
            name: name.clone(),
            datatype: datatype(kind).to_owned(),
            shape: vec![answers.len() as i64, width],
            parameters: HashMap::new(),
            contents,
        });
    }
    let model_version = if request.model_name == MODEL { "1".to_owned() } else { answers[0].partition_version.to_string() };
    Ok(v2::ModelInferResponse {
        model_name: request.model_name,
        model_version,
        id: request.id,
        parameters: HashMap::new(),
        outputs,
        raw_output_contents: raw,
    })
}

/// `score:index:label` of each sample's best labels, as Triton's classification extension writes them.
fn classes(answers: &[pb::ClassifyResponse], widest: usize) -> Values {
    let text = |(i, score): (usize, &pb::Score)| Bytes::from(format!("{}:{i}:{}", score.score, score.label));
    Values::Texts(answers.iter().flat_map(|answer| padded(answer.scores.iter().enumerate().map(text), widest)).collect())
}

/// The values of a sample, and empty ones up to the widest sample's.
fn padded<T: Default + Clone>(values: impl Iterator<Item = T>, widest: usize) -> impl Iterator<Item = T> {
    values.chain(std::iter::repeat(T::default())).take(widest)
}

/// NaN stands for what an answer does not have.
fn values(name: &str, answers: &[pb::ClassifyResponse], widest: usize) -> Result<Values, Status> {
    let routing = |of: fn(&pb::Routing) -> Option<f32>| {
        Values::Floats(answers.iter().map(|answer| answer.routing.as_ref().and_then(of).unwrap_or(f32::NAN)).collect())
    };
    let proxied = |of: fn(&pb::Modalities) -> pb::Modality| {
        Values::Flags(answers.iter().map(|answer| answer.modalities.as_ref().map(of) == Some(pb::Modality::Proxied)).collect())
    };
    let texts = |of: fn(&pb::ClassifyResponse) -> &str| {
        Values::Texts(answers.iter().map(|answer| Bytes::copy_from_slice(of(answer).as_bytes())).collect())
    };
    Ok(match name {
        "label" => {
            let labels = |answer: &pb::ClassifyResponse| {
                answer.scores.iter().map(|score| Bytes::copy_from_slice(score.label.as_bytes())).collect::<Vec<_>>()
            };
            Values::Texts(answers.iter().flat_map(|answer| padded(labels(answer).into_iter(), widest)).collect())
        }
        "score" => {
            Values::Floats(answers.iter().flat_map(|answer| padded(answer.scores.iter().map(|score| score.score), widest)).collect())
        }
        "task" => texts(|answer| &answer.task),
        "task_probability" => routing(|routing| routing.probability),
        "task_cosine" => routing(|routing| Some(routing.cosine)),
        "task_margin" => routing(|routing| routing.margin),
        "typicality" => routing(|routing| routing.typicality),
        "rejected" => Values::Flags(answers.iter().map(|answer| answer.routing.as_ref().is_some_and(|routing| routing.rejected)).collect()),
        "image_proxied" => proxied(pb::Modalities::image),
        "text_proxied" => proxied(pb::Modalities::text),
        "partition_version" => Values::Counts(answers.iter().map(|answer| answer.partition_version).collect()),
        "request_id" => texts(|answer| &answer.request_id),
        _ => {
            let json = |answer| pb::json::of("delo.v1.ClassifyResponse", answer).map(Bytes::from);
            let all: Result<Vec<Bytes>, _> = answers.iter().map(json).collect();
            Values::Texts(all.map_err(|error| Status::internal(error.to_string()))?)
        }
    })
}

fn typed(values: Values) -> v2::InferTensorContents {
    let mut contents = v2::InferTensorContents::default();
    match values {
        Values::Texts(texts) => contents.bytes_contents = texts,
        Values::Floats(floats) => contents.fp32_contents = floats,
        Values::Counts(counts) => contents.uint64_contents = counts,
        Values::Flags(flags) => contents.bool_contents = flags,
    }
    contents
}

/// The contents as raw_output_contents have them.
pub fn raw_contents_of(contents: v2::InferTensorContents) -> Bytes {
    let v2::InferTensorContents { bool_contents, uint64_contents, fp32_contents, bytes_contents, .. } = contents;
    let all = [Values::Texts(bytes_contents), Values::Floats(fp32_contents), Values::Counts(uint64_contents), Values::Flags(bool_contents)];
    all.iter().map(raw_contents).find(|raw| !raw.is_empty()).unwrap_or_default()
}

fn raw_contents(values: &Values) -> Bytes {
    let mut raw = BytesMut::new();
    match values {
        Values::Texts(texts) => texts.iter().for_each(|text| {
            raw.put_u32_le(u32::try_from(text.len()).unwrap_or(u32::MAX));
            raw.put_slice(text);
        }),
        Values::Floats(floats) => floats.iter().for_each(|x| raw.put_f32_le(*x)),
        Values::Counts(counts) => counts.iter().for_each(|n| raw.put_u64_le(*n)),
        Values::Flags(flags) => flags.iter().for_each(|flag| raw.put_u8((*flag).into())),
    }
    raw.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, shape: &[i64], contents: &[&str]) -> v2::model_infer_request::InferInputTensor {
        let bytes_contents = contents.iter().map(|text| Bytes::copy_from_slice(text.as_bytes())).collect();
        v2::model_infer_request::InferInputTensor {
            name: name.to_owned(),
            datatype: "BYTES".to_owned(),
            shape: shape.to_vec(),
            contents: Some(v2::InferTensorContents { bytes_contents, ..Default::default() }),
            ..Default::default()
        }
    }

    fn request(inputs: Vec<v2::model_infer_request::InferInputTensor>) -> v2::ModelInferRequest {
        v2::ModelInferRequest { model_name: MODEL.to_owned(), inputs, ..Default::default() }
    }

    #[test]
    fn empty_elements_are_missing_modalities_and_samples_are_numbered() {
        let mut both = request(vec![input("image", &[2, 1], &["png", ""]), input("text", &[2], &["", "a cat"])]);
        both.id = "mine".to_owned();
        let samples = samples(&both).unwrap();
        let shown: Vec<_> = samples.iter().map(|s| (s.image.as_deref(), s.text.as_deref(), s.request_id.as_str())).collect();
        assert_eq!(shown, [(Some(&b"png"[..]), None, "mine/0"), (None, Some("a cat"), "mine/1")]);
    }

    #[test]
    fn raw_contents_are_read_and_a_task_s_model_gives_the_task() {
        let mut raw = request(vec![input("text", &[2], &[])]);
        raw.model_name = "food".to_owned();
        raw.raw_input_contents = vec![raw_contents(&Values::Texts(vec!["soup".into(), "bread".into()]))];
        let samples = samples(&raw).unwrap();
        assert_eq!(
            samples.iter().map(|s| (s.text.as_deref(), s.task.as_str())).collect::<Vec<_>>(),
            [(Some("soup"), "food"), (Some("bread"), "food")]
        );
    }

    #[test]
    fn tensors_that_make_no_samples_are_refused_by_field() {
        let field = |request: &v2::ModelInferRequest| {
            use tonic_types::StatusExt;
            let status = samples(request).unwrap_err();
            status.get_details_bad_request().unwrap().field_violations[0].field.clone()
        };
        assert_eq!(field(&request(vec![])), "inputs");
        assert_eq!(field(&request(vec![input("sound", &[1], &["a"])])), "inputs.name");
        assert_eq!(field(&request(vec![input("text", &[2], &["a"])])), "inputs.text.shape");
        assert_eq!(field(&request(vec![input("text", &[-1], &["a"])])), "inputs.text.shape");
        assert_eq!(field(&request(vec![input("text", &[1, 1, 1], &["a"])])), "inputs.text.shape");
        assert_eq!(field(&request(vec![input("text", &[1], &["a"]), input("text", &[1], &["a"])])), "inputs.name");
        assert_eq!(field(&request(vec![input("text", &[1], &["a"]), input("image", &[2], &["a", "b"])])), "inputs");
        let mut floats = request(vec![input("text", &[1], &["a"])]);
        floats.inputs[0].datatype = "FP32".to_owned();
        assert_eq!(field(&floats), "inputs.text.datatype");
        for raw in [&[1, 0, 0][..], &[2, 0, 0, 0, 65], &[255, 255, 255, 255]] {
            let mut cut = request(vec![input("text", &[1], &[])]);
            cut.raw_input_contents = vec![Bytes::copy_from_slice(raw)];
            assert_eq!(field(&cut), "raw_input_contents");
        }
        let mut unknown = request(vec![input("text", &[1], &["a"])]);
        unknown.parameters.insert("temperature".to_owned(), v2::InferParameter::default());
        assert_eq!(field(&unknown), "parameters.temperature");
    }

    #[test]
    fn answers_of_unequal_width_are_padded_and_what_is_absent_is_nan() {
        let score = |label: &str, score| pb::Score { label: label.to_owned(), score };
        let answers = [
            pb::ClassifyResponse { scores: vec![score("cat", 0.75), score("dog", 0.25)], task: "animals".into(), ..Default::default() },
            pb::ClassifyResponse { scores: vec![score("soup", 1.0)], ..Default::default() },
        ];
        let mut asked = request(vec![input("text", &[2], &["a", "b"])]);
        let output = |name: &str| v2::model_infer_request::InferRequestedOutputTensor { name: name.to_owned(), ..Default::default() };
        asked.outputs = ["label", "score", "task_probability"].map(output).into();
        let answer = response(asked.clone(), &answers, &Wanted::of(&asked).unwrap()).unwrap();
        let shapes: Vec<_> = answer.outputs.iter().map(|o| (o.name.as_str(), o.datatype.as_str(), o.shape.as_slice())).collect();
        assert_eq!(shapes, [("label", "BYTES", &[2, 2][..]), ("score", "FP32", &[2, 2]), ("task_probability", "FP32", &[2, 1])]);
        let contents: Vec<_> = answer.outputs.iter().map(|o| o.contents.clone().unwrap()).collect();
        assert_eq!(contents[0].bytes_contents, ["cat", "dog", "soup", ""].map(Bytes::from));
        assert_eq!(contents[1].fp32_contents, [0.75, 0.25, 1.0, 0.0]);
        assert!(contents[2].fp32_contents.iter().all(|p| p.is_nan()));

        asked.outputs[0]
            .parameters
            .insert("classification".to_owned(), v2::InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(2)) });
        assert_eq!(shared(&asked).unwrap().top_k, Some(2));
        let answer = response(asked.clone(), &answers, &Wanted::of(&asked).unwrap()).unwrap();
        assert_eq!(
            answer.outputs[0].contents.as_ref().unwrap().bytes_contents,
            ["0.75:0:cat", "0.25:1:dog", "1:0:soup", ""].map(Bytes::from)
        );
    }
}
