//! `delo benchmark`, the real program: killed and gone on with, run again, refused.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use delo_benchmark::CellFolder;
use delo_fixtures::colours::write_data;
use delo_train::Split;

const PLAN: &str = r#"
    title = "Colours"
    reference = "delo"
    [defaults]
    data = "data"
    seed = [0, 1]
    eta = 0.5
    experts = 4
    rank = 2
    first_adapted_layer = 4
    lr = 2e-3
    batch = 3
    epochs = EPOCHS
    key_signal = "parts@2"
    [[cell]]
    name = "delo"
    [[cell]]
    name = "mixed"
    adapters_of = "delo"
    metric = "lda"
    key_signal = "parts@3+pooled"
    head_weight = [0.5, 0]
    [[cell]]
    name = "joint"
    joint = true
    seed = 0
    [[cell]]
    name = "no-guide"
    cross_modal_guide = false
    seed = 0
    [[cell]]
    method = "nearest_mean"
"#;

/// A folder with a data set and a plan.
struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new(epochs: usize) -> Self {
        let fixture = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(fixture.path("data")).unwrap();
        write_data(&fixture.path("data"), false);
        fixture.write_plan(&PLAN.replace("EPOCHS", &epochs.to_string()));
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write_plan(&self, text: &str) {
        std::fs::write(self.path("plan.toml"), text).unwrap();
    }

    fn command(&self, out: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_delo"));
        command.arg("benchmark").arg(self.path("plan.toml")).arg("--out").arg(self.path(out)).args(flags);
        command.env("SOURCE_DATE_EPOCH", "0");
        command
    }

    fn run(&self, out: &str, flags: &[&str]) -> Output {
        self.command(out, flags).output().unwrap()
    }

    fn succeed(&self, out: &str, flags: &[&str]) -> String {
        let output = self.run(out, flags);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn cell(&self, out: &str, name: &str) -> CellFolder {
        CellFolder::of(&self.path(out), name)
    }

    /// The table without what the cells cost.
    fn table(&self, out: &str) -> String {
        let text = std::fs::read_to_string(self.path(out).join("table.md")).unwrap();
        text.split("\n## Cost").next().unwrap().to_owned()
    }
}

/// Ends a process and all that it started stay ended: waits until no process runs the cell.
fn kill(mut process: Child, cell: &CellFolder) {
    process.kill().unwrap();
    process.wait().unwrap();
    until("its process ended", || cell.lock().is_ok());
}

/// Waits until this holds, at most two minutes: a bound, so that a test that waits in vain ends.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(120), "{what} never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn same_files(a: &Path, b: &Path) {
    let bytes = |path: &Path| std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(bytes(a) == bytes(b), "{} and {} differ", a.display(), b.display());
}

#[test]
fn a_run_that_was_killed_goes_on_to_the_result_of_one_that_was_not() {
    let f = Fixture::new(12);
    let name = "delo,seed=0";
    f.succeed("whole", &["--only", name]);
    let cell = f.cell("parts", name);
    let checkpoint = cell.partitions().join("cool.safetensors.checkpoint");
    let flags = ["--only", name, "--checkpoint-every", "1"];
    let process = f.command("parts", &flags).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The first session is done, and the second one on its way.
    until("a checkpoint of the second session", || checkpoint.exists());
    kill(process, &cell);
    assert!(checkpoint.exists() && cell.result().unwrap().is_none(), "it was killed too late to tell anything");
    f.succeed("parts", &flags);
    assert!(std::fs::read_to_string(cell.log()).unwrap().contains("cool: goes on from step"));
    let whole = f.cell("whole", name);
    for artifact in ["warm.safetensors", "cool.safetensors"] {
        same_files(&whole.partitions().join(artifact), &cell.partitions().join(artifact));
    }
    for split in [Split::Val, Split::Test] {
        same_files(&whole.samples(split), &cell.samples(split));
        assert_eq!(whole.draws(split).unwrap(), cell.draws(split).unwrap());
    }
    let (whole, parts) = (whole.result().unwrap().unwrap(), cell.result().unwrap().unwrap());
    assert_eq!(whole.reports, parts.reports);
    assert_eq!((whole.cost.parameters, whole.cost.steps), (parts.cost.parameters, parts.cost.steps));
    assert_eq!(f.table("whole"), f.table("parts"));
}

#[test]
fn a_cell_that_is_run_again_gives_the_same_table_and_finished_cells_are_not_run() {
    let f = Fixture::new(2);
    let told = f.succeed("out", &["--only", "nearest_mean*"]);
    assert!(told.contains("| delo ") && told.contains("| not run "), "{told}");
    let printed = f.succeed("out", &["--jobs", "2"]);
    assert!(printed.contains("2 of 10 cells are finished already") && !printed.contains("not run"), "{printed}");
    let table = f.table("out");
    for row in ["delo ", "mixed,head_weight=0.5 ", "mixed,head_weight=0 ", "joint ", "no-guide ", "nearest_mean "] {
        assert!(table.contains(&format!("| {row}")), "{row}: {table}");
    }
    let result = |cell: &str| f.cell("out", cell).result().unwrap().unwrap();
    let (trained, mixed) = (result("delo,seed=1"), result("mixed,head_weight=0.5,seed=1"));
    assert_eq!((trained.cost.parameters, trained.cost.steps), (mixed.cost.parameters, mixed.cost.steps));
    assert!(mixed.cost.training_seconds > trained.cost.training_seconds, "the training of the adapters is in it");
    let column = &mixed.reports[&Split::Test].agnostic[0];
    assert_eq!(column.name, "task-agnostic, lda parts@3+pooled");
    for cell in ["nearest_mean,seed=0", "mixed,head_weight=0,seed=1"] {
        std::fs::remove_dir_all(f.cell("out", cell).path()).unwrap();
    }
    // The cells had shared the signals of the frozen layers; they are computed again.
    std::fs::remove_dir_all(f.path("out/signals")).unwrap();
    let printed = f.succeed("out", &[]);
    assert!(printed.contains("8 of 10 cells are finished already"), "{printed}");
    assert_eq!(f.table("out"), table);
    let listed = f.succeed("out", &["--list", "--only", "mixed*"]);
    assert!(listed.contains("mixed,head_weight=0,seed=1") && listed.contains("delo,seed=1") && listed.contains("finished"), "{listed}");
}

#[test]
fn methods_learn_from_a_share_of_the_training_items_and_are_asked_about_the_same_samples() {
    let f = Fixture::new(1);
    f.write_plan(
        r#"
        [defaults]
        data = "data"
        lr = 2e-3
        batch = 1
        epochs = 1
        [[cell]]
        name = "delo"
        train_share = [0.2, 1.0]
        [[cell]]
        name = "joint"
        joint = true
        train_share = [0.2, 1.0]
        "#,
    );
    let printed = f.succeed("out", &[]);
    assert!(printed.contains("missing both 70 %, 20 % of the training items"), "{printed}");
    for method in ["delo", "joint"] {
        let of = |share: &str| f.cell("out", &format!("{method},train_share={share},seed=0"));
        let [small, whole] = ["0.2", "1.0"].map(|share| of(share).result().unwrap().unwrap());
        assert!(small.cost.steps > 0 && 2 * small.cost.steps < whole.cost.steps, "{}, {}", small.cost.steps, whole.cost.steps);
        assert_eq!(small.reports[&Split::Test].samples, whole.reports[&Split::Test].samples);
        let missing = ["0.2", "1.0"].map(|share| std::fs::read(of(share).missing()).unwrap());
        assert_eq!(missing[0], missing[1]);
    }
    assert!(f.path("out").join("train-share.svg").exists());
}

#[test]
fn a_folder_of_another_configuration_is_refused_by_the_setting() {
    let f = Fixture::new(1);
    f.succeed("out", &["--only", "delo,seed=0"]);
    let plan = std::fs::read_to_string(f.path("plan.toml")).unwrap();
    f.write_plan(&plan.replace("lr = 2e-3", "lr = 1e-3"));
    let refused = f.run("out", &["--only", "delo,seed=0"]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(told.contains("settings.lr 0.002, the plan has 0.001") && told.contains("choose another --out"), "{told}");
    // The same plan on other data.
    f.write_plan(&plan);
    let labels = std::fs::read_to_string(f.path("data").join("labels.json")).unwrap();
    std::fs::write(f.path("data").join("labels.json"), labels.replace("orange", "amber")).unwrap();
    let told = String::from_utf8(f.run("out", &["--only", "delo,seed=0"]).stderr).unwrap();
    assert!(told.contains("data (fingerprint)"), "{told}");
}

#[test]
fn data_that_were_moved_meanwhile_are_read_where_they_are_now() {
    let f = Fixture::new(1);
    let only = ["--only", "nearest_mean,seed=0"];
    f.succeed("out", &only);
    let table = f.table("out");
    std::fs::remove_file(f.cell("out", "nearest_mean,seed=0").path().join("result.json")).unwrap();
    std::fs::create_dir(f.path("elsewhere")).unwrap();
    std::fs::rename(f.path("data"), f.path("elsewhere/data")).unwrap();
    f.write_plan(&PLAN.replace("EPOCHS", "1").replace("\"data\"", "\"elsewhere/data\""));
    f.succeed("out", &only);
    assert_eq!(f.table("out"), table);
}

#[test]
fn a_cell_that_fails_is_told_and_the_others_go_on() {
    let f = Fixture::new(1);
    std::fs::write(f.path("data").join("images").join("red-0.png"), "no image").unwrap();
    let plan = std::fs::read_to_string(f.path("plan.toml")).unwrap();
    // With every image lost, the one that is damaged is not read.
    f.write_plan(&(plan + "missing = \"image\"\neta = 1"));
    let output = f.run("out", &["--only", "*seed=0"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("delo,seed=0: FAILED:") && told.contains("red-0.png"), "{told}");
    assert!(told.contains("mixed,head_weight=0,seed=0: FAILED: it needs delo,seed=0"), "{told}");
    assert!(told.contains("nearest_mean,seed=0: finished") && told.contains("5 of 6 cells have no result"), "{told}");
    let table = f.table("out");
    assert!(table.contains("| delo ") && table.contains("not run"), "{table}");
}
