//! The lists of the RebQ release are read as they are: a few invented items in the exact layout of each.
use std::path::Path;

use serde_json::{Value, json};

use delo_train::data::{Item, Label};
use delo_train::{Dataset, MissingKind, MissingTable, Split};

/// Classes of each session of MM-IMDB-CMML, and its sessions.
const GENRES: usize = 4;
const SESSIONS: usize = 5;

/// A text of so many words.
fn words(count: usize) -> String {
    (0..count).map(|i| ["a", "night", "train", "leaves", "Vienna"][i % 5]).collect::<Vec<_>>().join(" ")
}

/// A film with these genres, as one flag for each of the 20 genres; its text is a list of one plot of 1,024
/// words.
fn film(session: usize, split: &str, nth: usize, genres: &[usize]) -> Value {
    let flags: Vec<u8> = (0..SESSIONS * GENRES).map(|genre| u8::from(genres.contains(&genre))).collect();
    json!({"task_id": session, "split": split, "image": format!("{session:04}{nth:03}.jpeg"), "text": [words(1024)], "label": flags})
}

/// Two training films and a test film of each session, with all genres of their session. `more` are genres
/// beside them, by session.
fn films(more: impl Fn(usize) -> Vec<usize>) -> Vec<Value> {
    let session = |session: usize| {
        let own = |genre: usize| session * GENRES + genre;
        [
            film(session, "train", 0, &[vec![own(0), own(1)], more(session)].concat()),
            film(session, "train", 1, &[own(2), own(3)]),
            film(session, "test", 2, &[vec![own(1)], more(session)].concat()),
        ]
    };
    // Sessions in falling order: the order of a list decides nothing.
    (0..SESSIONS).rev().flat_map(session).collect()
}

fn open(dir: &Path, name: &str, items: &[Value], labels: Option<Value>) -> Result<Dataset, String> {
    std::fs::write(dir.join(name), serde_json::to_vec(items).unwrap()).unwrap();
    if let Some(labels) = labels {
        std::fs::write(dir.join("labels.json"), labels.to_string()).unwrap();
    }
    Dataset::open(dir).map_err(|e| e.to_string())
}

/// The genres of an item among all 20, by number.
fn all_genres(item: &Item) -> Vec<usize> {
    (0..SESSIONS * GENRES).filter(|genre| item.all_classes.contains(*genre)).collect()
}

#[test]
fn a_film_keeps_the_genres_of_other_sessions_beside_the_label_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    // Films of session s also have the first genre of every earlier session.
    let items = films(|session| (0..session).map(|earlier| earlier * GENRES).collect());
    let data = open(dir.path(), "MM-IMDB-CMML.json", &items, None).unwrap();
    assert!(data.multi_label);
    let labels: Vec<_> = data.tasks.iter().map(|task| (task.name.clone(), task.labels.join(" "))).collect();
    let expected = ["0 1 2 3", "4 5 6 7", "8 9 10 11", "12 13 14 15", "16 17 18 19"];
    assert_eq!(labels, expected.iter().enumerate().map(|(id, own)| (format!("task-{id}"), own.to_string())).collect::<Vec<_>>());

    let test = &data.items[data.rows(3, Split::Test)[0]];
    assert_eq!(test.label, Label::Classes(vec![false, true, false, false]));
    assert_eq!(all_genres(test), [0, 4, 8, 13]);
    assert_eq!(data.first_class(3), 12);
    assert_eq!(test.text.split_whitespace().count(), 1024);
    assert_eq!(test.group, None);
    let table = MissingTable::draw(&data, 0.5, MissingKind::Both, 0).unwrap();
    assert_eq!(table.items.len(), SESSIONS);
    // Only the last session's genres are its own alone, whoever may own the others.
    let note = data.shared_classes().unwrap();
    assert!(note.starts_with("4 of 20 classes occur in training items of several tasks"), "{note}");
}

#[test]
fn a_genre_belongs_to_the_first_session_that_trains_on_it() {
    let dir = tempfile::tempdir().unwrap();
    // A test film of session 0 has a genre of session 4, and no training film of session 4 has genre 19, which
    // a val film of session 2 has first.
    let mut items = films(|_| Vec::new());
    items.push(film(0, "test", 3, &[17]));
    items.iter_mut().filter(|item| item["task_id"] == 4).for_each(|item| item["label"][19] = 0.into());
    items.push(film(4, "val", 4, &[19]));
    items.push(film(2, "val", 5, &[19]));
    let data = open(dir.path(), "MM-IMDB-CMML.json", &items, None).unwrap();
    let labels: Vec<_> = data.tasks.iter().map(|task| task.labels.join(" ")).collect();
    assert_eq!(labels, ["0 1 2 3", "4 5 6 7", "8 9 10 11 19", "12 13 14 15", "16 17 18"]);
    let strange = data.items.iter().find(|item| item.image == "0000003.jpeg").unwrap();
    assert_eq!(strange.label, Label::Classes(vec![false; 4]));
    // Genre 19 stands among those of session 2, so that 17 is one further back.
    assert_eq!(all_genres(strange), [18]);
    assert_eq!(data.shared_classes(), None);
}

#[test]
fn labels_json_says_which_genres_are_whose_where_sessions_share_them() {
    let everywhere = || films(|_| vec![0, 7, 19]);
    let dir = tempfile::tempdir().unwrap();
    // Session 0 trains on films of genre 7 and 19, which are others' by the file alone.
    let labels = |classes: &dyn Fn(usize) -> Value| {
        let entry = |id: usize| {
            let names: Vec<_> = (0..GENRES).map(|genre| format!("genre {}", id * GENRES + genre)).collect();
            let mut entry = json!({"task_id": id, "name": format!("session {id}"), "labels": names});
            let classes = classes(id);
            if !classes.is_null() {
                entry["classes"] = classes;
            }
            entry
        };
        Some((0..SESSIONS).map(entry).collect::<Value>())
    };
    let own = |id: usize| json!((id * GENRES..(id + 1) * GENRES).collect::<Vec<_>>());
    let data = open(dir.path(), "MM-IMDB-CMML.json", &everywhere(), labels(&own)).unwrap();
    assert_eq!(data.tasks[4].labels, ["genre 16", "genre 17", "genre 18", "genre 19"]);
    let test = &data.items[data.rows(0, Split::Test)[0]];
    assert_eq!((test.label.clone(), all_genres(test)), (Label::Classes(vec![true, true, false, false]), vec![0, 1, 7, 19]));
    assert_eq!(data.shared_classes(), None, "labels.json says whose they are");

    for (classes, problem) in [
        (&(|_| Value::Null) as &dyn Fn(usize) -> Value, "names 4 classes for this task; where class numbers run over all tasks"),
        (&|id| if id == 2 { Value::Null } else { own(id) }, "give `classes` for every task or for none"),
        (&|id| own(id.min(3)), "class 12 stands twice"),
        (&|id| json!([id]), "4 labels, but 1 `classes`"),
    ] {
        let error = open(dir.path(), "MM-IMDB-CMML.json", &everywhere(), labels(classes)).unwrap_err();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn a_session_that_owns_no_genre_is_told_what_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let error = open(dir.path(), "MM-IMDB-CMML.json", &films(|_| (0..SESSIONS * GENRES).collect()), None).unwrap_err();
    assert!(error.contains("MM-IMDB-CMML.json: task_id 1 has no class of its own") && error.contains("labels.json"), "{error}");
}

#[test]
fn dishes_are_numbered_over_all_101_classes() {
    let dir = tempfile::tempdir().unwrap();
    let dish = |session: usize, split: &str, class: usize| {
        let image = format!("{split}/dish_{class}/dish_{class}_7.jpg");
        json!({"task_id": session, "split": split, "image": image, "text": [words(512)], "label": class})
    };
    // Ten sessions of ten classes; the last has an eleventh.
    let session = |class: usize| (class / 10).min(9);
    let items: Vec<_> = (0..101).flat_map(|class| ["train", "test"].map(|split| dish(session(class), split, class))).collect();
    let data = open(dir.path(), "UPMC-Food101-CMML.json", &items, None).unwrap();
    assert!(!data.multi_label);
    assert_eq!(data.tasks.iter().map(|task| task.labels.len()).collect::<Vec<_>>(), [10, 10, 10, 10, 10, 10, 10, 10, 10, 11]);
    assert_eq!(data.tasks[9].labels[10], "100");
    let last = &data.items[data.rows(9, Split::Test)[10]];
    assert_eq!((last.label.clone(), last.image.as_str()), (Label::Class(10), "test/dish_100/dish_100_7.jpg"));
    assert_eq!(last.text.split_whitespace().count(), 512);
}

#[test]
fn items_of_one_family_name_their_group() {
    let dir = tempfile::tempdir().unwrap();
    let item = |group: Value| json!({"task_id": 0, "split": "test", "image": "a.png", "text": "t", "label": 0, "group": group});
    let data = open(dir.path(), "L.json", &[item(json!("1f600")), item(Value::Null)], None).unwrap();
    assert_eq!(data.items.iter().map(|item| item.group.as_deref()).collect::<Vec<_>>(), [Some("1f600"), None]);
    for wrong in [json!(3), json!("")] {
        let error = open(dir.path(), "L.json", &[item(json!("1f600")), item(wrong)], None).unwrap_err();
        assert!(error.contains("item 1 (a.png), field `group`: expected a name"), "{error}");
    }
    let emoji = Dataset::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/emoji-cmml")).unwrap();
    assert!(emoji.items.iter().all(|item| item.image.rsplit_once('-').map(|(emoji, _)| emoji) == item.group.as_deref()));
}
