//! The client against the program that the environment variable `DELO_BINARY` names.
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use delo_client::{Client, Code, Modality, Report, Retry, Sample};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::connecting::Authority;

const PIZZA: &str = "slice of pizza with cheese";

/// A process of the server, which ends with this value.
struct Served {
    process: Child,
    address: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `None`: no program is named, and the test is skipped.
fn serve(settings: &[(&str, &str)]) -> Option<Served> {
    let Some(binary) = std::env::var_os("DELO_BINARY") else {
        eprintln!("SKIPPED: DELO_BINARY names no server");
        return None;
    };
    match start(Path::new(&binary), settings) {
        Ok(served) => Some(served),
        Err(reason) => {
            assert!(std::env::var_os("TESTS_MUST_RUN").is_none(), "DELO_BINARY={}: {reason}", binary.display());
            eprintln!("SKIPPED: DELO_BINARY={}: {reason}", binary.display());
            None
        }
    }
}

fn start(binary: &Path, settings: &[(&str, &str)]) -> Result<Served, String> {
    let mut command = Command::new(binary);
    // The settings of the one who runs the tests are not meant for this server.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().to_uppercase().starts_with("DELO_") {
            command.env_remove(name);
        }
    }
    let own = [
        ("DELO_SERVER__LISTEN", "127.0.0.1:0"),
        ("DELO_ADMIN__LISTEN", "off"),
        ("DELO_METRICS__LISTEN", "off"),
        ("DELO_LOGGING__FORMAT", "json"),
    ];
    command.arg("serve").envs(own).envs(settings.iter().copied()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = command.spawn().map_err(|error| error.to_string())?;
    let stderr = process.stderr.take().ok_or("it has no standard error")?;
    let mut served = Served { process, address: String::new() };
    let mut seen = String::new();
    let mut lines = BufReader::new(stderr).lines();
    for line in lines.by_ref() {
        let line = line.map_err(|error| error.to_string())?;
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if entry["message"] == "serving" {
            served.address = entry["classifier"].as_str().ok_or("it does not say where it serves")?.to_owned();
            // A full pipe would cost its log lines.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(served);
        }
        seen.push_str(&line);
        seen.push('\n');
    }
    Err(format!("it ended before it served: {seen}"))
}

#[tokio::test]
async fn samples_are_classified_and_outcomes_reported() {
    let Some(served) = serve(&[]) else { return };
    let client = Client::connect(&served.address).await.unwrap();
    assert!(client.health().await.unwrap() && client.health_of("liveness").await.unwrap());
    assert_eq!(client.health_of("no-service").await.unwrap_err().code(), Code::NotFound);

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let sample = Sample::text(PIZZA).top_k(2).max_candidates(3).timings();
    let response = client.classify(sample).traceparent(&format!("00-{TRACE}-b7ad6b7169203331-01")).response().await.unwrap();
    assert!(response.traceparent().unwrap().contains(TRACE), "{:?}", response.metadata());
    let steps: Vec<_> = response.server_timing().into_iter().map(|(step, _)| step).collect();
    assert!(steps.iter().any(|step| step == "total") && steps.iter().any(|step| step == "compute"), "{steps:?}");
    let answer = response.into_answer();
    assert_eq!((answer.task.as_deref(), answer.label(), answer.scores.len()), (Some("food-drink"), Some("food-prepared"), 2));
    assert_eq!((answer.image, answer.text, answer.version), (Modality::Proxied, Modality::Present, 1));
    assert!(answer.probability().unwrap() > 0.9 && answer.timings.unwrap().total_seconds > 0.0 && answer.text_reading.unwrap().understood);

    let report = Report::of(&answer.request_id).true_task("food-drink").true_labels(["food-prepared"]);
    let outcome = client.report_outcome(report.clone()).await.unwrap();
    assert_eq!((outcome.routed_task.as_deref(), outcome.task_correct, outcome.label_correct), (Some("food-drink"), Some(true), Some(true)));
    assert!(outcome.counted && !client.report_outcome(report).await.unwrap().counted);
    assert_eq!(client.report_outcome(Report::of("never").true_task("objects")).await.unwrap_err().code(), Code::NotFound);

    let rejected = client.classify(Sample::text("qwrt zzz").reject(1.0)).await.unwrap();
    assert!(rejected.rejected() && rejected.task.is_none() && rejected.label().is_none());
    let given = client.classify(Sample::text(PIZZA).task("food-drink").top_k(0).explain()).await.unwrap();
    assert!(given.routing.is_none() && given.scores.len() > 5 && !given.factors.is_empty());

    let description = client.describe_tasks(["food-drink", "space"]).await.unwrap();
    assert_eq!(description.tasks.iter().map(|task| task.task.as_str()).collect::<Vec<_>>(), ["food-drink"]);
    assert_eq!(description.limits.unwrap().max_samples_per_call, 1024);
}

#[tokio::test]
async fn errors_name_the_field_and_the_reason() {
    let Some(served) = serve(&[]) else { return };
    let client = Client::connect(&served.address).await.unwrap();
    let image = client.classify(Sample::image("no image").request_id("broken")).await.unwrap_err();
    assert_eq!(
        (image.code(), image.field(), image.request_id(), image.attempts()),
        (Code::InvalidArgument, Some("image"), Some("broken"), 1)
    );
    assert_eq!(client.classify(Sample::text("pizza").reject(1.5)).await.unwrap_err().field(), Some("reject"));
    let task = client.classify(Sample::text("pizza").task("space")).await.unwrap_err();
    assert_eq!((task.code(), task.reason()), (Code::NotFound, Some("UNKNOWN_TASK")));
    let long = client.classify(Sample::image(vec![0; 26_000_000])).await.unwrap_err();
    assert_eq!((long.code(), long.is_retryable()), (Code::ResourceExhausted, false), "{long}");
    let short = client.classify(Sample::text("pizza")).timeout(Duration::from_micros(100)).await.unwrap_err();
    assert_eq!(short.code(), Code::DeadlineExceeded, "{short}");
    let batch = client.classify_batch([Sample::text(PIZZA).request_id("a"), Sample::image("no image").request_id("b")]).await.unwrap();
    let [Ok(first), Err(second)] = batch.as_slice() else { panic!("{batch:?}") };
    assert_eq!((first.request_id.as_str(), second.request_id(), second.field()), ("a", Some("b"), Some("image")));
}

#[tokio::test]
async fn a_stream_outlives_the_time_that_its_samples_have() {
    let Some(served) = serve(&[]) else { return };
    let client = Client::connect(&served.address).await.unwrap();
    let (samples, received) = mpsc::channel(1);
    samples.send(Sample::text(PIZZA).request_id("first")).await.unwrap();
    let mut answers = client.classify_stream(ReceiverStream::new(received)).sample_timeout(Duration::from_secs(2)).await.unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap().unwrap().request_id, "first");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    samples.send(Sample::image("no image").request_id("second")).await.unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap().unwrap_err().request_id(), Some("second"));
    drop(samples);
    assert!(answers.next().await.is_none());
}

#[tokio::test]
async fn a_busy_server_is_asked_again_until_all_are_answered() {
    let Some(served) = serve(&[("DELO_SERVER__MAX_IN_FLIGHT_REQUESTS", "2"), ("DELO_SERVER__MAX_IN_FLIGHT_PER_CLIENT", "2")]) else {
        return;
    };
    let client =
        Client::builder(&served.address).retry(Retry::default().attempts(50)).timeout(Duration::from_secs(120)).connect().await.unwrap();
    let calls: Vec<_> = (0..16).map(|_| tokio::spawn(client.classify(Sample::text(PIZZA)).response())).collect();
    let mut attempts = Vec::new();
    for call in calls {
        attempts.push(call.await.unwrap().unwrap().attempts());
    }
    assert!(attempts.iter().any(|&attempts| attempts > 1), "the server was never busy: {attempts:?}");
}

#[tokio::test]
async fn tls_tokens_and_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    // SHA-256 of "a-token-of-a-shop".
    let digest = "97d4f282bb780ed2390304c4d359418378dbd11d31a4dc0962d0ff27015c8684";
    let clients = format!(
        "[[client]]\nname = \"shop\"\nrole = \"classify\"\ntoken_sha256 = \"{digest}\"\n\
         [[client]]\nname = \"certified\"\nrole = \"classify\"\ncertificate = \"client.example\"\n"
    );
    let settings = [
        ("DELO_TLS__CERTIFICATE", file("server.pem", &certificate)),
        ("DELO_TLS__KEY", file("server.key", &key)),
        ("DELO_TLS__CLIENT_CA", file("ca.pem", &authority.pem())),
        ("DELO_TLS__CLIENT_CERTIFICATE", "optional".to_owned()),
        ("DELO_AUTH__CLIENTS_FILE", file("clients.toml", &clients)),
    ];
    let Some(served) = serve(&settings.each_ref().map(|(name, value)| (*name, value.as_str()))) else { return };
    let port = served.address.rsplit(':').next().unwrap();
    let builder = || Client::builder(format!("https://localhost:{port}")).ca_certificate(authority.pem());
    let token = file("token", "a-token-of-a-shop\n");
    let client = builder().token_file(token).connect().await.unwrap();
    assert_eq!(client.classify(Sample::text(PIZZA)).await.unwrap().label(), Some("food-prepared"));
    let (certificate, key) = authority.issue("client.example");
    let certified = builder().client_certificate(certificate, key).connect().await.unwrap();
    certified.classify(Sample::text(PIZZA)).await.unwrap();
    let stranger = builder().token("another").connect().await.unwrap();
    assert_eq!(stranger.classify(Sample::text(PIZZA)).await.unwrap_err().code(), Code::Unauthenticated);
    assert!(stranger.health().await.unwrap());
}
