//! Starting, being empty, stopping.
use delo::serve::{ServeError, Server};
use delo_proto::get_status_response::State;
use delo_proto::{ClassifyBatchRequest, ClassifyResponse, GetStatusRequest};
use image::ImageFormat;
use prost::Message;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{TASKS, artifact, config, ends, eventually, image, picture, refused, start, start_with, text, until};

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_what_is_loaded_and_knows_its_services() {
    let server = start_with(&[], &[]).await;
    let mut admin = server.admin().await;
    let state = async |admin: &mut delo_proto::admin_client::AdminClient<_>| {
        admin.get_status(GetStatusRequest {}).await.unwrap().into_inner().state()
    };
    until("a state after the start", async || state(&mut admin.clone()).await, |state| *state == State::Empty).await;
    assert_eq!(server.health("delo.v1.Classifier").await, ServingStatus::NotServing);
    refused(server.classifier().await.classify(text("a")).await, Code::FailedPrecondition, "delo admin load");

    server.upload(artifact("food")).await.unwrap();
    assert_eq!(state(&mut admin).await, State::Serving);
    for service in ["", "delo.v1.Classifier"] {
        assert_eq!(server.health(service).await, ServingStatus::Serving);
    }
    server.unload("food").await.unwrap();
    assert_eq!(server.health("").await, ServingStatus::NotServing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_lives_on_both_ports_whether_or_not_it_is_ready() {
    let mut server = start_with(&[], &[]).await;
    let live = ["liveness", "delo.v1.Admin"];
    let ready = ["", "delo.v1.Classifier"];
    let mut watches = Vec::new();
    for channel in [server.classifier_channel().await, server.admin_channel().await] {
        let mut health = HealthClient::new(channel);
        for (services, status) in [(live, ServingStatus::Serving), (ready, ServingStatus::NotServing)] {
            for service in services {
                let request = HealthCheckRequest { service: service.to_owned() };
                assert_eq!(health.check(request).await.unwrap().into_inner().status(), status, "{service}");
            }
        }
        refused(health.check(HealthCheckRequest { service: "nope".to_owned() }).await, Code::NotFound, "liveness");
        let mut watch = health.watch(HealthCheckRequest { service: "liveness".to_owned() }).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        watches.push(watch);
    }
    eventually(async || server.upload(artifact("food")).await).await;
    server.until_health(ServingStatus::Serving).await;
    server.ask_to_stop();
    for mut watch in watches {
        // A drain is no reason to restart the process: the status does not change before the stream ends.
        refused(watch.message().await, Code::Unavailable, "shutting down");
    }
    server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_an_unknown_service_is_answered_and_stays_open() {
    let mut server = start_with(&[], &[]).await;
    let mut health = HealthClient::new(server.classifier_channel().await);
    let watch = async |health: &mut HealthClient<_>, service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        health.watch(request).await.unwrap().into_inner()
    };
    let mut unknown = watch(&mut health, "nope").await;
    assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    let mut known = watch(&mut health, "delo.v1.Classifier").await;
    assert_eq!(known.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    eventually(async || server.upload(artifact("food")).await).await;
    assert_eq!(known.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.ask_to_stop();
    assert_eq!(known.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // It stayed open all the while.
    refused(unknown.message().await, Code::Unavailable, "shutting down");
    server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_finishes_calls_in_flight_then_ends_without_error() {
    let mut server = start().await;
    let mut client = server.classifier().await;
    let requests: Vec<_> = (0..300).map(|i| image(picture(i, ImageFormat::Png))).collect();
    let bulk = tokio::spawn(async move { client.classify_batch(ClassifyBatchRequest { requests }).await });
    let admin = server.admin().await;
    let depth = async || admin.clone().get_status(GetStatusRequest {}).await.unwrap().into_inner().queue_depth;
    until("a sample that waits", depth, |depth| {
        assert!(!bulk.is_finished(), "too few samples to catch the server at work");
        *depth > 0
    })
    .await;
    let mut late = server.classifier().await;
    server.ask_to_stop();
    let results = bulk.await.unwrap().unwrap().into_inner().results;
    assert_eq!(results.len(), 300);
    // Either the call is refused, or the port is closed.
    refused(late.classify(text("late")).await, Code::Unavailable, "");
    server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_connection_is_asked_to_end_and_its_calls_are_answered() {
    let server = start_with(&["food"], &[("server.max_connection_age_seconds", "0.5"), ("http.listen", "127.0.0.1:0")]).await;
    let connect = async || h2::client::handshake(tokio::net::TcpStream::connect(server.addresses.classifier).await.unwrap()).await.unwrap();
    let (mut client, connection) = connect().await;
    let connection = tokio::spawn(connection);
    let (_idle_client, idle) = connect().await;
    // A call of which the body is missing.
    let request = http::Request::post("http://localhost/delo.v1.Classifier/Classify").header("content-type", "application/grpc");
    let (answer, mut sending) = client.send_request(request.header("te", "trailers").body(()).unwrap(), false).unwrap();

    ends("the end of the idle connection", idle).await.unwrap();
    // By now this connection is as old, and takes no further call.
    let refuses = async || {
        let request = http::Request::post("http://localhost/nothing").header("content-type", "application/grpc").body(()).unwrap();
        client.clone().ready().await.and_then(|mut client| client.send_request(request, true)).is_err()
    };
    until("GOAWAY", refuses, |refused| *refused).await;
    let message = text("soup").encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    sending.send_data(body.into(), true).unwrap();
    assert_eq!(ends("the answer", answer).await.unwrap().status(), 200);
    drop(client);
    ends("the end of the connection", connection).await.unwrap().unwrap();

    // One of HTTP/1.1 is closed, and the port takes others.
    let mut idle = tokio::net::TcpStream::connect(server.addresses.http.unwrap()).await.unwrap();
    ends("the end of the connection", tokio::io::AsyncReadExt::read(&mut idle, &mut [0; 1])).await.unwrap();
    server.assert_serving().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_sends_clients_elsewhere_at_once_and_serves_what_has_begun() {
    // If the drain waited for anything but the call in flight, the test would wait for an hour.
    let long = [("shutdown.drain_seconds", "3600.0"), ("deadline.max_seconds", "7200.0"), ("deadline.default_seconds", "7200.0")];
    let mut server = start_with(&["food"], &long).await;
    let address = server.addresses.classifier;
    let connect = async || h2::client::handshake(tokio::net::TcpStream::connect(address).await.unwrap()).await.unwrap();
    let (mut client, connection) = connect().await;
    tokio::spawn(connection);
    let (_idle_client, idle) = connect().await;

    // A call of which the last byte is missing.
    let message = text("soup").encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let last = body.pop().unwrap();
    let request = http::Request::post(format!("http://{address}/delo.v1.Classifier/Classify")).header("content-type", "application/grpc");
    let (answer, mut sending) = client.send_request(request.header("te", "trailers").body(()).unwrap(), false).unwrap();
    sending.send_data(body.into(), false).unwrap();
    // An answer on the same connection means that the call has begun as well.
    let health = http::Request::post(format!("http://{address}/nothing")).header("content-type", "application/grpc").body(()).unwrap();
    client.send_request(health, true).unwrap().0.await.unwrap();

    server.ask_to_stop();
    // GOAWAY closes a connection without a call, and the port takes no other one, while the call is in
    // flight.
    ends("the end of the idle connection", idle).await.unwrap();
    until("the end of the port", async || tokio::net::TcpStream::connect(address).await.is_err(), |refused| *refused).await;
    sending.send_data(vec![last].into(), true).unwrap();
    let mut answer = answer.await.unwrap().into_body();
    let data = answer.data().await.unwrap().unwrap();
    assert_eq!(ClassifyResponse::decode(&data[5..]).unwrap().task, "food");
    ends("the end of the server", server.ended()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_of_a_server_that_drains_ends_soon_with_a_status() {
    let mut server = start_with(&["food"], &[("shutdown.drain_seconds", "3600.0")]).await;
    let (send, samples) = tokio::sync::mpsc::channel(8);
    let mut client = server.classifier().await;
    let mut answers = client.classify_stream(tokio_stream::wrappers::ReceiverStream::new(samples)).await.unwrap().into_inner();
    send.send(text("soup")).await.unwrap();
    assert!(answers.message().await.unwrap().is_some());
    server.ask_to_stop();
    let end = ends("the end of the stream", answers.message()).await;
    refused(end, Code::Unavailable, "open the stream with another");
    drop((client, send));
    ends("the end of the server", server.ended()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_port_says_whether_the_server_lives_and_serves() {
    let server = start_with(&[], &[]).await;
    let get = async |path: &str| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(server.addresses.metrics.unwrap()).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: delo\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
    };
    until("a state after the start", async || get("/readyz").await.1, |state| state != "STARTING\n").await;
    let is = |code: &str, state: &str| (code.to_owned(), format!("{state}\n"));
    assert_eq!((get("/readyz").await, get("/livez").await), (is("503", "EMPTY"), is("200", "EMPTY")));
    server.upload(artifact("food")).await.unwrap();
    assert_eq!((get("/readyz").await, get("/healthz").await), (is("200", "SERVING"), is("200", "SERVING")));
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_in_time_though_clients_stay_connected_and_watch() {
    // Were clients waited for, it would be for an hour.
    let mut server = start_with(&["food"], &[("shutdown.drain_seconds", "3600.0")]).await;
    let mut health = HealthClient::new(server.classifier_channel().await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.ask_to_stop();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    refused(watch.message().await, Code::Unavailable, "shutting down");
    ends("the end of the server", server.ended()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_to_start_with_a_bad_partition_and_names_it() {
    let dir = tempfile::tempdir().unwrap();
    for task in TASKS {
        std::fs::write(dir.path().join(format!("{task}.safetensors")), artifact(task)).unwrap();
    }
    let path = dir.path().join("food.safetensors");
    let mut bytes = artifact("food");
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let failure = Server::bind(config(dir.path(), &[])).await.unwrap().run(std::future::pending()).await.unwrap_err().to_string();
    assert!(failure.contains("food.safetensors") && failure.contains("checksum"), "{failure}");

    std::fs::write(&path, artifact("travel")).unwrap();
    let failure = Server::bind(config(dir.path(), &[])).await.unwrap().run(std::future::pending()).await.unwrap_err().to_string();
    assert!(failure.contains("food.safetensors") && failure.contains("travel.safetensors"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_the_setting_of_a_port_that_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let failure = Server::bind(config(dir.path(), &[("admin.listen", &address)])).await.err().unwrap();
    assert!(matches!(failure, ServeError::Listen { setting: "admin.listen", .. }), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_and_metrics_can_be_off() {
    let server = start_with(&["food"], &[("admin.listen", "off"), ("metrics.listen", "off")]).await;
    assert_eq!((server.addresses.admin, server.addresses.metrics), (None, None));
    server.assert_serving().await;
}
