//! Who may call what, over what, and what of that changes while the server runs.
use std::path::Path;

use delo::serve::{ServeError, Server};
use delo_proto::admin_client::AdminClient;
use delo_proto::classifier_client::ClassifierClient;
use delo_proto::{GetStatusRequest, ListPartitionsRequest, UnloadPartitionRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Request};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_reflection::pb::v1;

use crate::authority::{Authority, clients, replace};
use crate::harness::{Running, config, ends, eventually, refused, start_with, text};
use crate::identity::{bearing, channel, classify, start_trusting};

const CLIENTS: &[(&str, &str, &str)] =
    &[("app", "classify", "app-token"), ("dashboard", "read_only", "dashboard-token"), ("ops", "admin", "ops-token")];

/// A directory with this file of clients, and the file's path.
fn clients_file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("clients.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path.to_str().unwrap().to_owned())
}

/// Waits until the server has looked at all its files: in each look it reads the certificates before the
/// clients, so that a look has ended when the second of two changes of the certificates is taken.
async fn looked(server: &Running, authority: &Authority, dir: &Path, years: [i32; 2]) {
    for year in years {
        authority.issue_for_years("server", &["localhost"], [1975, year]).write(dir);
        let end = rcgen::date_time_ymd(year, 1, 1).unix_timestamp();
        server.until_value("delo_tls_certificate_expiry_timestamp_seconds", end as f64).await;
    }
}

fn unload<T>(task: &str, of: impl Fn(UnloadPartitionRequest) -> T) -> T {
    of(UnloadPartitionRequest { task: task.to_owned(), ..Default::default() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_what_its_role_names_and_nothing_else() {
    let (_dir, path) = clients_file(&clients(CLIENTS, &[]));
    let server = start_with(&["food"], &[("auth.clients_file", &path)]).await;
    let (mut classifier, mut admin) = (server.classifier().await, server.admin().await);

    for token in ["app-token", "ops-token"] {
        classifier.classify(bearing(token, text("soup"))).await.unwrap();
    }
    refused(classifier.classify(bearing("dashboard-token", text("soup"))).await, Code::PermissionDenied, "classify or admin");

    for token in ["dashboard-token", "ops-token"] {
        admin.get_status(bearing(token, GetStatusRequest {})).await.unwrap();
        admin.list_partitions(bearing(token, ListPartitionsRequest {})).await.unwrap();
    }
    refused(admin.get_status(bearing("app-token", GetStatusRequest {})).await, Code::PermissionDenied, "read_only or admin");
    for token in ["app-token", "dashboard-token"] {
        refused(admin.unload_partition(unload("food", |m| bearing(token, m))).await, Code::PermissionDenied, "needs admin");
    }
    admin.unload_partition(unload("food", |m| bearing("ops-token", m))).await.unwrap();

    let page = server.metrics().await;
    assert!(page.contains("delo_rejected_total{reason=\"forbidden\"}"), "{page}");
    assert!(page.contains("delo_requests_total{method=\"UnloadPartition\",code=\"PERMISSION_DENIED\"}"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_the_same_refusal_whatever_is_wrong_and_health_needs_no_token() {
    let (_dir, path) = clients_file(&clients(CLIENTS, &[]));
    let server = start_with(&["food"], &[("auth.clients_file", &path)]).await;
    let mut classifier = server.classifier().await;
    let mut messages = Vec::new();
    let with = |value: &str| {
        let mut request = Request::new(text("soup"));
        request.metadata_mut().insert("authorization", value.parse().unwrap());
        request
    };
    for request in [
        Request::new(text("soup")),
        with("Bearer wrong"),
        with("Bearer"),
        with("Basic YXBwOmFwcA=="),
        with("Bearer app-toke"),
        with("Bearer "),
    ] {
        messages.push(refused(classifier.classify(request).await, Code::Unauthenticated, "authorization: Bearer").message().to_owned());
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "{messages:?}");
    // The refusal is the same for each method.
    let unknown = refused(server.admin().await.list_partitions(ListPartitionsRequest {}).await, Code::Unauthenticated, "");
    assert_eq!(unknown.message(), messages[0]);
    assert!(server.metrics().await.contains("delo_rejected_total{reason=\"unauthenticated\"}"));

    assert_eq!(server.health("").await, ServingStatus::Serving);
    let list = || v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut reflection = v1::server_reflection_client::ServerReflectionClient::new(server.classifier_channel().await);
    refused(reflection.server_reflection_info(tokio_stream::once(list())).await.map(drop), Code::Unauthenticated, "");
    reflection.server_reflection_info(bearing("dashboard-token", tokio_stream::once(list()))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_change_while_serving_and_a_broken_file_changes_nothing() {
    let (dir, path) = clients_file(&clients(CLIENTS, &[]));
    let authority = Authority::new("authority");
    let (certificate, key) = authority.issue("server", &["localhost"]).write(dir.path());
    let changes = [
        ("auth.clients_file", path.as_str()),
        ("tls.certificate", certificate.to_str().unwrap()),
        ("tls.key", key.to_str().unwrap()),
        ("tls.reload_seconds", "0.1"),
    ];
    let server = start_trusting(dir.path(), &changes).await;
    let channel = channel(server.addresses.classifier, &authority, None).await.unwrap();
    classify(channel.clone(), Some("app-token")).await.unwrap();

    let file = dir.path().join("clients.toml");
    replace(&file, &clients(&[("app", "classify", "new-token")], &[]));
    eventually(async || classify(channel.clone(), Some("new-token")).await).await;
    refused(classify(channel.clone(), Some("app-token")).await, Code::Unauthenticated, "");

    replace(&file, "[[client]]\nname = \"app\"\nrole = \"root\"");
    looked(&server, &authority, dir.path(), [3001, 3002]).await;
    classify(channel.clone(), Some("new-token")).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    looked(&server, &authority, dir.path(), [3003, 3004]).await;
    classify(channel, Some("new-token")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_exchanged_while_serving() {
    let with = |tokens: &[&str]| clients(&tokens.iter().map(|token| ("app", "classify", *token)).collect::<Vec<_>>(), &[]);
    let (dir, path) = clients_file(&with(&["old"]));
    let server = start_with(&["food"], &[("auth.clients_file", &path), ("tls.reload_seconds", "0.1")]).await;
    let classifier = server.classifier().await;
    let classify = async |token| classifier.clone().classify(bearing(token, text("soup"))).await;
    let file = dir.path().join("clients.toml");
    replace(&file, &with(&["old", "new"]));
    eventually(async || {
        classify("old").await.expect("good until it is taken away");
        classify("new").await
    })
    .await;
    classify("old").await.unwrap();
    replace(&file, &with(&["new"]));
    eventually(async || {
        classify("new").await.expect("good from then on");
        classify("old").await.err().ok_or("still good")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_clients_or_certificates_cannot_be_read_does_not_start_and_names_the_file() {
    let (dir, path) = clients_file("[[client]]\nname = \"app\"\nrole = \"root\"");
    let failure = |changes: Vec<(&'static str, String)>| {
        let changes: Vec<_> = changes.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let config = config(dir.path(), &changes);
        async { Server::bind(config).await.unwrap().run(std::future::pending()).await.unwrap_err() }
    };
    let error = failure(vec![("auth.clients_file", path.clone())]).await;
    assert!(matches!(error, ServeError::Trust(_)) && error.to_string().contains("clients.toml"), "{error}");
    let error = failure(vec![("tls.certificate", path.clone()), ("tls.key", path)]).await;
    assert!(matches!(error, ServeError::Trust(_)) && error.to_string().contains("no certificate in PEM"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_serves_those_who_speak_it_and_plaintext_stalls_nobody() {
    let authority = Authority::new("authority");
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.issue("server", &["localhost"]).write(dir.path());
    let changes = [("tls.certificate", certificate.to_str().unwrap()), ("tls.key", key.to_str().unwrap())];
    let server = start_trusting(dir.path(), &changes).await;
    let address = server.addresses.classifier;
    let open = channel(address, &authority, None).await.unwrap();
    classify(open.clone(), None).await.unwrap();
    let admin = channel(server.addresses.admin.unwrap(), &authority, None).await.unwrap();
    AdminClient::new(admin).list_partitions(ListPartitionsRequest {}).await.unwrap();

    let mut plain = tokio::net::TcpStream::connect(address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // The server may reset the connection.
    let _ = ends("the end of the connection", plain.read_to_end(&mut answer)).await;
    assert!(!answer.windows(4).any(|w| w == b"HTTP"), "closed, perhaps with an alert: {answer:?}");
    assert!(
        ClassifierClient::connect(format!("http://{address}")).await.is_err() || {
            let mut plain = ClassifierClient::connect(format!("http://{address}")).await.unwrap();
            plain.classify(text("soup")).await.is_err()
        }
    );
    assert!(channel(address, &Authority::new("another"), None).await.is_err(), "a server that the client does not trust");
    classify(open, None).await.unwrap();
    assert!(server.metrics().await.contains("delo_tls_certificate_expiry_timestamp_seconds "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_required_where_it_is_and_gives_a_role() {
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.issue("server", &["localhost"]).write(dir.path());
    let (ca, file) = (dir.path().join("ca.pem"), dir.path().join("clients.toml"));
    std::fs::write(&ca, &authority.pem).unwrap();
    std::fs::write(&file, clients(&[("tokens", "classify", "a-token")], &[("app", "classify", "app"), ("ops", "admin", "ops.example")]))
        .unwrap();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let changes = [path(&certificate), path(&key), path(&ca), path(&file)];
    let changes = [
        ("tls.certificate", changes[0].as_str()),
        ("tls.key", &changes[1]),
        ("tls.client_ca", &changes[2]),
        ("auth.clients_file", &changes[3]),
        ("tls.client_certificate", "required"),
    ];
    let server = start_trusting(dir.path(), &changes).await;
    let (address, admin) = (server.addresses.classifier, server.addresses.admin.unwrap());
    let connect = async |address, common_name: &str, names: &[&str]| {
        channel(address, &authority, Some(authority.issue(common_name, names).identity())).await.unwrap()
    };

    let app = connect(address, "app", &[]).await;
    classify(app.clone(), None).await.unwrap();
    refused(classify(app, Some("wrong")).await, Code::Unauthenticated, "");
    refused(classify(connect(address, "nobody", &["app.elsewhere"]).await, None).await, Code::Unauthenticated, "client certificate");
    classify(connect(address, "nobody", &[]).await, Some("a-token")).await.unwrap();

    let app = connect(admin, "app", &[]).await;
    refused(AdminClient::new(app).list_partitions(ListPartitionsRequest {}).await, Code::PermissionDenied, "");
    let ops = connect(admin, "somebody", &["ops.example"]).await;
    AdminClient::new(ops).unload_partition(unload("food", Request::new)).await.unwrap();

    // Without a certificate, and with one of a stranger who claims the same name.
    for identity in [None, Some(stranger.issue("app", &[]).identity())] {
        let outcome = match channel(address, &authority, identity).await {
            Ok(channel) => ClassifierClient::new(channel).classify(text("soup")).await.map(drop).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        assert!(outcome.is_err(), "a handshake without a good certificate");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_while_serving_and_a_bad_pair_changes_nothing() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = old.issue("server", &["localhost"]).write(dir.path());
    let (_dir, clients_path) = clients_file(&clients(CLIENTS, &[]));
    let changes = [
        ("tls.certificate", certificate.to_str().unwrap()),
        ("tls.key", key.to_str().unwrap()),
        ("auth.clients_file", &clients_path),
        ("tls.reload_seconds", "0.1"),
    ];
    let server = start_trusting(dir.path(), &changes).await;
    let address = server.addresses.classifier;
    let before = channel(address, &old, None).await.unwrap();
    classify(before.clone(), Some("app-token")).await.unwrap();

    new.issue("server", &["localhost"]).write(dir.path());
    let after = eventually(async || channel(address, &new, None).await).await;
    classify(after.clone(), Some("app-token")).await.unwrap();
    classify(before, Some("app-token")).await.expect("connections go on as they began");

    // A certificate without its key.
    replace(&certificate, &new.issue("server", &["localhost"]).certificate);
    // In each look the server reads the certificates before the clients.
    replace(clients_path.as_ref(), &clients(&[("app", "classify", "new-token")], &[]));
    eventually(async || classify(after.clone(), Some("new-token")).await).await;
    classify(channel(address, &new, None).await.unwrap(), Some("new-token")).await.unwrap();
}
