//! The list of items of a data set: one JSON array of objects. It is read item by item, so that no more than
//! the items themselves is held in memory.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Component, Path, PathBuf};

use serde::Deserializer;
use serde::de::{SeqAccess, Visitor};
use serde_json::Value;

use super::classes::ClassSet;
use super::dataset::{DatasetError, Item, Label, Split};
use super::names;

/// An item as the list has it: [`Item::task`] and [`Item::all_classes`] are not set, and [`Item::label`] is
/// over the list's class numbers.
pub(super) struct ListedItem {
    pub(super) task_id: u64,
    pub(super) item: Item,
}

/// The one file of `dir` that holds a JSON list, `labels.json` aside.
///
/// # Errors
/// [`DatasetError::NoList`], [`DatasetError::SeveralLists`], [`DatasetError::Unreadable`].
pub(super) fn find(dir: &Path) -> Result<PathBuf, DatasetError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable(dir))? {
        let path = entry.map_err(unreadable(dir))?.path();
        let json = path.extension().is_some_and(|e| e == "json") && path.file_name().is_some_and(|n| n != names::FILE);
        // A missing table or a log may lie beside the list: those are no arrays.
        if json && path.is_file() && holds_array(&path)? {
            paths.push(path);
        }
    }
    paths.sort();
    match <[_; 1]>::try_from(paths) {
        Ok([path]) => Ok(path),
        Err(paths) if paths.is_empty() => Err(DatasetError::NoList(dir.to_owned())),
        Err(paths) => {
            let names = paths.iter().map(|p| p.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect();
            Err(DatasetError::SeveralLists { dir: dir.to_owned(), names })
        }
    }
}

/// Whether the first character of a file that is not blank opens an array.
fn holds_array(path: &Path) -> Result<bool, DatasetError> {
    let mut reader = BufReader::new(File::open(path).map_err(unreadable(path))?);
    loop {
        let bytes = reader.fill_buf().map_err(unreadable(path))?;
        if bytes.is_empty() {
            return Ok(false);
        }
        if let Some(first) = bytes.iter().find(|b| !b.is_ascii_whitespace()) {
            return Ok(*first == b'[');
        }
        let blank = bytes.len();
        reader.consume(blank);
    }
}

/// The items of the list at `path`, in order. Errors name the list as `file`.
///
/// # Errors
/// [`DatasetError::Json`] where the file is no array; else [`DatasetError::Field`] of the first item that is
/// wrong.
pub(super) fn read(path: &Path, file: &str) -> Result<Vec<ListedItem>, DatasetError> {
    let not_json = |source: serde_json::Error| {
        let path = path.to_owned();
        if source.is_io() { DatasetError::Unreadable { path, source: source.into() } } else { DatasetError::Json { path, source } }
    };
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(File::open(path).map_err(unreadable(path))?));
    let items = json.deserialize_seq(ListVisitor { file }).map_err(not_json)?;
    json.end().map_err(not_json)?;
    items
}

fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> DatasetError {
    let path = path.to_owned();
    move |source| DatasetError::Unreadable { path, source }
}

/// Reads the array item by item. The first item that is wrong is the result, unless what follows it is no
/// JSON.
struct ListVisitor<'a> {
    file: &'a str,
}

impl<'de> Visitor<'de> for ListVisitor<'_> {
    type Value = Result<Vec<ListedItem>, DatasetError>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut items = Ok(Vec::new());
        while let Some(value) = array.next_element::<Value>()? {
            if let Ok(read) = &mut items {
                match listed_item(&value, read.len(), self.file) {
                    Ok(item) => read.push(item),
                    Err(error) => items = Err(error),
                }
            }
        }
        Ok(items)
    }
}

fn listed_item(value: &Value, index: usize, list: &str) -> Result<ListedItem, DatasetError> {
    let image = value.get("image").and_then(Value::as_str).map(|i| format!(" ({i})")).unwrap_or_default();
    let fail = |field, problem: String| DatasetError::Field { list: list.to_owned(), index, image: image.clone(), field, problem };
    let get = |field| value.get(field).ok_or_else(|| fail(field, "missing".to_owned()));

    let task_id = get("task_id")?;
    let task_id = task_id.as_u64().ok_or_else(|| fail("task_id", format!("expected a whole number, found {}", shorten(task_id))))?;
    let split = get("split")?;
    let split = split
        .as_str()
        .and_then(|name| name.parse::<Split>().ok())
        .ok_or_else(|| fail("split", format!("expected \"train\", \"val\" or \"test\", found {}", shorten(split))))?;
    let file = get("image")?;
    let file = file.as_str().ok_or_else(|| fail("image", format!("expected a file name under images/, found {}", shorten(file))))?;
    if file.is_empty() || !Path::new(file).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(fail("image", format!("expected a file name under images/, found {file:?}")));
    }
    let text = get("text")?;
    let text = joined_text(text).ok_or_else(|| fail("text", format!("expected a string or a list of strings, found {}", shorten(text))))?;
    let label = get("label")?;
    let label = listed_label(label)
        .ok_or_else(|| fail("label", format!("expected a class number or a list of 0 and 1, found {}", shorten(label))))?;
    let group = match value.get("group") {
        None | Some(Value::Null) => None,
        Some(Value::String(group)) if !group.is_empty() => Some(group.clone()),
        Some(other) => return Err(fail("group", format!("expected a name, or no such field, found {}", shorten(other)))),
    };
    let item = Item { task: 0, split, image: file.to_owned(), text, label, all_classes: ClassSet::default(), group };
    Ok(ListedItem { task_id, item })
}

/// A string, or a list of strings joined by `". "`.
fn joined_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => Some(parts.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?.join(". ")),
        _ => None,
    }
}

/// A class number, or a list of 0 and 1.
fn listed_label(value: &Value) -> Option<Label> {
    match value {
        Value::Array(flags) => {
            let flag = |v: &Value| v.as_f64().filter(|f| *f == 0.0 || *f == 1.0).map(|f| f == 1.0);
            flags.iter().map(flag).collect::<Option<_>>().map(Label::Classes)
        }
        _ => value.as_u64().and_then(|class| usize::try_from(class).ok()).map(Label::Class),
    }
}

/// A value as an error shows it: its first 60 characters.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
