//! The table of promises names tests and scenarios that are there.
use std::path::Path;

#[test]
fn every_test_and_scenario_that_the_table_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = include_str!("PROMISES.md");
    let mut checked = 0;
    for named in table.split('`').skip(1).step_by(2) {
        let (file, test) = named.split_once("::").map_or((named, None), |(file, test)| (file, Some(test)));
        if !(file.ends_with(".rs") || file.ends_with(".toml") || file.ends_with(".sh")) || file.contains(' ') {
            continue;
        }
        let text = std::fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{named}: {e}"));
        assert!(test.is_none_or(|test| text.contains(&format!("fn {test}("))), "{named} is not there");
        checked += 1;
    }
    assert!(checked > 60, "only {checked} names were found: has the table changed its form?");
}
