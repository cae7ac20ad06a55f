//! What the protocol's models take and give.
use super::MODEL;
use delo_proto::inference as v2;
use v2::DataType;
use v2::model_metadata_response::TensorMetadata;

/// Extensions of the protocol that are served. The first is of the repository's calls, the second of the outputs'
/// parameter.
const EXTENSIONS: [&str; 4] = ["model_repository", "classification", "model_configuration", "binary_tensor_data"];

/// A tensor: name, type and what one sample has of it, -1 for any number.
type Tensor = (&'static str, DataType, i64);

pub const INPUTS: [Tensor; 2] = [("image", DataType::TypeString, 1), ("text", DataType::TypeString, 1)];

/// One value a sample, or one for each of the best labels or tasks.
pub const OUTPUTS: [Tensor; 13] = [
    ("label", DataType::TypeString, -1),
    ("score", DataType::TypeFp32, -1),
    ("task", DataType::TypeString, 1),
    ("task_probability", DataType::TypeFp32, 1),
    ("task_cosine", DataType::TypeFp32, 1),
    ("task_margin", DataType::TypeFp32, 1),
    ("typicality", DataType::TypeFp32, 1),
    ("rejected", DataType::TypeBool, 1),
    ("image_proxied", DataType::TypeBool, 1),
    ("text_proxied", DataType::TypeBool, 1),
    ("partition_version", DataType::TypeUint64, 1),
    ("request_id", DataType::TypeString, 1),
    ("response", DataType::TypeString, 1),
];

pub fn server() -> v2::ServerMetadataResponse {
    v2::ServerMetadataResponse {
        name: MODEL.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.map(str::to_owned).into(),
    }
}

pub fn model(name: String, versions: Vec<String>) -> v2::ModelMetadataResponse {
    let tensor = |&(name, kind, values): &Tensor| TensorMetadata {
        name: name.to_owned(),
        datatype: datatype(kind).to_owned(),
        shape: vec![-1, values],
    };
    v2::ModelMetadataResponse {
        name,
        versions,
        platform: MODEL.to_owned(),
        inputs: INPUTS.iter().map(tensor).collect(),
        outputs: OUTPUTS.iter().map(tensor).collect(),
    }
}

/// A model's configuration; a request holds at most so many samples.
pub fn config(name: String, most: usize) -> v2::ModelConfig {
    let input = |&(name, kind, values): &Tensor| v2::ModelInput {
        name: name.to_owned(),
        data_type: kind.into(),
        dims: vec![values],
        optional: true,
    };
    let output = |&(name, kind, values): &Tensor| v2::ModelOutput { name: name.to_owned(), data_type: kind.into(), dims: vec![values] };
    v2::ModelConfig {
        name,
        platform: MODEL.to_owned(),
        max_batch_size: i32::try_from(most).unwrap_or(i32::MAX),
        input: INPUTS.iter().map(input).collect(),
        output: OUTPUTS.iter().map(output).collect(),
        backend: MODEL.to_owned(),
    }
}

/// The type's name in a tensor.
pub fn datatype(kind: DataType) -> &'static str {
    match kind {
        DataType::TypeBool => "BOOL",
        DataType::TypeUint64 => "UINT64",
        DataType::TypeFp32 => "FP32",
        DataType::TypeString => "BYTES",
        DataType::TypeInvalid => "INVALID",
    }
}
