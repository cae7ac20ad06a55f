//! Killed in the middle of a load, the real server comes back with the old catalogue or the new one.
//!
//! The moments are random; `CRASH_KILLS=200 cargo test --test crash` tries more of them than the usual few.
//! With `cargo test --features failpoints --test crash` every step of a load is met on purpose.
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use delo_model::{KeySignal, Layout, Metric};
use delo_proto::admin_client::AdminClient;
use delo_proto::classifier_client::ClassifierClient;
use delo_proto::load_partition_request::Source;
use delo_proto::{ClassifyRequest, GetStatusRequest, ListPartitionsRequest, LoadPartitionRequest};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tonic::transport::Channel;

/// `delo serve` on a state directory; killed when dropped.
struct Serving {
    process: Child,
    admin: AdminClient<Channel>,
    classifier: ClassifierClient<Channel>,
}

fn artifact(variant: u64) -> Vec<u8> {
    let model = delo_fixtures::random_model(delo_fixtures::spec(Layout::RankOne, 3), 7, variant);
    delo_fixtures::artifact("food", &model, delo_fixtures::key_rule(Metric::Whitened, KeySignal::Parts { layer: 3 }), variant)
}

impl Serving {
    async fn start(state: &Path, failpoints: &str) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_delo")), state, failpoints).await
    }

    /// `command` runs what its further arguments say.
    async fn start_by(mut command: Command, state: &Path, failpoints: &str) -> Self {
        let free = "127.0.0.1:0";
        let mut process = command
            .args(["serve", "--listen", free, "--admin-listen", free, "--metrics-listen", "off"])
            .env("DELO_CATALOGUE__STATE_DIR", state)
            .env("DELO_LOGGING__FORMAT", "json")
            .env("FAILPOINTS", failpoints)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let serving = lines.find_map(|line| {
            let event: serde_json::Value = serde_json::from_str(&line).ok()?;
            (event["message"] == "serving").then_some(event)
        });
        let serving = serving.expect("it ended before it served");
        // Read on, or a full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        let channel = async |port: &str| {
            Channel::from_shared(format!("http://{}", serving[port].as_str().unwrap())).unwrap().connect().await.unwrap()
        };
        let (admin, classifier) = (AdminClient::new(channel("admin").await), ClassifierClient::new(channel("classifier").await));
        Self { process, admin, classifier }
    }

    async fn load(&mut self, artifact: Vec<u8>) -> Result<u64, tonic::Status> {
        let request = LoadPartitionRequest { source: Some(Source::Artifact(artifact.into())), ..Default::default() };
        Ok(self.admin.clone().load_partition(request).await?.into_inner().partition.unwrap().version)
    }

    /// The live version of food (0 before the first load), after it was seen to answer.
    async fn live(&mut self) -> u64 {
        let partitions = self.admin.list_partitions(ListPartitionsRequest {}).await.unwrap().into_inner().partitions;
        assert!(partitions.len() >= 7, "tasks were lost: {partitions:?}");
        let live = partitions.iter().find(|p| p.task == "food").map_or(0, |p| p.version);
        if live > 0 {
            let request = ClassifyRequest { task: "food".to_owned(), text: Some("soup".to_owned()), ..Default::default() };
            assert_eq!(self.classifier.classify(request).await.unwrap().into_inner().partition_version, live);
        }
        live
    }

    /// As [`Self::live`], of a server that has come back without damage.
    async fn sound_version(&mut self) -> u64 {
        let live = self.live().await;
        let status = self.admin.get_status(GetStatusRequest {}).await.unwrap().into_inner();
        assert!(status.notices.is_empty(), "{:?}", status.notices);
        live
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_of_a_load_it_comes_back_with_the_old_catalogue_or_the_new_one() {
    let kills: u32 = std::env::var("CRASH_KILLS").map_or(6, |n| n.parse().unwrap());
    let (state, mut rng) = (tempfile::tempdir().unwrap(), ChaCha8Rng::seed_from_u64(5));
    let artifacts: Vec<Vec<u8>> = (1..5).map(artifact).collect();
    let mut server = Serving::start(state.path(), "").await;
    let mut live = server.sound_version().await;
    let (mut old, mut new) = (0, 0);
    for _ in 0..kills {
        let until = Duration::from_micros(rng.random_range(0..250_000));
        let (mut admin, artifacts) = (server.admin.clone(), artifacts.clone());
        let acknowledged = tokio::spawn(async move {
            let mut acknowledged = live;
            for artifact in artifacts.iter().cycle() {
                let source = Some(Source::Artifact(artifact.clone().into()));
                match admin.load_partition(LoadPartitionRequest { source, ..Default::default() }).await {
                    Ok(loaded) => acknowledged = loaded.into_inner().partition.unwrap().version,
                    Err(_) => break,
                }
            }
            acknowledged
        });
        tokio::time::sleep(until).await;
        server.kill();
        let acknowledged = acknowledged.await.unwrap();
        server = Serving::start(state.path(), "").await;
        live = server.sound_version().await;
        assert!(live == acknowledged || live == acknowledged + 1, "{live} is live, {acknowledged} was acknowledged");
        if live == acknowledged { old += 1 } else { new += 1 }
    }
    eprintln!("{kills} kills: {old} times the last acknowledged version, {new} times the one that was being loaded");
}

/// A small disk (tmpfs) that only its own processes see. Unmounted with the last of them.
#[cfg(target_os = "linux")]
struct SmallDisk {
    holder: Child,
    /// Where those processes see it.
    mounted: tempfile::TempDir,
}

#[cfg(target_os = "linux")]
impl SmallDisk {
    /// `None` where this system lets a user mount nothing, as some containers do.
    fn mount(mebibytes: u32) -> Option<Self> {
        let mounted = tempfile::tempdir().unwrap();
        let script = format!("mount -t tmpfs -o size={mebibytes}m tmpfs \"$0\" && echo mounted && exec sleep 600");
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .arg(mounted.path())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let disk = Self { holder, mounted };
        (line == "mounted\n").then_some(disk)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--preserve-credentials", "--user", "--mount", "--target", &self.holder.id().to_string(), program]);
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> bool {
        self.command(program).args(args).stderr(Stdio::null()).status().unwrap().success()
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_refuses_loads_loses_nothing_and_serves_on() {
    let Some(disk) = SmallDisk::mount(96) else {
        // Where all tests must run, one that shows nothing does not pass.
        assert!(std::env::var_os("TESTS_MUST_RUN").is_none(), "this system lets no user mount a tmpfs");
        eprintln!("SKIPPED: this system lets no user mount a tmpfs");
        return;
    };
    let state = disk.mounted.path().join("state");
    let filler = disk.mounted.path().join("filler");
    let filler = filler.to_str().unwrap();
    let start = || Serving::start_by(disk.command(env!("CARGO_BIN_EXE_delo")), &state, "");
    let mut server = start().await;
    let before = server.load(artifact(1)).await.unwrap();
    assert!(!disk.run("dd", &["if=/dev/zero", &format!("of={filler}"), "bs=4096"]), "the disk has no end");

    let status = server.load(artifact(2)).await.unwrap_err();
    assert!(status.code() == tonic::Code::Unavailable && status.message().contains("state directory"), "{status:?}");
    assert_eq!(server.sound_version().await, before);
    server.kill();
    let mut server = start().await;
    assert_eq!(server.sound_version().await, before);

    assert!(disk.run("rm", &[filler]));
    let after = server.load(artifact(2)).await.unwrap();
    assert!(after > before);
    assert_eq!(server.sound_version().await, after);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_the_size_of_a_file_refuses_loads_loses_nothing_and_serves_on() {
    let state = tempfile::tempdir().unwrap();
    let live = Serving::start(state.path(), "").await.sound_version().await;
    let mut shell = Command::new("sh");
    // In blocks of 512 or 1,024 bytes: less than an artifact.
    shell.args(["-c", "ulimit -f 1000 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_delo")]);
    let mut server = Serving::start_by(shell, state.path(), "").await;
    for _ in 0..2 {
        let status = server.load(artifact(1)).await.unwrap_err();
        assert!(status.code() == tonic::Code::Unavailable && status.message().contains("state directory"), "{status:?}");
        assert_eq!(server.sound_version().await, live);
    }
    server.kill();
    let mut server = Serving::start(state.path(), "").await;
    assert_eq!(server.sound_version().await, live);
    assert_eq!(server.load(artifact(1)).await.unwrap(), live + 1);
}

#[cfg(feature = "failpoints")]
mod steps {
    use delo_proto::RegistryStatus;
    use delo_registry::remote::{Storage, push};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn killed_at_every_step_of_a_load_it_comes_back_with_the_catalogue_of_that_step() {
        let state = tempfile::tempdir().unwrap();
        let mut live = Serving::start(state.path(), "").await.sound_version().await;
        for (step, survives) in [
            ("registry.read", false),
            ("registry.tried", false),
            ("state.artifact.written", false),
            ("state.artifact.renamed", false),
            ("state.catalogue.written", false),
            ("state.catalogue.renamed", true),
            ("state.committed", true),
            ("registry.committed", true),
        ] {
            let mut server = Serving::start(state.path(), &format!("{step}=return")).await;
            assert!(server.load(artifact(1)).await.is_err(), "{step} was not met");
            assert!(!server.process.wait().unwrap().success());
            let expected = live + u64::from(survives);
            live = Serving::start(state.path(), "").await.sound_version().await;
            assert_eq!(live, expected, "after a crash at {step}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn killed_at_every_step_of_taking_over_a_former_layout_it_comes_back_with_all_of_it() {
        let state = tempfile::tempdir().unwrap();
        let mut server = Serving::start(state.path(), "").await;
        let live = server.load(artifact(1)).await.unwrap();
        server.kill();
        let own = state.path().join("delo-state");
        for name in ["partitions", "lock"] {
            std::fs::rename(own.join(name), state.path().join(name)).unwrap();
        }
        for file in std::fs::read_dir(&own).unwrap().map(|entry| entry.unwrap()) {
            if file.file_name().to_string_lossy().starts_with("catalogue-") {
                std::fs::rename(file.path(), state.path().join(file.file_name())).unwrap();
            }
        }
        for step in
            ["state.adopted.written", "state.adopted.renamed", "state.catalogue.written", "state.catalogue.renamed", "state.committed"]
        {
            std::fs::remove_dir_all(&own).unwrap();
            let command = Command::new(env!("CARGO_BIN_EXE_delo"))
                .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--metrics-listen", "off"])
                .env("DELO_CATALOGUE__STATE_DIR", state.path())
                .env("FAILPOINTS", format!("{step}=return"))
                .stderr(Stdio::null())
                .status();
            assert!(!command.unwrap().success(), "{step} was not met");
            assert_eq!(Serving::start(state.path(), "").await.live().await, live, "after a crash at {step}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_disk_refuses_a_load_and_loses_nothing() {
        let state = tempfile::tempdir().unwrap();
        let live = Serving::start(state.path(), "").await.sound_version().await;
        // First the artifact finds no room, then the catalogue.
        for writes in ["1*return->off", "1*off->1*return->off"] {
            let mut server = Serving::start(state.path(), &format!("state.write={writes}")).await;
            let status = server.load(artifact(1)).await.unwrap_err();
            assert!(status.code() == tonic::Code::Unavailable && status.message().contains("state directory"), "{status:?}");
            assert_eq!(server.sound_version().await, live);
            server.kill();
            assert_eq!(Serving::start(state.path(), "").await.sound_version().await, live);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_follows_from_a_manifest_that_cannot_be_written_down() {
        let (state, registry) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let live = Serving::start(state.path(), "").await.sound_version().await;
        push(&Storage::Directory(registry.path().to_owned()), artifact(1).into(), None, true).await.unwrap();
        let following = async |failpoints: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_delo"));
            command.env("DELO_REGISTRY__MANIFEST", registry.path()).env("DELO_REGISTRY__POLL_SECONDS", "0.05");
            Serving::start_by(command, state.path(), failpoints).await
        };
        let until = async |server: &mut Serving, wanted: fn(&RegistryStatus) -> bool| {
            for _ in 0..600 {
                let status = server.admin.get_status(GetStatusRequest {}).await.unwrap().into_inner().registry.unwrap();
                if wanted(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("the status never came: {:?}", server.admin.get_status(GetStatusRequest {}).await);
        };
        let mut server = following("state.write=return").await;
        let status = until(&mut server, |status| !status.error.is_empty()).await;
        assert!(status.error.contains("state directory") && !status.in_sync, "{status:?}");
        assert_eq!(server.sound_version().await, live);
        server.kill();
        let mut server = following("").await;
        until(&mut server, |status| status.in_sync && status.revision == 1).await;
        assert_eq!(server.sound_version().await, live + 1);
    }
}
