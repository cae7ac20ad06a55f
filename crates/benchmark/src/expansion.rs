//! How the lists in a cell's table become cells: one for each combination of their entries.
use serde_json::{Map, Value};

/// Settings whose value is itself a list: a list of lists gives one cell for each inner list.
const LISTS: [&str; 7] = ["dummy_image", "expert_layers", "general_layers", "l2", "layers", "ridges", "splits"];

/// One combination of the entries of a table's lists.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// Every setting with one value.
    pub values: Map<String, Value>,
    /// The settings that had a list, with the value of this combination, in the order of their names.
    pub varied: Vec<(String, Value)>,
}

impl Combination {
    /// `NAME,key=value,…`: the name of the cells that differ by their seed alone.
    pub fn row(&self, name: &str) -> String {
        let varied = self.varied.iter().filter(|(key, _)| key != "seed");
        varied.fold(name.to_owned(), |row, (key, value)| format!("{row},{key}={}", shown(value)))
    }
}

/// All combinations of the entries of a table's lists, the first list's entries changing slowest.
pub fn combinations(table: &Map<String, Value>) -> Vec<Combination> {
    let mut found = vec![Combination { values: Map::new(), varied: Vec::new() }];
    for (key, value) in table {
        let entries = entries(key, value);
        let varies = entries.is_some();
        let entries = entries.unwrap_or_else(|| vec![value.clone()]);
        let with = |before: &Combination, entry: &Value| {
            let mut after = before.clone();
            after.values.insert(key.clone(), entry.clone());
            if varies {
                after.varied.push((key.clone(), entry.clone()));
            }
            after
        };
        found = found.iter().flat_map(|before| entries.iter().map(|entry| with(before, entry)).collect::<Vec<_>>()).collect();
    }
    found
}

/// The entries of a list that gives a cell for each; `None` where the value is one.
fn entries(key: &str, value: &Value) -> Option<Vec<Value>> {
    let list = value.as_array()?;
    let is_value = LISTS.contains(&key) && !list.iter().any(Value::is_array);
    (!is_value).then(|| list.clone())
}

/// A value as part of a file's name: letters, digits and `.+-_@` stay.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(shown).collect::<Vec<_>>().join("x"),
        other => other.to_string(),
    };
    text.chars().map(|c| if c.is_alphanumeric() || ".+-_@".contains(c) { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(table: Value) -> Vec<String> {
        let Value::Object(table) = table else { panic!("a table") };
        combinations(&table).iter().map(|combination| combination.row("x")).collect()
    }

    #[test]
    fn every_combination_of_the_lists_is_a_cell_and_names_what_varies() {
        let found = rows(json!({"rank": [2, 4], "eta": 0.7, "signal": ["parts@3+pooled", "mean@0"]}));
        let expected =
            ["x,rank=2,signal=parts@3+pooled", "x,rank=2,signal=mean@0", "x,rank=4,signal=parts@3+pooled", "x,rank=4,signal=mean@0"];
        assert_eq!(found, expected);
        assert_eq!(rows(json!({"rank": 2})), ["x"]);
        assert_eq!(rows(json!({"rank": [2]})), ["x,rank=2"], "a list of one value is a list");
        assert_eq!(rows(json!({"seed": [0, 1]})), ["x", "x"], "a row is over its seeds");
        assert!(rows(json!({"rank": []})).is_empty());
    }

    #[test]
    fn a_setting_that_is_a_list_itself_varies_by_a_list_of_lists() {
        assert_eq!(rows(json!({"dummy_image": [64, 64]})), ["x"]);
        assert_eq!(rows(json!({"dummy_image": [[8, 8], [64, 64]]})), ["x,dummy_image=8x8", "x,dummy_image=64x64"]);
        assert_eq!(rows(json!({"layers": [0, 1]})), ["x"], "the layers of one peer's prompts");
    }
}
