//! The real program: its commands against a server of its own, its exit codes, its one line on stderr.
#[path = "common/authority.rs"]
mod authority;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use delo_model::{KeySignal, Layout, Metric};
use serde_json::Value;

fn artifact(task: &str) -> Vec<u8> {
    let seed = task.bytes().map(u64::from).sum();
    let model = delo_fixtures::random_model(delo_fixtures::spec(Layout::RankOne, 3), 7, seed);
    delo_fixtures::artifact(task, &model, delo_fixtures::key_rule(Metric::Whitened, KeySignal::Parts { layer: 3 }), seed)
}

fn delo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_delo")).args(args).output().unwrap()
}

/// Runs a command that must succeed and reads what it prints as JSON.
fn json(args: &[&str]) -> Value {
    let output = delo(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs a command that must fail with this code, and returns its one line.
fn failure(args: &[&str], code: i32) -> String {
    let output = delo(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{args:?}: not one line: {stderr}");
    assert!(output.stdout.is_empty());
    stderr
}

/// Waits until this holds, at most a minute: a bound, so that a test that waits in vain ends.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what} never came");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Writes a file and returns its path, as a flag takes it.
fn write_file(dir: &std::path::Path, name: &str, text: &str) -> String {
    let file = dir.join(name);
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// `delo serve` on ports that the system chose.
struct Serving {
    process: Child,
    classifier: String,
    admin: String,
    metrics: String,
    /// What it logged after it served.
    log: Option<std::thread::JoinHandle<Vec<String>>>,
    partitions: tempfile::TempDir,
}

impl Serving {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// With these settings, by environment variable.
    fn start_with(settings: &[(&str, &str)]) -> Self {
        let partitions = tempfile::tempdir().unwrap();
        for task in ["food", "travel"] {
            std::fs::write(partitions.path().join(format!("{task}.safetensors")), artifact(task)).unwrap();
        }
        let free = "127.0.0.1:0";
        let mut process = Command::new(env!("CARGO_BIN_EXE_delo"))
            .args(["serve", "--listen", free, "--admin-listen", free, "--metrics-listen", free, "--partitions"])
            .arg(partitions.path())
            .env("DELO_LOGGING__FORMAT", "json")
            .envs(settings.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
        let ready: Value = lines
            .by_ref()
            .map(|line| serde_json::from_str::<Value>(&line).unwrap_or_else(|_| panic!("no JSON: {line}")))
            .find(|line| line["message"] == "serving")
            .expect("it ended before it served");
        let address = |of: &str| format!("http://{}", ready[of].as_str().unwrap());
        let [classifier, admin, metrics] = ["classifier", "admin", "metrics"].map(address);
        // Read to the end, or the server would block on a full pipe.
        let log = Some(std::thread::spawn(move || lines.collect()));
        Self { process, classifier, admin, metrics, log, partitions }
    }

    #[cfg(unix)]
    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.process.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_session_of_client_commands() {
    let serving = Serving::start();
    let (server, admin) = (["--server", &serving.classifier], ["--server", &serving.admin]);

    let answer = json(&[&["classify", "--text", "soup", "--top-k", "0", "--explain", "--json"], &server[..]].concat());
    assert_eq!(answer["scores"].as_array().unwrap().len(), 7);
    assert_eq!(answer["modalities"]["image"], "PROXIED");
    assert_eq!(answer["factors"].as_array().unwrap().len(), 18);
    let human = delo(&[&["classify", "--text", "soup", "--task", "food"], &server[..]].concat());
    assert!(String::from_utf8(human.stdout).unwrap().starts_with("task food (version 1)"));

    let file = serving.partitions.path().join("symbols.bin");
    std::fs::write(&file, artifact("symbols")).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(json(&[&["admin", "load", file, "--json"], &admin[..]].concat())["version"], 1);
    assert_eq!(json(&[&["admin", "load", "--uri", "symbols.bin", "--json"], &admin[..]].concat())["version"], 2);
    let list = json(&[&["admin", "list", "--json"], &admin[..]].concat());
    let tasks: Vec<_> = list["partitions"].as_array().unwrap().iter().map(|p| p["task"].as_str().unwrap().to_owned()).collect();
    assert_eq!(tasks, ["food", "symbols", "travel"]);
    assert_eq!(json(&[&["classify", "--text", "a", "--task", "symbols", "--json"], &server[..]].concat())["partition_version"], 2);
    assert_eq!(json(&[&["admin", "unload", "symbols", "--json"], &admin[..]].concat())["task"], "symbols");
    let status = json(&[&["admin", "status", "--json"], &admin[..]].concat());
    assert_eq!((&status["state"], &status["partitions"], &status["routing_metric"]), (&"SERVING".into(), &2.into(), &"whitened".into()));

    let line = failure(&[&["classify", "--text", "a", "--task", "symbols"], &server[..]].concat(), 1);
    assert!(line.contains("NotFound") && line.contains("symbols"), "{line}");
    let line = failure(&[&["admin", "sync"], &admin[..]].concat(), 1);
    assert!(line.contains("registry.manifest"), "{line}");
    let line = failure(&[&["admin", "unload", "symbols"], &admin[..]].concat(), 1);
    assert!(line.contains("delo admin list"), "{line}");
}

#[test]
#[cfg(unix)]
fn recorded_decisions_are_made_again_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().join("decisions.jsonl");
    let records = records.to_str().unwrap();
    let mut serving = Serving::start_with(&[("DELO_RECORDS__FILE", records), ("DELO_RECORDS__PAYLOAD", "true")]);
    for text in ["soup", "a train", "bread and butter", "a red sports car"] {
        json(&["classify", "--text", text, "--json", "--server", &serving.classifier]);
    }
    serving.signal("-TERM");
    assert!(serving.process.wait().unwrap().success());
    let partitions = serving.partitions.path();
    let here = ["--partitions", partitions.to_str().unwrap()];
    let same = json(&[&["replay", records, "--json", "--fail-below", "1"], &here[..]].concat());
    assert_eq!((&same["replayed"], &same["agreement"], &same["moves"]), (&4.into(), &1.0.into(), &Value::Array(Vec::new())));

    // Without food, all is travel.
    std::fs::remove_file(partitions.join("food.safetensors")).unwrap();
    let differences = dir.path().join("differences.jsonl");
    let args = [&["replay", records, "--fail-below", "1", "--differences", differences.to_str().unwrap()], &here[..]].concat();
    let output = delo(&args);
    let moved = String::from_utf8(output.stdout).unwrap();
    let food = std::fs::read_to_string(records).unwrap().matches("\"answer\":{\"task\":\"food\"").count();
    assert!(food > 0, "choose texts of which one goes to food: {moved}");
    assert!(moved.contains(&format!("{food}  food → travel")), "{moved}");
    assert_eq!(output.status.code(), Some(1));
    let lines = std::fs::read_to_string(&differences).unwrap();
    assert!(lines.lines().count() >= food && !lines.contains("soup"), "{lines}");
}

#[test]
fn a_shell_completes_commands_and_the_tasks_of_the_server() {
    let serving = Serving::start();
    let script = String::from_utf8(delo(&["completions", "bash"]).stdout).unwrap();
    assert!(script.contains("DELO_COMPLETE") && script.contains("complete "), "{script}");
    let completed = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_delo"));
        command.env("DELO_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string()).env("_CLAP_IFS", "\n");
        command.env("_CLAP_COMPLETE_COMP_TYPE", "9").env("_CLAP_COMPLETE_SPACE", "false");
        String::from_utf8(command.arg("--").args(words).output().unwrap().stdout).unwrap()
    };
    assert!(completed(&["delo", "cla"]).contains("classify"));
    let tasks = completed(&["delo", "classify", "--server", &serving.classifier, "--task", ""]);
    assert_eq!(tasks.lines().collect::<Vec<_>>(), ["food", "travel"]);
    // Where no server answers, there are none, and no error.
    assert_eq!(completed(&["delo", "classify", "--server", "http://127.0.0.1:9", "--task", ""]), "");
}

#[test]
fn shows_its_token_or_its_certificate_to_a_server_that_asks_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| write_file(dir.path(), name, text);
    let authority = authority::Authority::new("authority");
    let (certificate, key) = authority.issue("server", &["localhost"]).write(dir.path());
    let client = authority.issue("ops.example", &[]);
    let (cert, cert_key, ca) = (write("ops.pem", &client.certificate), write("ops.key", &client.key), write("ca.pem", &authority.pem));
    let (token, wrong) = (write("token", "app-token\n"), write("wrong", "another"));
    let clients = write("clients.toml", &authority::clients(&[("app", "classify", "app-token")], &[("ops", "admin", "ops.example")]));
    let serving = Serving::start_with(&[
        ("DELO_TLS__CERTIFICATE", certificate.to_str().unwrap()),
        ("DELO_TLS__KEY", key.to_str().unwrap()),
        ("DELO_TLS__CLIENT_CA", &ca),
        ("DELO_TLS__CLIENT_CERTIFICATE", "optional"),
        ("DELO_AUTH__CLIENTS_FILE", &clients),
    ]);
    // The certificate names the host, not its address.
    let named = |address: &str| address.replace("http://127.0.0.1", "https://localhost");
    let (server, admin) = (named(&serving.classifier), named(&serving.admin));

    let classify = ["classify", "--text", "soup", "--task", "food", "--json", "--server", &server, "--ca", &ca];
    assert_eq!(json(&[&classify[..], &["--token-file", &token]].concat())["task"], "food");
    let with_variable = Command::new(env!("CARGO_BIN_EXE_delo")).args(classify).env("DELO_TOKEN", "app-token").output().unwrap();
    assert!(with_variable.status.success(), "{}", String::from_utf8_lossy(&with_variable.stderr));
    for given in [&[][..], &["--token-file", &wrong]] {
        let line = failure(&[&classify[..], given].concat(), 1);
        assert!(line.contains("Unauthenticated") && line.contains("--token-file") && !line.contains("another"), "{line}");
    }

    let list = ["admin", "list", "--json", "--server", &admin, "--ca", &ca];
    let line = failure(&[&list[..], &["--token-file", &token]].concat(), 1);
    assert!(line.contains("PermissionDenied"), "{line}");
    let of_ops = ["--client-cert", &cert, "--client-key", &cert_key];
    assert_eq!(json(&[&list[..], &of_ops].concat())["partitions"].as_array().unwrap().len(), 2);

    let line = failure(&["classify", "--text", "soup", "--server", &server], 2);
    assert!(line.contains("--ca"), "{line}");
    let stranger = write("stranger.pem", &authority::Authority::new("stranger").pem);
    let line = failure(&["classify", "--text", "soup", "--server", &server, "--ca", &stranger, "--token-file", &token], 1);
    assert!(line.contains("signed by --ca"), "{line}");
}

#[test]
fn says_what_is_wrong_with_a_connection_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| write_file(dir.path(), name, text);
    let authority = authority::Authority::new("authority");
    let (certificate, key) = authority.issue("server", &["localhost"]).write(dir.path());
    let (ca, stranger) = (write("ca.pem", &authority.pem), authority::Authority::new("stranger"));
    let pair = |name: &str, issued: authority::Issued| {
        let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
        [write(&certificate, &issued.certificate), write(&key, &issued.key)]
    };
    let good = pair("good", authority.issue("app", &[]));
    let expired = pair("expired", authority.issue_for_years("app", &[], [2020, 2021]));
    let early = pair("early", authority.issue_for_years("app", &[], [4000, 4001]));
    let strange = pair("strange", stranger.issue("app", &[]));
    let other_ca = write("stranger.pem", &stranger.pem);

    let plain = Serving::start();
    let secure = Serving::start_with(&[
        ("DELO_TLS__CERTIFICATE", certificate.to_str().unwrap()),
        ("DELO_TLS__KEY", key.to_str().unwrap()),
        ("DELO_TLS__CLIENT_CA", &ca),
        ("DELO_TLS__CLIENT_CERTIFICATE", "required"),
    ]);
    let https = |address: &str| address.replace("http://127.0.0.1", "https://localhost");
    let (server, by_address) = (https(&secure.classifier), secure.classifier.replace("http:", "https:"));
    let classify = |server: &str, more: &[&str]| failure(&[&["classify", "--text", "soup", "--server", server], more].concat(), 1);
    let with_ca = |server: &str, ca: &str| classify(server, &["--ca", ca]);
    let showing = |[certificate, key]: &[String; 2]| classify(&server, &["--ca", &ca, "--client-cert", certificate, "--client-key", key]);

    for (line, words) in [
        (classify("http://127.0.0.1:1", &[]), &["no server answers", "delo serve"][..]),
        (with_ca("https://localhost:1", &ca), &["no server answers", "delo serve"]),
        (classify(&secure.classifier, &[]), &["speaks TLS", "https://", "--ca"]),
        (failure(&["admin", "list", "--server", &secure.admin], 1), &["speaks TLS", "https://", "--ca"]),
        (with_ca(&https(&plain.classifier), &ca), &["does not speak TLS", "http://"]),
        (classify(&plain.metrics, &[]), &["50051", "50052"]),
        (with_ca(&https(&plain.metrics), &ca), &["does not speak TLS"]),
        (with_ca(&server, &other_ca), &["not signed by --ca"]),
        (with_ca(&by_address, &ca), &["localhost", "not for 127.0.0.1"]),
        (with_ca(&server, &good[1]), &["good.key", "no certificate in PEM"]),
        (with_ca(&server, &ca), &["--client-cert"]),
        (showing(&expired), &["--client-cert", "expired"]),
        (showing(&early), &["--client-cert", "not valid yet"]),
        (showing(&strange), &["--client-cert", "not signed by those whom the server trusts"]),
        (showing(&[good[0].clone(), expired[1].clone()]), &["good.pem", "expired.key"]),
        (classify(&plain.admin, &[]), &["right port"]),
        (failure(&["admin", "list", "--server", &plain.classifier], 1), &["right port"]),
    ] {
        for words in words {
            assert!(line.contains(words), "{line:?} does not say {words:?}");
        }
        assert!(!line.contains("h2 protocol error") && !line.contains("operation was canceled"), "{line}");
    }
    let answer = json(
        &[
            &["classify", "--text", "soup", "--json", "--server", &server, "--ca", &ca][..],
            &["--client-cert", &good[0], "--client-key", &good[1]],
        ]
        .concat(),
    );
    assert_eq!(answer["modalities"]["text"], "PRESENT");
}

#[test]
fn texts_and_names_may_begin_with_a_hyphen_and_the_answer_tells_how_the_text_was_read() {
    let serving = Serving::start();
    let server = ["--server", &serving.classifier];
    for text in ["-5 degrees", "- slice of pizza", "-x", "--json", "--", "-"] {
        let answer = json(&[&["classify", "--text", text, "--json"], &server[..]].concat());
        assert_eq!(answer["modalities"]["text_reading"]["truncated"], false, "{text}");
    }
    let line = failure(&[&["classify", "--text", "a", "--task", "-5"], &server[..]].concat(), 1);
    assert!(line.contains("NotFound") && line.contains("\"-5\""), "{line}");
    let line = failure(&["classify", "--image", "-photo.png"], 2);
    assert!(line.contains("--flag=VALUE"), "{line}");

    let shown = |text: &str, more: &[&str]| {
        let output = delo(&[&["classify", "--text", text], &server[..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let plain = shown("soup", &[]);
    assert!(!plain.contains("notice") && !plain.contains("cosine\n"), "{plain}");
    assert!(shown("\u{1f600}", &[]).contains("no word of the text is known to the model"));
    assert!(shown(&"soup ".repeat(50), &[]).contains("the text was cut at 38 tokens"));
    let lines = |shown: &str| shown.lines().filter(|line| line.starts_with("food ") || line.starts_with("travel ")).count();
    assert_eq!((lines(&shown("soup", &["--candidates", "1"])), lines(&shown("soup", &["--explain"]))), (1, 2));
    let line = failure(&[&["classify", "--text", " "], &server[..]].concat(), 1);
    assert!(line.contains("the text has no word") && line.contains("field text"), "{line}");
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_server_well() {
    for signal in ["-TERM", "-INT"] {
        let mut serving = Serving::start();
        serving.signal(signal);
        until("the end of the server", || serving.process.try_wait().unwrap().is_some());
        assert_eq!(serving.process.wait().unwrap().code(), Some(0));
        let log = serving.log.take().unwrap().join().unwrap().join("\n");
        assert!(log.contains("draining") && log.contains("stopped"), "{log}");
    }
}

/// A server whose log no test reads, and its addresses.
#[cfg(unix)]
struct Unlogged {
    process: Child,
    admin: String,
    classifier: String,
    health: Vec<(&'static str, String)>,
}

#[cfg(unix)]
impl Unlogged {
    fn start(stderr: Stdio) -> Self {
        // The log can't say which ports the system chose.
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let [classifier, admin, metrics] = [free(), free(), free()].map(|address| address.to_string());
        let health: Vec<(&'static str, String)> =
            vec![("DELO_SERVER__LISTEN", classifier.clone()), ("DELO_ADMIN__LISTEN", admin.clone()), ("DELO_METRICS__LISTEN", metrics)];
        let process = Command::new(env!("CARGO_BIN_EXE_delo")).arg("serve").envs(health.clone()).stderr(stderr).spawn().unwrap();
        Self { process, admin: format!("http://{admin}"), classifier: format!("http://{classifier}"), health }
    }

    fn until_healthy(&mut self) {
        let healthy = |health: &[(&'static str, String)]| {
            Command::new(env!("CARGO_BIN_EXE_delo")).arg("health").envs(health.iter().cloned()).output().unwrap().status.success()
        };
        until("health", || {
            assert!(self.process.try_wait().unwrap().is_none(), "it ended before it served");
            healthy(&self.health)
        });
    }

    fn works_and_drains(mut self) {
        assert_eq!(json(&["admin", "unload", "objects", "--json", "--server", &self.admin])["task"], "objects");
        assert_eq!(json(&["admin", "status", "--json", "--server", &self.admin])["state"], "SERVING");
        assert!(delo(&["classify", "--text", "soup", "--server", &self.classifier]).status.success());
        for signal in ["-HUP", "-TERM"] {
            assert!(Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap().success());
        }
        assert_eq!(self.process.wait().unwrap().code(), Some(0));
    }
}

#[cfg(unix)]
impl Drop for Unlogged {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(unix)]
#[test]
fn a_log_whose_reader_has_gone_costs_lines_and_nothing_else() {
    let mut server = Unlogged::start(Stdio::piped());
    drop(server.process.stderr.take());
    server.until_healthy();
    server.works_and_drains();
}

#[cfg(unix)]
#[test]
fn a_log_that_nobody_reads_costs_lines_and_nothing_else() {
    let (reader, writer) = std::io::pipe().unwrap();
    // Full from the start.
    let fill = writer.try_clone().unwrap();
    let full = std::thread::spawn(move || {
        use std::io::Write;
        let mut fill = fill;
        while fill.write_all(&[b'.'; 4096]).is_ok() {}
    });
    let mut server = Unlogged::start(Stdio::from(writer));
    server.until_healthy();
    server.works_and_drains();
    drop(reader);
    full.join().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_log_on_a_full_disk_costs_lines_and_nothing_else() {
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let mut server = Unlogged::start(full());
    server.until_healthy();
    server.works_and_drains();
    // Nor does it change how a command fails.
    let failed = Command::new(env!("CARGO_BIN_EXE_delo")).args(["partition", "verify", "/nowhere"]).stderr(full()).status().unwrap();
    assert_eq!(failed.code(), Some(1));
    let failed = Command::new(env!("CARGO_BIN_EXE_delo")).args(["serve", "--nonsense"]).stderr(full()).status().unwrap();
    assert_eq!(failed.code(), Some(2));
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_a_server_that_waits_for_a_call() {
    use std::io::Write;
    for (second, code) in [("-TERM", 143), ("-INT", 130)] {
        let long = "3600.0";
        let mut serving = Serving::start_with(&[
            ("DELO_SHUTDOWN__DRAIN_SECONDS", long),
            ("DELO_DEADLINE__DEFAULT_SECONDS", long),
            ("DELO_DEADLINE__MAX_SECONDS", long),
        ]);
        // A call whose message never arrives: HTTP/2's preface, SETTINGS, and HEADERS with a path that
        // follows literally (RFC 7541, 6.2.2).
        let mut stream = std::net::TcpStream::connect(serving.classifier.trim_start_matches("http://")).unwrap();
        let path = b"/delo.v1.Classifier/Classify";
        let mut headers = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        headers.extend(path);
        headers.extend([0x01, 4]);
        headers.extend(b"host");
        headers.extend([0x0f, 0x10, 16]);
        headers.extend(b"application/grpc");
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        bytes.extend([0, 0, u8::try_from(headers.len()).unwrap(), 1, 4, 0, 0, 0, 1]);
        bytes.extend(headers);
        stream.write_all(&bytes).unwrap();
        // The server answers a PING after it has read what came before it.
        stream.write_all(&[&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], b"question"].concat()).unwrap();
        let mut received = Vec::new();
        while !received.windows(8).any(|window| window == b"question") {
            let mut piece = [0; 512];
            let n = std::io::Read::read(&mut stream, &mut piece).unwrap();
            assert!(n > 0, "the connection was closed");
            received.extend_from_slice(&piece[..n]);
        }
        serving.signal("-TERM");
        until("the end of the server", || {
            let ended = serving.process.try_wait().unwrap().is_some();
            if !ended {
                // Sent again: two signals that follow each other closely are one request.
                let _ = Command::new("kill").args([second, &serving.process.id().to_string()]).output().unwrap();
            }
            ended
        });
        assert_eq!(serving.process.wait().unwrap().code(), Some(code));
        let log = serving.log.take().unwrap().join().unwrap().join("\n");
        assert!(log.contains("draining") && log.contains("a second signal"), "{log}");
    }
}

#[cfg(unix)]
#[test]
fn sighup_takes_another_certificate_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(authority::Authority::new);
    let (certificate, key) = old.issue("server", &["localhost"]).write(dir.path());
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &new.pem).unwrap();
    let serving = Serving::start_with(&[
        ("DELO_TLS__CERTIFICATE", certificate.to_str().unwrap()),
        ("DELO_TLS__KEY", key.to_str().unwrap()),
        ("DELO_TLS__RELOAD_SECONDS", "86400"),
    ]);
    let server = serving.classifier.replace("http://127.0.0.1", "https://localhost");
    let classified = || delo(&["classify", "--text", "soup", "--server", &server, "--ca", ca.to_str().unwrap()]).status.success();
    assert!(!classified());
    new.issue("server", &["localhost"]).write(dir.path());
    serving.signal("-HUP");
    until("the new certificate", classified);
}

#[test]
fn health_asks_the_server_by_its_settings_whatever_it_asks_of_clients() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority::Authority::new("authority");
    let (certificate, key) = authority.issue("server", &["elsewhere.example"]).write(dir.path());
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &authority.pem).unwrap();
    let clients = dir.path().join("clients.toml");
    std::fs::write(&clients, authority::clients(&[("app", "classify", "token")], &[])).unwrap();
    let [certificate, key, ca, clients] = [certificate, key, ca, clients].map(|path| path.to_str().unwrap().to_owned());
    let tls = [("DELO_TLS__CERTIFICATE", certificate.as_str()), ("DELO_TLS__KEY", &key), ("DELO_AUTH__CLIENTS_FILE", &clients)];
    let required = [("DELO_TLS__CLIENT_CA", ca.as_str()), ("DELO_TLS__CLIENT_CERTIFICATE", "required")];
    for settings in [&[][..], &tls, &[&tls[..], &required].concat()] {
        let mut serving = Serving::start_with(settings);
        let health = |more: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_delo"));
            command.arg("health").args(more).envs(settings.iter().copied()).env("DELO_METRICS__LISTEN", "off");
            command.env("DELO_SERVER__LISTEN", serving.classifier.trim_start_matches("http://")).output().unwrap()
        };
        for more in [&[][..], &["--live"]] {
            let answer = health(more);
            assert_eq!(answer.status.code(), Some(0), "{}", String::from_utf8_lossy(&answer.stderr));
        }
        let address = serving.classifier.clone();
        serving.process.kill().unwrap();
        serving.process.wait().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_delo"));
        command.arg("health").envs(settings.iter().copied()).env("DELO_METRICS__LISTEN", "off");
        let answer = command.env("DELO_SERVER__LISTEN", address.trim_start_matches("http://")).output().unwrap();
        assert_eq!(answer.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&answer.stderr).contains("no server answers"), "{answer:?}");
    }
}

/// Needs root: the limit of processes is set for another user, who owns none.
#[cfg(target_os = "linux")]
#[test]
fn too_few_threads_end_a_start_with_one_line() {
    let dir = tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let program = dir.path().join("delo");
    std::fs::copy(env!("CARGO_BIN_EXE_delo"), &program).unwrap();
    let serve = &["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--metrics-listen", "off"][..];
    // A name is looked up by another thread.
    let classify = &["classify", "--text", "soup", "--server", "http://localhost:1"][..];
    for (limit, args) in [("1", serve), ("2", serve), ("4", serve), ("6", serve), ("1", classify)] {
        let output = Command::new("setpriv")
            .args(["--reuid", "54321", "--clear-groups", "prlimit", &format!("--nproc={limit}:{limit}")])
            .arg(&program)
            .args(args)
            .output();
        let stderr = output.as_ref().map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).unwrap_or_default();
        if stderr.is_empty() || stderr.starts_with("setpriv: ") || stderr.starts_with("prlimit: ") {
            // Where all tests must run, one that shows nothing does not pass.
            assert!(std::env::var_os("TESTS_MUST_RUN").is_none(), "this needs root, setpriv and prlimit: {stderr} {output:?}");
            eprintln!("SKIPPED: this needs root, setpriv and prlimit: {stderr}");
            return;
        }
        assert_eq!(output.unwrap().status.code(), Some(1), "{stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains("raise the limit of processes and threads"), "{stderr}");
    }
}

#[cfg(unix)]
#[test]
fn variables_that_are_no_settings_stop_no_start_and_broken_ones_are_named() {
    use std::os::unix::ffi::OsStringExt;
    let of_services = [
        ("DELO_PORT", "tcp://10.0.0.5:50051"),
        ("DELO_SERVICE_HOST", "10.0.0.5"),
        ("DELO_ADMIN_SERVICE_PORT_GRPC", "50052"),
        ("DELO_METRICS_PORT_9464_TCP_ADDR", "10.0.0.5"),
        ("DELO_ARGS", "--config /etc/delo/delo.toml"),
        ("DELO_HOME", "/var/lib/delo"),
    ];
    assert!(delo(&["classify", "--text", "soup", "--server", &Serving::start_with(&of_services).classifier]).status.success());
    let broken = std::ffi::OsString::from_vec(b"/etc/\xff".to_vec());
    for (name, value) in
        [("DELO_AUTH__CLIENTS_FILE", broken), ("DELO_BATCHING_MAX_TOKENS", "9".into()), ("DELO_SERVER__LISTEN", ":1".into())]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_delo")).arg("serve").env(name, value).output().unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && line.contains(name) && line.trim_end().lines().count() == 1, "{line}");
    }
}

#[test]
fn looks_at_partition_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("food.safetensors");
    let mut bytes = artifact("food");
    std::fs::write(&file, &bytes).unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(json(&["partition", "inspect", path, "--json"])["partition"]["task"], "food");
    assert_eq!(json(&["partition", "verify", path, "--json"])["ok"], true);
    let human = String::from_utf8(delo(&["partition", "inspect", path]).stdout).unwrap();
    assert!(human.contains("5 experts, rank 2") && human.contains("food-0"), "{human}");

    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    for command in ["inspect", "verify"] {
        let line = failure(&["partition", command, path], 1);
        assert!(line.contains("food.safetensors") && line.contains("checksum"), "{line}");
    }
}

/// Writes the key pair of RFC 8032, 7.1, test 1, as openssl does, and returns the two files.
fn write_keys(dir: &std::path::Path) -> [String; 2] {
    let private =
        "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
    let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
    [("private.pem", private), ("public.pem", public)].map(|(name, pem)| {
        let file = dir.join(name);
        std::fs::write(&file, pem).unwrap();
        file.to_str().unwrap().to_owned()
    })
}

#[test]
fn signs_a_partition_and_tells_a_wrong_signature() {
    let dir = tempfile::tempdir().unwrap();
    let [private, public] = write_keys(dir.path());
    let file = dir.path().join("food.safetensors");
    std::fs::write(&file, artifact("food")).unwrap();
    let path = file.to_str().unwrap();
    let line = failure(&["partition", "verify", path, "--public-key", &public], 1);
    assert!(line.contains("delo partition sign"), "{line}");
    assert!(delo(&["partition", "sign", path, "--key", &private]).status.success());
    assert_eq!(json(&["partition", "verify", path, "--public-key", &public, "--json"])["signed"], true);
    std::fs::write(&file, artifact("travel")).unwrap();
    let line = failure(&["partition", "verify", path, "--public-key", &public], 1);
    assert!(line.contains("of another file"), "{line}");
    let line = failure(&["partition", "sign", path, "--key", &public], 1);
    assert!(line.contains("openssl"), "{line}");
}

#[test]
fn a_registry_from_the_first_push_to_the_last_withdrawal() {
    let dir = tempfile::tempdir().unwrap();
    let [private, _] = write_keys(dir.path());
    let file = |name: &str| dir.path().join(format!("{name}.safetensors")).to_str().unwrap().to_owned();
    for task in ["food", "travel"] {
        std::fs::write(file(task), artifact(task)).unwrap();
    }
    let registry = dir.path().join("registry").to_str().unwrap().to_owned();
    let at = ["--registry", registry.as_str()];
    let run = |args: &[&str]| {
        let output = delo(&[args, &at[..]].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let list = || json(&[&["registry", "list", "--json"], &at[..]].concat());

    let pushed = run(&["registry", "push", &file("food"), &file("travel"), "--key", &private]);
    assert!(pushed.contains("pushed: task food") && pushed.contains(&format!("(revision 1) to the new registry {registry}\n")), "{pushed}");
    assert!(pushed.contains(&format!("(revision 2) in {registry}\n")), "{pushed}");
    let manifest = list();
    let sha256 = manifest["artifacts"][0]["sha256"].as_str().unwrap().to_owned();
    assert_eq!((&manifest["revision"], manifest["live"].as_object().unwrap().len()), (&2.into(), 0));
    assert_eq!(delo_registry::signature::digest(&std::fs::read(format!("{registry}/partitions/{sha256}.safetensors")).unwrap()), sha256);
    assert!(std::path::Path::new(&format!("{registry}/partitions/{sha256}.sig")).exists());
    assert!(run(&["registry", "push", &file("food"), "--live"]).contains("there already and live"));
    run(&["registry", "promote", "travel"]);
    assert!(run(&["registry", "promote", &format!("food@{}", &sha256[..6])]).contains("revision 4"));
    assert_eq!(list()["live"].as_object().unwrap().len(), 2);
    assert!(run(&["registry", "list"]).contains(&sha256[..12]));
    run(&["registry", "withdraw", "food"]);
    assert_eq!(list()["live"].as_object().unwrap().keys().collect::<Vec<_>>(), ["travel"]);

    let missing = file("missing");
    for (args, words) in [
        (&["registry", "promote", "space"][..], "delo registry list"),
        (&["registry", "withdraw", "food"], "nothing of task"),
        (&["registry", "push", &private], "not a delo partition"),
        (&["registry", "push", &missing], "missing"),
    ] {
        let line = failure(&[args, &at[..]].concat(), 1);
        assert!(line.contains(words), "{line}");
    }
    assert_eq!(list()["revision"], 5);
    let line = failure(&["registry", "withdraw", "food", "--registry", "https://user:word@host/"], 2);
    assert!(line.contains("credentials") && !line.contains("word"), "{line}");
}

#[test]
fn a_push_to_a_misspelt_address_is_refused_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("food.safetensors"), artifact("food")).unwrap();
    let push = |registry: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_delo"));
        command.args(["registry", "push", "food.safetensors", "--registry", registry]).current_dir(dir.path()).output().unwrap()
    };
    for registry in
        ["s3:/bucket/delo", "http:/host/x", "az:b", "file:reg", "~/reg", "", "gcs://b/x", "htp://h/x", " reg", "h:80/x", "no/reg"]
    {
        let output = push(registry);
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && line.starts_with("delo: ") && line.lines().count() == 1, "{registry}: {line}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{registry} made something");
    }
    let output = push("reg");
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let shown = dir.path().canonicalize().unwrap().join("reg").display().to_string();
    assert!(output.status.success() && line.trim_end().ends_with(&format!("to the new registry {shown}")), "{line}");
}

#[test]
fn pushes_at_the_same_time_all_survive() {
    let dir = tempfile::tempdir().unwrap();
    let registry = dir.path().join("registry");
    let tasks = ["animals", "food", "travel", "symbols"];
    let pushes = tasks.map(|task| {
        let file = dir.path().join(task);
        std::fs::write(&file, artifact(task)).unwrap();
        Command::new(env!("CARGO_BIN_EXE_delo"))
            .args(["registry", "push", "--live", "--registry"])
            .arg(&registry)
            .arg(file)
            .spawn()
            .unwrap()
    });
    for mut push in pushes {
        assert!(push.wait().unwrap().success());
    }
    let manifest = json(&["registry", "list", "--json", "--registry", registry.to_str().unwrap()]);
    assert_eq!((manifest["live"].as_object().unwrap().len(), &manifest["revision"]), (4, &4.into()));
}

#[test]
fn trains_every_session_into_a_folder_and_leaves_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    delo_fixtures::colours::write_data(dir.path(), false);
    let (data, out) = (dir.path().to_str().unwrap(), dir.path().join("out"));
    let train =
        ["train", "--data", data, "--all", "--out", out.to_str().unwrap(), "--epochs", "1", "--first-adapted-layer", "6", "--resume"];
    assert!(delo(&train).status.success());
    let written = ["warm", "cool"].map(|task| out.join(task).with_extension("safetensors"));
    assert_eq!(
        written.each_ref().map(|file| json(&["partition", "inspect", "--json", file.to_str().unwrap()])["partition"]["task"].clone()),
        ["warm", "cool"]
    );

    let kept = std::fs::read(&written[0]).unwrap();
    std::fs::remove_file(&written[1]).unwrap();
    assert!(delo(&train).status.success());
    assert!(written[1].exists());
    assert_eq!(std::fs::read(&written[0]).unwrap(), kept);

    let samples = dir.path().join("samples.jsonl");
    let report = json(&["eval", "--data", data, "--partitions", out.to_str().unwrap(), "--samples", samples.to_str().unwrap(), "--json"]);
    assert_eq!(report["samples"], std::fs::read_to_string(samples).unwrap().lines().count());

    let (folder, partitions) = (dir.path().join("report"), out.to_str().unwrap());
    let drawn = ["report", "--data", data, "--partitions", partitions, "--logs", partitions, "--out", folder.to_str().unwrap()];
    assert!(delo(&drawn).status.success());
    let page: Value = serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap();
    assert_eq!((&page["evaluation"]["oracle"], page["losses"].as_array().unwrap().len()), (&report["oracle"], 2));
    assert!(folder.join("loss.svg").exists() && folder.join("report.md").exists());
    assert!(failure(&drawn, 1).contains("--force"));
    for wrong in [&["train", "--data", data, "--out", "x"][..], &["train", "--data", data, "--task", "warm", "--all", "--out", "x"]] {
        failure(wrong, 2);
    }
    let file = written[0].to_str().unwrap();
    assert!(failure(&["train", "--data", data, "--all", "--out", file], 2).contains("folder"));
}

#[test]
fn partitions_with_prompts_are_trained_evaluated_served_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    delo_fixtures::colours::write_data(dir.path(), false);
    let (data, out) = (dir.path().to_str().unwrap(), dir.path().join("out"));
    let server = Serving::start();
    for (number, task, method) in [("0", "warm", "dualprompt"), ("1", "cool", "l2p")] {
        let file = out.join(task).with_extension("safetensors");
        let file = file.to_str().unwrap();
        let trained = delo(&["train", "--data", data, "--task", number, "--out", file, "--method", method, "--epochs", "1"]);
        assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
        assert_eq!(json(&["partition", "inspect", "--json", file])["partition"]["method"], method);
        let shown = String::from_utf8(delo(&["partition", "inspect", file]).stdout).unwrap();
        assert!(shown.contains(if method == "l2p" { "5 of 10 prompts of 5 tokens" } else { "prefixes of 5, 5, 20, 20, 20" }), "{shown}");
        assert!(delo(&["admin", "load", file, "--server", &server.admin]).status.success());
        let answer = json(&["classify", "--text", "a", "--task", task, "--server", &server.classifier, "--json"]);
        assert_eq!(answer["task"], task);
    }
    let report = json(&["eval", "--data", data, "--partitions", out.to_str().unwrap(), "--json"]);
    assert!(report["oracle"].is_object() && report["agnostic"].as_array().is_some_and(|columns| !columns.is_empty()), "{report}");

    let methods = ["linear", "dualprompt", "l2p"];
    let bench = ["bench", "engine", "--tasks", "0", "1", "--batch", "1", "--runs", "1", "--json", "--method"];
    let rows = json(&[&bench[..], &methods].concat());
    let rows: Vec<(Option<&str>, u64)> =
        rows["rows"].as_array().unwrap().iter().map(|row| (row["method"].as_str(), row["tokens"].as_u64().unwrap())).collect();
    let plain = rows[0].1;
    assert_eq!(rows, [(None, plain), (Some("linear"), plain), (Some("dualprompt"), plain), (Some("l2p"), plain + 25)]);
}

#[test]
fn prints_features_of_a_sample() {
    let features = json(&["features", "--text", "a cat", "--json"]);
    let config = &delo_fixtures::engine().backbone().config;
    assert_eq!(features["pooled"].as_array().unwrap().len(), config.hidden_size);
    assert_eq!(features["signals"].as_object().unwrap().len(), config.num_hidden_layers + 1);
    assert_eq!(features["presence"], "text_only");
    assert!(delo(&["features", "--text", "- a cat"]).status.success());
    let pooled = |more: &[&str]| json(&[&["features", "--json", "--text", "a [SEP] cat"], more].concat())["pooled"].clone();
    assert_ne!(pooled(&[]), pooled(&["--special-tokens"]));
    assert_eq!(pooled(&[]), json(&["features", "--json", "--text", "a [sep] cat"])["pooled"]);
}

#[test]
fn reads_texts_as_long_as_its_text_positions() {
    let pooled = |last: &str, more: &[&str]| {
        let words = format!("{}{last}", "cat ".repeat(60));
        json(&[&["features", "--json", "--text", words.as_str()], more].concat())["pooled"].clone()
    };
    assert_eq!(pooled("rain", &[]), pooled("soup", &[]), "cut at the checkpoint's 40 positions");
    let longer = ["--text-positions", "63"];
    assert_ne!(pooled("rain", &longer), pooled("soup", &longer));
    assert_eq!(pooled("rain", &["--text-positions", "40"]), pooled("rain", &[]));
    for positions in ["39", "8193", "0"] {
        let line = failure(&["features", "--text", "a", "--text-positions", positions], 2);
        assert!(line.contains("--text-positions") && line.contains("40") && line.contains("8192"), "{line}");
    }
    let rows = json(&["bench", "engine", "--text-positions", "90", "--tasks", "0", "--batch", "1", "--runs", "1", "--json"]);
    assert_eq!(rows["rows"][0]["tokens"], 90 + 65, "a text that fills the positions, an image CLS and 64 patches");
}

#[test]
fn wrong_usage_ends_with_2_and_one_line() {
    for args in [
        &["serve", "--listne", "127.0.0.1:0"][..],
        &["serve", "--listen", "nowhere"],
        &["serve", "--threads", "9223372036854775807"],
        &["serve", "--device", "gpu"],
        &["serve", "--precision", "f8"],
        &["classify"],
        &["admin", "load"],
        &["features"],
        &["partition", "inspect"],
        &["nonsense"],
    ] {
        let line = failure(args, 2);
        assert!(line.starts_with("delo: "), "{line}");
    }
    if cfg!(not(feature = "cuda")) {
        for command in [&["serve"][..], &["train", "--data", "x", "--task", "0", "--out", "x"]] {
            let line = failure(&[command, &["--device", "cuda:0"]].concat(), 2);
            assert!(line.contains("--features cuda") && line.contains("choose \"auto\" or \"cpu\""), "{line}");
        }
    }
}

#[test]
fn other_failures_end_with_1_and_one_line_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("delo.toml");
    std::fs::write(&config, "[batching]\nmax_tokns = 1\n").unwrap();
    let missing = dir.path().join("missing");
    let missing = missing.to_str().unwrap();
    let photo = dir.path().join("photo.jpg");
    std::fs::write(&photo, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").unwrap();
    let photo = photo.to_str().unwrap();
    for (args, words) in [
        (&["serve", "--config", config.to_str().unwrap()][..], "batching.max_tokns"),
        (&["serve", "--config", missing], "missing"),
        (&["classify", "--text", "a", "--server", "http://127.0.0.1:1"], "delo serve"),
        (&["admin", "list", "--server", "http://127.0.0.1:1"], "delo serve"),
        (&["partition", "verify", missing], "missing"),
        (&["features", "--image", missing], "missing"),
        (&["features", "--image", photo], "photo.jpg: the image is HEIC"),
        (&["features", "--text", "a", "--backbone", missing], "config.json"),
    ] {
        let line = failure(args, 1);
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn help_and_version_are_no_failure() {
    for args in [&["--help"][..], &["--version"], &["serve", "--help"], &["admin", "load", "--help"]] {
        assert!(delo(args).status.success());
    }
}
