//! The header of a safetensors file as JSON, so that a mutation changes a field and leaves a file.
use serde_json::{Map, Value};

/// The key of the metadata in a header, and the entries of it that are touched here.
const METADATA: &str = "__metadata__";
const PARTITION: &str = "partition";

/// Tensors are laid out again up to this size.
const MAX_TENSOR: u64 = 64 << 10;

/// A file in its two parts. What the partition entry holds, JSON in a string, is unfolded.
#[derive(Clone, Debug)]
pub struct File {
    header: Map<String, Value>,
    tensors: Vec<u8>,
}

impl File {
    /// A file whose header is a JSON object, whatever its length field says.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.get(8..)?;
        let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<Map<String, Value>>();
        let mut header = values.next()?.ok()?;
        let mut tensors = &rest[values.byte_offset()..];
        // The padding that aligns the tensors.
        while let [b' ', more @ ..] = tensors {
            tensors = more;
        }
        if let Some(entry) = header.get_mut(METADATA).and_then(|m| m.get_mut(PARTITION))
            && let Some(unfolded) = entry.as_str().and_then(|text| serde_json::from_str(text).ok())
        {
            *entry = unfolded;
        }
        Some(Self { header, tensors: tensors.to_vec() })
    }

    /// The file, its length field right and the tensors aligned.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut header = self.header.clone();
        if let Some(entry) = header.get_mut(METADATA).and_then(|m| m.get_mut(PARTITION))
            && !entry.is_string()
        {
            *entry = Value::String(entry.to_string());
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        [&(text.len() as u64).to_le_bytes(), text.as_slice(), &self.tensors].concat()
    }

    /// Gives every tensor the bytes that its type and shape ask for, one after another, those of the file in turn.
    pub fn fit(&mut self) {
        let mut end = 0;
        for (name, entry) in &mut self.header {
            if name == METADATA {
                continue;
            }
            let Some(size) = size(entry).filter(|&size| size <= MAX_TENSOR && end + size <= 4 * MAX_TENSOR) else { continue };
            entry["data_offsets"] = serde_json::json!([end, end + size]);
            end += size;
        }
        let given = std::mem::take(&mut self.tensors);
        let given = if given.is_empty() { vec![0] } else { given };
        self.tensors = given.iter().copied().cycle().take(end as usize).collect();
    }

    /// States this checksum.
    pub fn set_checksum(&mut self, checksum: &str) {
        if let Some(Value::Object(metadata)) = self.header.get_mut(METADATA) {
            metadata.insert("checksum".to_owned(), checksum.into());
        }
    }

    /// Changes one value of the header, chosen and changed by the bits of `seed`.
    pub fn mutate(&mut self, seed: u32) {
        let mut header = Value::Object(std::mem::take(&mut self.header));
        let mut left = seed as usize % count(&header).max(1);
        change(&mut header, &mut left, seed / 251);
        if let Value::Object(changed) = header {
            self.header = changed;
        }
    }
}

/// Bytes of a tensor by its entry.
fn size(entry: &Value) -> Option<u64> {
    let width = match entry.get("dtype")?.as_str()? {
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" => 1,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "F32" | "I32" | "U32" => 4,
        _ => 8,
    };
    entry.get("shape")?.as_array()?.iter().try_fold(width, |size: u64, side| size.checked_mul(side.as_u64()?))
}

/// How many values there are inside.
fn count(value: &Value) -> usize {
    match value {
        Value::Object(entries) => entries.values().map(|v| 1 + count(v)).sum(),
        Value::Array(values) => values.iter().map(|v| 1 + count(v)).sum(),
        _ => 0,
    }
}

/// Changes the value that is `left` steps on; whether it was found.
fn change(value: &mut Value, left: &mut usize, choice: u32) -> bool {
    let found = |left: &mut usize| {
        let found = *left == 0;
        *left = left.wrapping_sub(1);
        found
    };
    match value {
        Value::Object(entries) => {
            let keys: Vec<String> = entries.keys().cloned().collect();
            for key in keys {
                if found(left) {
                    match choice % 8 {
                        0 => drop(entries.remove(&key)),
                        1 => drop(entries.remove(&key).and_then(|v| entries.insert(format!("{key}{choice}"), v))),
                        _ => entries[&key] = other(&entries[&key], choice / 8),
                    }
                    return true;
                }
                if change(&mut entries[&key], left, choice) {
                    return true;
                }
            }
        }
        Value::Array(values) => {
            for i in 0..values.len() {
                if found(left) {
                    match choice % 8 {
                        0 => drop(values.remove(i)),
                        1 => values.insert(i, values[i].clone()),
                        _ => values[i] = other(&values[i], choice / 8),
                    }
                    return true;
                }
                if change(&mut values[i], left, choice) {
                    return true;
                }
            }
        }
        _ => {}
    }
    false
}

/// Another value in its place.
fn other(value: &Value, choice: u32) -> Value {
    const NUMBERS: [u64; 14] = [0, 1, 2, 3, 4, 8, 255, 256, 4096, 4097, 65_536, u32::MAX as u64, i64::MAX as u64, u64::MAX];
    const WORDS: [&str; 14] = [
        "",
        "a",
        "\0",
        "rank_one",
        "slotted",
        "plain",
        "whitened",
        "mean",
        "ema",
        "pooled",
        "summary",
        "parts@1",
        "mean@2",
        "cls@18446744073709551615",
    ];
    let pick = choice as usize / 4;
    match (value, choice % 4) {
        (Value::String(text), 0) => Value::String(text.repeat(pick % 300)),
        (Value::Number(n), 0) => n.as_u64().map_or(Value::from(-1.5), |n| Value::from(n.wrapping_add(1))),
        (Value::Number(n), 1) => n.as_u64().map_or(Value::from(1e308), |n| Value::from(n.wrapping_sub(1))),
        (Value::String(_), _) => WORDS[pick % WORDS.len()].into(),
        (Value::Number(_), _) => NUMBERS[pick % NUMBERS.len()].into(),
        (Value::Bool(b), _) => Value::Bool(!b),
        (_, 0) => Value::Null,
        (_, 1) => serde_json::json!([]),
        (_, 2) => serde_json::json!({}),
        _ => Value::from(NUMBERS[pick % NUMBERS.len()]),
    }
}
