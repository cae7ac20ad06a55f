//! The multi-label stream in `data/emoji-multilabel`: what its README says of it. `tools/emoji/multilabel.py`
//! makes it, and its `--check` compares the files with what the rules make.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use delo_train::data::Label;
use delo_train::{Dataset, Split};

fn open(name: &str) -> Dataset {
    Dataset::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data").join(name)).unwrap()
}

#[test]
fn the_multi_label_stream_has_five_sessions_of_four_labels() {
    let data = open("emoji-multilabel");
    assert!(data.multi_label);
    assert_eq!((data.name.as_str(), data.items.len()), ("EMOJI-MULTILABEL", 1586));
    let counts = |task: usize| Split::ALL.map(|split| data.rows(task, split).len());
    let sessions: Vec<_> = data.tasks.iter().enumerate().map(|(i, task)| (task.name.as_str(), task.labels.join(" "), counts(i))).collect();
    let expected = [
        ("creatures", "animal bird cat face", [413, 66, 125]),
        ("feelings", "eyes heart love smile", [162, 24, 47]),
        ("eating", "food fruit japanese sweet", [186, 30, 57]),
        ("signs", "arrow button clock time", [201, 18, 63]),
        ("play-and-sky", "ball moon space sport", [121, 23, 50]),
    ];
    assert_eq!(sessions, expected.map(|(name, labels, counts)| (name, labels.to_owned(), counts)));
    for item in &data.items {
        let Label::Classes(own) = &item.label else { panic!("{item:?}") };
        assert!(own.len() == 4 && own.contains(&true), "an item has a label of its own session: {item:?}");
    }
    // 110 items of other sessions show a face, the fourth class of the first session.
    let faces = |of: fn(usize) -> bool| data.items.iter().filter(|item| of(item.task) && item.all_classes.contains(3)).count();
    assert_eq!((faces(|task| task == 0), faces(|task| task != 0)), (335, 110));
}

#[test]
fn no_text_of_the_multi_label_stream_holds_a_label() {
    let data = open("emoji-multilabel");
    let labels: Vec<&String> = data.tasks.iter().flat_map(|task| &task.labels).collect();
    for item in &data.items {
        let text = item.text.to_lowercase();
        let mut words = text.split(|c: char| !c.is_alphanumeric()).map(|word| word.strip_suffix('s').unwrap_or(word));
        let given_away = words.find(|word| labels.iter().any(|label| label.strip_suffix('s').unwrap_or(label) == *word));
        assert_eq!(given_away, None, "{item:?}");
        assert!(text.chars().any(char::is_alphanumeric), "{item:?}");
    }
}

#[test]
fn the_multi_label_stream_is_of_the_pictures_and_the_split_of_emoji_cmml() {
    let (data, whole) = (open("emoji-multilabel"), open("emoji-cmml"));
    let split_and_group: BTreeMap<&str, _> =
        whole.items.iter().map(|item| (item.image.as_str(), (item.split, item.group.as_deref()))).collect();
    for item in &data.items {
        assert_eq!(split_and_group.get(item.image.as_str()), Some(&(item.split, item.group.as_deref())), "{item:?}");
    }
    let pictures =
        |data: &Dataset| -> PathBuf { data.image_path(&data.items[0]).parent().map(Path::to_owned).unwrap().canonicalize().unwrap() };
    assert_eq!(pictures(&data), pictures(&whole), "the pictures are not there twice");
}
