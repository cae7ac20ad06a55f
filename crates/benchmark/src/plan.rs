//! The plan of a benchmark: a TOML file of cells.
//!
//! ```toml
//! reference = "delo"             # the row that the others' differences are to
//!
//! [defaults]                     # settings of every cell that does not set them itself
//! data = "data/emoji-cmml"       # paths are relative to the plan's folder
//! seed = [0, 1, 2]               # a list gives a cell for each entry
//!
//! [[cell]]
//! name = "delo"                  # delo,rank=2,seed=0 and so on
//! method = "delo"
//! rank = [2, 4]
//!
//! [[cell]]
//! name = "head-alone"
//! adapters_of = "delo"           # the trained adapters of that cell, and its settings
//! head_weight = 1.0
//! ```
//!
//! `docs/BENCHMARK.md` lists the settings.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::cell::{Cell, RENEWED, Sources, is_known};
use super::expansion::combinations;

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A file that is no TOML of this form.
    #[error("{name}: {problem}")]
    Format {
        /// The plan.
        name: String,
        /// What is wrong, with its line.
        problem: String,
    },
    /// A file that cannot be read.
    #[error("cannot read {name}: {source}; name a plan, or cmml for the built-in one")]
    Unreadable {
        /// The plan.
        name: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A cell with a setting that it does not have, or of a wrong value.
    #[error("cell {cell:?}: {problem}")]
    Cell {
        /// Name of the cell's row.
        cell: String,
        /// What is wrong, and what is expected.
        problem: String,
    },
    /// Two cells that would have one folder.
    #[error("two cells are named {0:?}: give one of them another name")]
    Twice(String),
    /// A pattern of `--only` that is none, or that fits no cell.
    #[error("--only {pattern:?}: {problem}")]
    Only {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        problem: String,
    },
}

/// The cells of a benchmark, and the row that they are compared with.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The heading of the table.
    pub title: String,
    /// The row, or the table of the plan, that differences are to.
    pub reference: Option<String>,
    /// In the order of the plan.
    pub cells: Vec<Cell>,
    /// By a table or figure of the paper: patterns of its rows' names.
    pub paper: BTreeMap<String, Vec<String>>,
    /// The rows of a built-in plan whose methods this program does not have, with these.
    pub absent: Vec<(String, String)>,
}

/// The built-in plan: the paper's tables.
pub const CMML: &str = include_str!("plans/cmml.toml");

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    reference: Option<String>,
    #[serde(default)]
    defaults: Map<String, Value>,
    #[serde(default)]
    cell: Vec<Map<String, Value>>,
    #[serde(default)]
    paper: BTreeMap<String, Vec<String>>,
}

impl Plan {
    /// Reads a plan from a file; its paths are relative to the file's folder.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn open(path: &Path, sources: Sources) -> Result<Self, PlanError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| PlanError::Unreadable { name: name.clone(), source })?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Self::parse(&name, &text, &Sources { relative_to: folder, ..sources })
    }

    /// Reads a plan from its text. `name`: for messages.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn parse(name: &str, text: &str, sources: &Sources) -> Result<Self, PlanError> {
        let format = |problem: String| PlanError::Format { name: name.to_owned(), problem };
        let mut file: File = toml::from_str(text).map_err(|e| format(e.to_string()))?;
        file.defaults.extend(sources.defaults.clone());
        if file.cell.is_empty() {
            return Err(format("no [[cell]]: a plan names at least one".to_owned()));
        }
        let mut plan = Self {
            title: file.title.unwrap_or_else(|| name.to_owned()),
            reference: file.reference,
            cells: Vec::new(),
            paper: file.paper,
            absent: Vec::new(),
        };
        let mut tables = BTreeMap::new();
        for table in file.cell {
            let table = Table::of(table, &file.defaults, &tables).map_err(&format)?;
            plan.add(&table, sources)?;
            tables.insert(table.name.clone(), table);
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = plan.cells.iter().find(|cell| !names.insert(cell.name.clone())) {
            return Err(PlanError::Twice(twice.name.clone()));
        }
        if let Some(reference) =
            plan.reference.as_ref().filter(|name| plan.cells.iter().all(|cell| cell.row != **name && cell.base != **name))
        {
            return Err(format(format!("reference {reference:?} is no cell of the plan")));
        }
        Ok(plan)
    }

    /// The cells of a table.
    fn add(&mut self, table: &Table, sources: &Sources) -> Result<(), PlanError> {
        for combination in combinations(&table.values) {
            let row = combination.row(&table.name);
            if let Some(method) = combination.values.get("method").and_then(Value::as_str).filter(|m| sources.list_absent && !is_known(m)) {
                if self.absent.iter().all(|(known, _)| *known != row) {
                    self.absent.push((row, method.to_owned()));
                }
                continue;
            }
            let trained = table.adapters_of.as_ref().map(|parent| {
                let mut of_parent = combination.clone();
                of_parent.varied.retain(|(key, _)| !table.own.contains(key));
                let seed = combination.values.get("seed").cloned().unwrap_or_else(|| 0.into());
                format!("{},seed={seed}", of_parent.row(parent))
            });
            let cell = Cell::of(&table.name, &row, combination.values, trained, sources)?;
            // Defaults are for all cells; what a table sets itself must mean something there.
            if let Some(setting) = table.own.iter().find(|setting| cell.ignores(setting)) {
                let problem = format!("{setting:?} is no setting of {}, which makes no partitions", cell.method);
                return Err(PlanError::Cell { cell: row, problem });
            }
            self.cells.push(cell);
        }
        Ok(())
    }

    /// The built-in plan of the paper's tables. Rows whose methods this program does not have are
    /// [`Self::absent`].
    ///
    /// # Errors
    /// [`PlanError`]: without [`Sources::data`], or with defaults that it cannot have.
    pub fn cmml(sources: Sources) -> Result<Self, PlanError> {
        Self::parse("cmml", CMML, &Sources { list_absent: true, ..sources })
    }

    /// The rows of a table or figure of the paper, in the order of the plan.
    ///
    /// # Errors
    /// [`PlanError::Format`] for a pattern that is none.
    pub fn rows_of_paper(&self, patterns: &[String]) -> Result<Vec<String>, PlanError> {
        let format = |e: glob::PatternError| PlanError::Format { name: "[paper]".to_owned(), problem: e.to_string() };
        let globs = patterns.iter().map(|pattern| glob::Pattern::new(pattern)).collect::<Result<Vec<_>, _>>().map_err(format)?;
        let mut rows: Vec<String> = Vec::new();
        for row in self.cells.iter().map(|cell| &cell.row).chain(self.absent.iter().map(|(row, _)| row)) {
            if globs.iter().any(|glob| glob.matches(row)) && !rows.contains(row) {
                rows.push(row.clone());
            }
        }
        Ok(rows)
    }

    /// The plan with the cells alone whose names, or the names of whose rows, fit a pattern such as `delo,*`,
    /// and those whose adapters they take over.
    ///
    /// # Errors
    /// [`PlanError::Only`].
    pub fn only(&self, pattern: &str) -> Result<BTreeSet<String>, PlanError> {
        let fail = |problem: String| PlanError::Only { pattern: pattern.to_owned(), problem };
        let glob = glob::Pattern::new(pattern).map_err(|e| fail(e.to_string()))?;
        let fits = |cell: &&Cell| glob.matches(&cell.name) || glob.matches(&cell.row);
        let found: BTreeSet<String> =
            self.cells.iter().filter(fits).flat_map(|cell| cell.adapters_of.iter().chain([&cell.name])).cloned().collect();
        if found.is_empty() {
            return Err(fail("no cell has such a name; --list shows them".to_owned()));
        }
        Ok(found)
    }

    /// Of the chosen cells, those of one of several parts that make up all of them, for machines side by side. A
    /// cell and the one whose adapters it takes over are in one part.
    pub fn part(&self, chosen: &BTreeSet<String>, part: Part) -> BTreeSet<String> {
        let source = |cell: &Cell| cell.adapters_of.clone().unwrap_or_else(|| cell.name.clone());
        let mut sources: Vec<String> = Vec::new();
        let mut found = BTreeSet::new();
        for cell in self.cells.iter().filter(|cell| chosen.contains(&cell.name)) {
            let source = source(cell);
            let place = sources.iter().position(|known| *known == source).unwrap_or_else(|| {
                sources.push(source);
                sources.len() - 1
            });
            if place % part.of == part.number {
                found.insert(cell.name.clone());
            }
        }
        found
    }
}

/// One of several parts of a plan's cells, written `K/N`: the K-th of N, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 0.
    number: usize,
    /// How many there are.
    of: usize,
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(number, of)| Some(Self { number: number.parse().ok()?, of: of.parse().ok()? }));
        parts.filter(|part| part.number < part.of).ok_or_else(|| "give K/N, from 0/N to N-1/N: 0/8 for example".to_owned())
    }
}

/// One table of the file, with all settings that it has.
struct Table {
    name: String,
    /// Its own settings, over those of the table whose adapters it takes over, over the defaults.
    values: Map<String, Value>,
    adapters_of: Option<String>,
    /// The settings that the table itself sets.
    own: BTreeSet<String>,
}

impl Table {
    fn of(mut table: Map<String, Value>, defaults: &Map<String, Value>, earlier: &BTreeMap<String, Self>) -> Result<Self, String> {
        let mut text = |key: &str| match table.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{key} {other}: give a text")),
        };
        let (name, adapters_of) = (text("name")?, text("adapters_of")?);
        let name = name.or_else(|| table.get("method")?.as_str().map(str::to_owned)).ok_or("a [[cell]] without name and method")?;
        let plain = |c: char| c.is_alphanumeric() || " .+-_@".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(format!("name {name:?}: it names a folder; use letters, digits and .+-_@, no dot first"));
        }
        let own: BTreeSet<String> = table.keys().cloned().collect();
        let mut values = defaults.clone();
        if let Some(parent) = &adapters_of {
            let parent =
                earlier.get(parent).ok_or_else(|| format!("cell {name:?}: adapters_of {parent:?} is no earlier cell of the plan"))?;
            if parent.adapters_of.is_some() {
                return Err(format!("cell {name:?}: {:?} takes over adapters itself: name the cell that trains them", parent.name));
            }
            if let Some(key) = own.iter().find(|key| !RENEWED.contains(&key.as_str()) && *key != "splits") {
                return Err(format!(
                    "cell {name:?}: {key} is decided by the training of {:?}; with adapters_of, set {} alone",
                    parent.name,
                    RENEWED.join(", ")
                ));
            }
            if let Some(key) = own.iter().find(|key| parent.values.get(*key).is_some_and(Value::is_array) && *key != "splits") {
                return Err(format!("cell {name:?}: {:?} has a list of {key}: give each its own cell", parent.name));
            }
            values = parent.values.clone();
        }
        values.extend(table);
        if let Some((key, _)) = values.iter().find(|(_, value)| value.as_array().is_some_and(Vec::is_empty)) {
            return Err(format!("cell {name:?}: {key} is an empty list: give at least one value, or leave it out"));
        }
        Ok(Self { name, values, adapters_of, own })
    }
}

/// A value in TOML: `1e-3`, `[0, 1]`, `"both"`; what is none is a text.
pub fn value(text: &str) -> Value {
    let table = toml::from_str::<Map<String, Value>>(&format!("value = {text}"));
    table.ok().and_then(|mut table| table.remove("value")).unwrap_or_else(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use delo_model::MethodKind;

    fn plan(text: &str) -> Result<Plan, PlanError> {
        let sources = Sources { relative_to: "folder".into(), ..Sources::default() };
        Plan::parse("plan.toml", text, &sources)
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.cells.iter().map(|cell| cell.name.as_str()).collect()
    }

    const PLAN: &str = r#"
        reference = "delo"
        [defaults]
        data = "emoji"
        seed = [0, 1]
        lr = 1e-3
        [[cell]]
        name = "delo"
        rank = [2, 4]
        [[cell]]
        name = "half"
        adapters_of = "delo"
        head_weight = [0.5, 0]
        metric = "lda"
        [[cell]]
        method = "nearest_mean"
        signal = "summary"
        eta = 1
    "#;

    #[test]
    fn lists_become_cells_whose_names_say_what_varies() {
        let plan = plan(PLAN).unwrap();
        let expected = [
            "delo,rank=2,seed=0",
            "delo,rank=4,seed=0",
            "delo,rank=2,seed=1",
            "delo,rank=4,seed=1",
            "half,head_weight=0.5,rank=2,seed=0",
            "nearest_mean,seed=0",
            "nearest_mean,seed=1",
        ];
        assert!(expected.iter().all(|name| names(&plan).contains(name)), "{:?}", names(&plan));
        assert_eq!(plan.cells.len(), 4 + 8 + 2);
        let cell = |name: &str| plan.cells.iter().find(|cell| cell.name == name).unwrap();
        let delo = cell("delo,rank=4,seed=1");
        assert_eq!((delo.settings.rank, delo.settings.seed, delo.seed, delo.settings.lr), (4, 1, 1, 1e-3));
        assert_eq!((delo.row.as_str(), delo.data.as_path()), ("delo,rank=4", Path::new("folder/emoji")));
        let half = cell("half,head_weight=0.5,rank=4,seed=1");
        assert_eq!(half.adapters_of.as_deref(), Some("delo,rank=4,seed=1"));
        assert_eq!((half.settings.rank, half.settings.head_weight, half.key.metric.to_string().as_str()), (4, 0.5, "lda"));
        assert_eq!(cell("nearest_mean,seed=0").eta, 1.0);
    }

    #[test]
    fn a_pattern_chooses_cells_and_those_whose_adapters_they_need() {
        let plan = plan(PLAN).unwrap();
        let found = plan.only("half,*rank=2,seed=1").unwrap();
        assert_eq!(
            found.iter().map(String::as_str).collect::<Vec<_>>(),
            ["delo,rank=2,seed=1", "half,head_weight=0,rank=2,seed=1", "half,head_weight=0.5,rank=2,seed=1"]
        );
        assert!(plan.only("none*").unwrap_err().to_string().contains("--list"));
    }

    #[test]
    fn parts_make_up_all_cells_and_keep_a_cell_with_the_one_whose_adapters_it_needs() {
        let plan = plan(PLAN).unwrap();
        let all: BTreeSet<String> = plan.cells.iter().map(|cell| cell.name.clone()).collect();
        let parts: Vec<BTreeSet<String>> = (0..3).map(|k| plan.part(&all, format!("{k}/3").parse().unwrap())).collect();
        assert_eq!(parts.iter().flatten().cloned().collect::<BTreeSet<_>>(), all);
        assert_eq!(parts.iter().map(BTreeSet::len).sum::<usize>(), all.len());
        assert!(parts.iter().all(|part| !part.is_empty()));
        for cell in plan.cells.iter().filter(|cell| cell.adapters_of.is_some()) {
            let part = parts.iter().find(|part| part.contains(&cell.name)).unwrap();
            assert!(part.contains(cell.adapters_of.as_ref().unwrap()), "{}", cell.name);
        }
        assert_eq!(plan.part(&all, "98/99".parse().unwrap()), BTreeSet::new());
        for wrong in ["3/3", "1", "a/b", "-1/3", "0/0", ""] {
            assert!(wrong.parse::<Part>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_built_in_plan_has_a_row_for_everything_in_the_paper() {
        let sources = Sources { data: Some("x".into()), ..Sources::default() };
        let plan = Plan::cmml(sources.clone()).unwrap();
        let rows = |name: &str| {
            let patterns = plan.paper.iter().find(|(artefact, _)| artefact.starts_with(name)).unwrap().1;
            plan.rows_of_paper(patterns).unwrap().len()
        };
        let counts = ["Table 2", "Table 3", "Table 4", "Table 5", "Table 6", "Figure 4a", "Figure 4b", "Figure 5"].map(rows);
        assert_eq!(counts, [15 * 7, 15 * 7, 4, 6, 4, 1, 2, 1]);
        assert!(plan.cells.iter().all(|cell| cell.settings.lr == 1e-4));
        // What it leaves to its user.
        let set = Map::from_iter([("lr".to_owned(), 1e-3.into()), ("seed".to_owned(), 7.into())]);
        let plan = Plan::cmml(Sources { defaults: set, ..sources }).unwrap();
        assert!(plan.cells.iter().all(|cell| cell.settings.lr == 1e-3 && cell.seed == 7));
        assert!(Plan::cmml(Sources::default()).unwrap_err().to_string().contains("--data"));
    }

    #[test]
    fn a_name_that_a_peer_and_a_method_have_is_the_peer_s() {
        let names = ["dualprompt", "dualprompt_partitions", "l2p", "l2p_partitions"];
        let cells: String = names.map(|name| format!("[[cell]]\nmethod = \"{name}\"\n")).concat();
        let cells = plan(&format!("[defaults]\ndata = \"x\"\n{cells}")).unwrap().cells;
        let found: Vec<_> = cells.iter().map(|cell| cell.makes_partitions().then_some(cell.settings.method)).collect();
        assert_eq!(found, [None, Some(MethodKind::DualPrompt), None, Some(MethodKind::L2p)]);
    }

    #[test]
    fn a_refusal_names_the_cell_and_the_setting() {
        let refused = |cell: &str| plan(&format!("[defaults]\ndata = \"x\"\n[[cell]]\nname = \"a\"\n{cell}")).unwrap_err().to_string();
        for (cell, words) in [
            ("rnak = 2", "cell \"a\": \"rnak\" is no setting of delo"),
            ("rank = \"two\"", "cell \"a\": rank: invalid type"),
            ("method = \"l3p\"", "\"l3p\" is no method: give one of delo, lora, linear, dualprompt_partitions"),
            ("method = \"nearest_mean\"\nsize = 3", "unknown field `size`"),
            ("eta = 1.5", "eta 1.5"),
            ("eta = []", "cell \"a\": eta is an empty list"),
            ("splits = [\"test\", \"test\"]", "splits: test stands twice"),
            ("train_share = 0", "train_share 0: give a share above 0"),
            ("joint = true\nhead_weight = 0.5", "joint: one session with a head alone"),
            ("joint = true\nmethod = \"ridge\"", "joint goes with delo, lora, linear"),
            ("method = \"inflora\"\nrank = 3", "\"rank\" is no setting of inflora, which makes no partitions"),
            ("missing = \"none\"", "missing: unknown variant"),
            ("adapters_of = \"b\"", "no earlier cell"),
            ("[[cell]]\nname = \"a\"", "two cells are named \"a,seed=0\""),
            ("[[cell]]\nname = \"b\"\nadapters_of = \"a\"\nlr = 1", "lr is decided by the training of \"a\""),
            ("[[cell]]\nname = \"b/c\"", "it names a folder"),
        ] {
            let error = refused(cell);
            assert!(error.contains(words), "{cell}: {error}");
        }
        assert!(plan("[[cell]]\nmethod = \"delo\"").unwrap_err().to_string().contains("--data"));
        assert!(
            plan("reference = \"x\"\n[defaults]\ndata=\"x\"\n[[cell]]\nmethod = \"delo\"")
                .unwrap_err()
                .to_string()
                .contains("reference \"x\"")
        );
        let of_defaults = plan("[defaults]\ndata = \"x\"\nrank = 3\n[[cell]]\nmethod = \"inflora\"\nbranch_rank = 3");
        assert_eq!(of_defaults.unwrap().cells[0].peer["branch_rank"], 3, "defaults are for those that have them");
        assert!(plan("cells = 3").unwrap_err().to_string().contains("unknown field"));
    }
}
