//! The rows of a benchmark as Markdown.
use std::borrow::Cow;
use std::fmt::Write;
use std::path::Path;

use super::rows::{Ap, Conditions, Difference, Figure, Row, RowCost, Rows};
use delo_train::Split;
use serde_json::Value;

/// The whole table: for each split and all conditions its rows, then what the cells cost. Nothing but the
/// part after `## Cost` differs between two runs of one plan.
pub fn markdown(rows: &Rows) -> String {
    let mut out = format!("# {}\n", rows.title);
    // The split of published figures comes first.
    for (split, of_split) in rows.splits.iter().rev() {
        let mut conditions: Vec<&Conditions> = Vec::new();
        for row in of_split {
            if !conditions.contains(&&row.conditions) {
                conditions.push(&row.conditions);
            }
        }
        for conditions in conditions {
            let chosen: Vec<&Row> = of_split.iter().filter(|row| row.conditions == *conditions).collect();
            section(&mut out, *split, conditions, &chosen, rows.reference.as_deref());
        }
    }
    cost(&mut out, &rows.cost);
    out
}

fn section(out: &mut String, split: Split, conditions: &Conditions, rows: &[&Row], reference: Option<&str>) {
    let Conditions { data, backbone, eta, missing, train_share } = conditions;
    let backbone = backbone.as_ref().map_or("the program's backbone".into(), |dir| name(dir));
    let share = train_share.map_or_else(String::new, |share| format!(", {:.0} % of the training items", 100.0 * share));
    line(out, &format!("\n## {split}: {}, {backbone}, missing {missing} {:.0} %{share}\n", name(data), 100.0 * eta));
    let multi_label = rows.iter().any(|row| row.figures.contains_key("f1_macro_all_seen"));
    let mut head = vec!["row", "seeds", "AP agnostic [95 %]", "AP oracle [95 %]", "FG", "FG since learnt"];
    if multi_label {
        head.extend(["F1 all seen", "F1 all seen, oracle"]);
    }
    head.extend(["routing", "complete", "image only", "text only"]);
    let difference = reference.map(|name| [format!("AP agnostic − {name}"), format!("AP oracle − {name}")]);
    let mut head: Vec<String> = head.into_iter().map(str::to_owned).collect();
    head.extend(difference.into_iter().flatten());
    let mut body = Vec::new();
    for row in rows {
        let seeds = match (row.seeds.len(), row.cells) {
            (0, _) => "not run".to_owned(),
            (done, all) if done < all => format!("{done} of {all}"),
            (done, _) => done.to_string(),
        };
        let named = |name: &str| shown(row.figures.get(name).copied());
        let mut cells = vec![row.row.clone(), seeds, shown_ap(row.agnostic), shown_ap(row.oracle), named("fg"), named("fg_since_learnt")];
        if multi_label {
            cells.extend([named("f1_macro_all_seen"), named("oracle_f1_macro_all_seen")]);
        }
        cells.extend(["routing", "complete", "image_only", "text_only"].map(named));
        if reference.is_some() {
            cells.extend(shown_difference(row.difference));
        }
        body.push(cells);
    }
    table(out, &head, &body);
    let mut notes: Vec<String> = rows.iter().flat_map(|row| row.notes.iter().map(move |note| format!("{}: {note}", row.row))).collect();
    notes.dedup();
    for note in notes {
        line(out, &format!("\nnote: {note}"));
    }
}

fn cost(out: &mut String, rows: &[RowCost]) {
    line(out, "\n## Cost\n");
    let head = ["row", "training, s", "evaluation, s", "parameters", "of heads", "steps", "processor"].map(str::to_owned);
    let body: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.row.clone(),
                format!("{:.1}", row.training_seconds.mean),
                format!("{:.1}", row.evaluation_seconds.mean),
                format!("{:.0}", row.parameters),
                format!("{:.0}", row.head_parameters),
                format!("{:.0}", row.steps),
                row.processors.join("; "),
            ]
        })
        .collect();
    table(out, &head, &body);
    for row in rows {
        let chosen: Vec<String> = row.choices.iter().map(|(seed, choices)| format!("seed {seed} {}", chosen(choices))).collect();
        if !chosen.is_empty() {
            line(out, &format!("\nchosen on val, {}: {}", row.row, chosen.join("; ")));
        }
    }
}

/// The name of a folder.
fn name(folder: &Path) -> Cow<'_, str> {
    folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy()
}

/// What was chosen, without what else was tried.
fn chosen(choices: &Value) -> String {
    match choices {
        Value::Array(each) => format!("[{}]", each.iter().map(chosen).collect::<Vec<_>>().join(", ")),
        Value::Object(choice) => choice.get("chosen").unwrap_or(choices).to_string(),
        other => other.to_string(),
    }
}

/// `57.0 ± 0.6`.
fn shown(figure: Option<Figure>) -> String {
    figure.map_or("–".to_owned(), |Figure { mean, spread }| {
        spread.map_or_else(|| format!("{mean:.1}"), |spread| format!("{mean:.1} ± {spread:.1}"))
    })
}

fn shown_ap(ap: Option<Ap>) -> String {
    let Some(Ap { figure, interval }) = ap else { return "–".to_owned() };
    let interval = interval.map_or(String::new(), |[low, high]| format!(" [{low:.1}, {high:.1}]"));
    shown(Some(figure)) + &interval
}

fn shown_difference(difference: Option<Difference>) -> [String; 2] {
    let Some(difference) = difference else { return ["–", "–"].map(str::to_owned) };
    let shown = |value: f64, interval: Option<[f64; 2]>| match interval {
        Some([low, high]) => format!("{value:+.1} [{low:+.1}, {high:+.1}]"),
        None => format!("{value:+.1}"),
    };
    [shown(difference.agnostic, difference.agnostic_interval), shown(difference.oracle, difference.oracle_interval)]
}

/// A Markdown table, its columns as wide as their widest cell.
fn table(out: &mut String, head: &[String], body: &[Vec<String>]) {
    let width = |column: usize| body.iter().chain([&head.to_vec()]).map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let joined = |row: &[String]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        format!("| {} |", cells.join(" | "))
    };
    line(out, &joined(head));
    line(out, &format!("| {} |", widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>().join(" | ")));
    body.iter().for_each(|row| line(out, &joined(row)));
}

fn line(out: &mut String, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_row_shows_mean_spread_interval_and_difference_and_one_that_was_not_run_says_so() {
        let conditions = Conditions {
            data: "runs/../emoji".into(),
            backbone: None,
            eta: 0.7,
            missing: delo_train::MissingKind::Both,
            train_share: None,
        };
        let figure = |mean, spread| Figure { mean, spread: Some(spread) };
        let ap = |mean| Some(Ap { figure: figure(mean, 0.55), interval: Some([mean - 2.0, mean + 2.0]) });
        let run = Row {
            row: "delo".into(),
            method: "delo".into(),
            conditions,
            cells: 3,
            seeds: vec![0, 1],
            agnostic: ap(57.04),
            oracle: ap(72.8),
            figures: BTreeMap::from([("fg", figure(10.0, 1.0)), ("routing", Figure { mean: 68.0, spread: None })]),
            difference: Some(Difference {
                agnostic: 3.26,
                agnostic_interval: Some([1.0, 5.0]),
                oracle: -0.5,
                oracle_interval: None,
                seeds: 2,
            }),
            notes: vec!["a limit".into()],
        };
        let not_run = Row {
            row: "lora".into(),
            seeds: vec![],
            agnostic: None,
            oracle: None,
            figures: BTreeMap::new(),
            difference: None,
            notes: vec![],
            ..run.clone()
        };
        let tried = |chosen: f64| serde_json::json!({"candidates": [0.1, 7.5], "chosen": chosen, "val_scores": [1, 2]});
        let cost = RowCost {
            row: "delo".into(),
            choices: BTreeMap::from([(0, tried(0.1)), (1, serde_json::json!([tried(7.5), tried(0.1)]))]),
            training_seconds: figure(1.0, 0.0),
            evaluation_seconds: figure(1.0, 0.0),
            parameters: 5.0,
            head_parameters: 2.0,
            steps: 3.0,
            processors: vec![],
        };
        let rows = Rows {
            title: "Title".into(),
            reference: Some("paper".into()),
            splits: BTreeMap::from([(Split::Test, vec![run, not_run])]),
            cost: vec![cost],
        };
        let text = markdown(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["# Title", "", "## test: emoji, the program's backbone, missing both 70 %"]);
        assert!(lines[6].starts_with("| delo | 2 of 3  | 57.0 ± 0.6 [55.0, 59.0] | 72.8 ± 0.6 [70.8, 74.8] | 10.0 ± 1.0 | –"), "{text}");
        for cell in ["| 68.0 ", "| +3.3 [+1.0, +5.0] ", "| -0.5 "] {
            assert!(lines[6].contains(cell), "{cell}: {text}");
        }
        assert!(lines[7].starts_with("| lora | not run | –"), "{text}");
        assert!(text.contains("note: delo: a limit") && text.contains("## Cost"), "{text}");
        assert!(text.contains("\nchosen on val, delo: seed 0 0.1; seed 1 [7.5, 0.1]\n"), "{text}");
    }
}
