//! Connections and calls that misbehave: each costs a bounded amount for a bounded time, and others are
//! served meanwhile.
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use delo_proto::ListPartitionsRequest;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_types::StatusExt;

use crate::authority::Authority;
use crate::harness::{Running, ends, eventually, refused, start_with, text, until};
use crate::identity::{channel, classify, start_trusting};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// An empty SETTINGS frame.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const CLASSIFY: &str = "/delo.v1.Classifier/Classify";

/// A server of one task, with these settings.
async fn start(changes: &[(&'static str, &str)]) -> Running {
    start_with(&["food"], changes).await
}

/// Waits until a call is refused with this code and these words.
async fn until_refused(server: &Running, code: Code, words: &str) -> Status {
    let attempt = async || match server.classifier().await.classify(text("soup")).await {
        Err(status) if status.code() == code && status.message().contains(words) => Ok(status),
        other => Err(other.map(drop)),
    };
    eventually(attempt).await
}

/// Waits until a call is answered.
async fn until_answered(server: &Running) {
    eventually(async || server.classifier().await.classify(text("soup")).await.map(drop)).await;
}

/// Waits until the server closes this connection; the bytes that it sends before are not looked at.
async fn closed(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    ends("the end of a connection", async { while matches!(stream.read(&mut buffer).await, Ok(1..)) {} }).await;
}

/// A connection of HTTP/2 without anything of gRPC around it.
async fn raw(address: SocketAddr, window: u32) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::Builder::new().initial_window_size(window).handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

fn head(path: &str) -> Request<()> {
    let builder = Request::post(format!("http://localhost{path}")).header("content-type", "application/grpc").header("te", "trailers");
    builder.body(()).unwrap()
}

/// A message as gRPC frames it.
fn framed(message: &impl Message) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(message.encoded_len().try_into().unwrap());
    message.encode(&mut out).unwrap();
    out.freeze()
}

/// How a call ended: its status, in the head or in the trailers of the answer.
async fn status(answer: h2::client::ResponseFuture) -> Status {
    let answer = answer.await.unwrap();
    let of = |headers: &HeaderMap| Status::from_header_map(headers);
    if let Some(status) = of(answer.headers()) {
        return status;
    }
    let mut body = answer.into_body();
    while let Some(data) = body.data().await {
        let length = data.unwrap().len();
        body.flow_control().release_capacity(length).unwrap();
    }
    of(&body.trailers().await.unwrap().unwrap()).unwrap()
}

/// Waits until the calls that were sent before on this connection have begun: a later one is answered.
async fn begun(client: &mut SendRequest<Bytes>) {
    client.send_request(head("/nothing"), true).unwrap().0.await.unwrap();
}

/// A call that says it has a long message and sends `bytes` of it, and no end.
fn half_sent(client: &mut SendRequest<Bytes>, path: &str, bytes: usize) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let (answer, mut stream) = client.send_request(head(path), false).unwrap();
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(90_000);
    out.put_bytes(b'a', bytes);
    stream.send_data(out.freeze(), false).unwrap();
    (answer, stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_never_begin_are_closed_in_time() {
    let refused = "delo_connections_refused_total{port=\"classifier\",reason=\"handshake\"}";
    let hold = async |address| {
        let mut held = Vec::new();
        for bytes in [&b""[..], &PREFACE[..10]].repeat(20) {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            held.push(stream);
        }
        held
    };
    let server = start(&[("server.handshake_seconds", "0.2")]).await;
    assert_eq!(server.value(refused).await, 0.0);
    for stream in hold(server.addresses.classifier).await {
        closed(stream).await;
    }
    server.until_value(refused, 40.0).await;

    // Where they may take an hour, they keep nobody waiting, and bytes that are not HTTP/2 end their
    // connection at once.
    let server = start(&[("server.handshake_seconds", "3600.0")]).await;
    let held = hold(server.addresses.classifier).await;
    server.assert_serving().await;
    let mut http1 = TcpStream::connect(server.addresses.classifier).await.unwrap();
    http1.write_all(b"GET /delo.v1.Classifier/Classify HTTP/1.1\r\nHost: delo\r\n\r\n").await.unwrap();
    closed(http1).await;
    server.until_value(refused, 1.0).await;
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_stall_delay_nobody_and_are_ended() {
    let authority = Authority::new("authority");
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.issue("server", &["localhost"]).write(dir.path());
    let start = async |handshake_seconds| {
        let [certificate, key] = [&certificate, &key].map(|path| path.to_str().unwrap());
        let changes = [("tls.certificate", certificate), ("tls.key", key), ("tls.handshake_seconds", handshake_seconds)];
        let server = start_trusting(dir.path(), &changes).await;
        let mut held = Vec::new();
        for _ in 0..200 {
            let mut stream = TcpStream::connect(server.addresses.classifier).await.unwrap();
            // A record of a handshake whose rest never comes.
            stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
            held.push(stream);
        }
        (server, held)
    };
    let (_server, held) = start("0.5").await;
    for stream in held {
        closed(stream).await;
    }
    // Where they may take an hour, they keep nobody waiting.
    let (server, _held) = start("3600.0").await;
    let channel = ends("a handshake", channel(server.addresses.classifier, &authority, None)).await.unwrap();
    classify(channel, None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_fall_silent_or_never_read_are_closed() {
    let server = start(&[("server.keepalive_seconds", "0.5"), ("server.keepalive_timeout_seconds", "0.5")]).await;
    let mut held = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(server.addresses.classifier).await.unwrap();
        stream.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
        // The start of a HEADERS frame on stream 1, whose block goes on, and never does.
        stream.write_all(&[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x83]).await.unwrap();
        held.push(stream);
    }
    server.assert_serving().await;
    // They answer no ping.
    for stream in held {
        closed(stream).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_arrive_ends_at_its_deadline_and_gives_its_permit_back() {
    let hold = async |server: &Running| {
        let mut client = raw(server.addresses.classifier, 65_535).await;
        let (slow, rest) = half_sent(&mut client, CLASSIFY, 100);
        // A whole message, but no end of the stream.
        let (half_closed, mut stream) = client.send_request(head(CLASSIFY), false).unwrap();
        stream.send_data(framed(&text("soup")), false).unwrap();
        // Both have their permits before any other call asks for one.
        begun(&mut client).await;
        ([slow, half_closed], [rest, stream])
    };
    // Where the deadline is far, the two calls hold all permits.
    let server = start(&[("server.max_in_flight_requests", "2")]).await;
    let _held = hold(&server).await;
    let full = until_refused(&server, Code::ResourceExhausted, "server.max_in_flight_requests").await;
    assert!(full.get_details_retry_info().is_some());

    let server = start(&[("server.max_in_flight_requests", "2"), ("deadline.default_seconds", "1.0")]).await;
    let (calls, _streams) = hold(&server).await;
    for call in calls {
        let ended = ends("the end of the call", status(call)).await;
        assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended:?}");
        assert!(ended.message().contains("whole request"), "{ended:?}");
    }
    until_answered(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_never_read_holds_no_permit_beyond_its_deadline() {
    let hold = async |server: &Running| {
        // A window of 0: the server may send no byte of the answer.
        let mut client = raw(server.addresses.classifier, 0).await;
        let (answer, mut stream) = client.send_request(head(CLASSIFY), false).unwrap();
        stream.send_data(framed(&text("soup")), true).unwrap();
        begun(&mut client).await;
        (client, answer, stream)
    };
    // Where the deadline is far, the answer holds the only permit.
    let server = start(&[("server.max_in_flight_requests", "1")]).await;
    let _held = hold(&server).await;
    until_refused(&server, Code::ResourceExhausted, "server.max_in_flight_requests").await;

    let server = start(&[("server.max_in_flight_requests", "1"), ("deadline.default_seconds", "1.0")]).await;
    let _held = hold(&server).await;
    until_answered(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_in_which_nothing_moves_is_ended() {
    let server = start(&[("server.stream_idle_seconds", "1.0")]).await;
    let mut client = raw(server.addresses.classifier, 65_535).await;
    let (answer, mut stream) = client.send_request(head("/delo.v1.Classifier/ClassifyStream"), false).unwrap();
    stream.send_data(framed(&text("soup")), false).unwrap();
    let ended = ends("the end of the stream", status(answer)).await;
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended:?}");
    assert!(ended.message().contains("server.stream_idle_seconds"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_being_received_are_bounded_over_all_calls() {
    let changes = [("server.max_message_bytes", "100000"), ("server.max_receive_bytes", "100000"), ("deadline.default_seconds", "3.0")];
    let server = start(&changes).await;
    let mut client = raw(server.addresses.classifier, 65_535).await;
    let mut other = raw(server.addresses.classifier, 65_535).await;
    let (first, _one) = half_sent(&mut client, CLASSIFY, 60_000);
    let (second, _two) = half_sent(&mut other, CLASSIFY, 60_000);
    // There is room for one of them, whichever arrives first: the other is refused long before the deadline
    // of both.
    let both = futures::future::select(Box::pin(status(first)), Box::pin(status(second)));
    let (refusal, held) = ends("a refusal", both).await.factor_first();
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal:?}");
    assert!(refusal.message().contains("server.max_receive_bytes") && refusal.get_details_retry_info().is_some(), "{refusal:?}");
    server.assert_serving().await;
    assert_eq!(ends("the deadline", held).await.code(), Code::DeadlineExceeded);
    let large = "a".repeat(60_000);
    server.classifier().await.classify(text(&large)).await.expect("the call that ended has given its bytes back");
    assert_eq!(server.value("delo_rejected_total{reason=\"receive_memory\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_one_client_are_bounded_and_so_are_those_of_the_admin_port() {
    let server = start(&[("server.max_in_flight_per_client", "2"), ("admin.max_in_flight_requests", "1")]).await;
    let mut client = raw(server.addresses.classifier, 65_535).await;
    let held = [half_sent(&mut client, CLASSIFY, 10), half_sent(&mut client, CLASSIFY, 10)];
    begun(&mut client).await;
    let limit = until_refused(&server, Code::ResourceExhausted, "server.max_in_flight_per_client").await;
    assert!(limit.get_details_retry_info().is_some());
    drop((held, client));
    until_answered(&server).await;

    let mut admin = raw(server.addresses.admin.unwrap(), 65_535).await;
    let _held = half_sent(&mut admin, "/delo.v1.Admin/LoadPartition", 10);
    begun(&mut admin).await;
    let list = async || server.admin().await.list_partitions(ListPartitionsRequest {}).await.map(drop);
    let full = until("a refusal", list, Result::is_err).await;
    refused(full, Code::ResourceExhausted, "admin.max_in_flight_requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_most_are_closed_at_once() {
    let server = start(&[("server.max_connections", "3")]).await;
    let refused = "delo_connections_refused_total{port=\"classifier\",reason=\"too_many\"}";
    let before = server.value(refused).await;
    // Those that asked for health at the start have gone by then.
    let open = "delo_connections{port=\"classifier\"}";
    server.until_value(open, 0.0).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(raw(server.addresses.classifier, 65_535).await);
    }
    server.until_value(open, 3.0).await;
    closed(TcpStream::connect(server.addresses.classifier).await.unwrap()).await;
    server.until_value(refused, before + 1.0).await;
    drop(held);
    server.until_value(open, 0.0).await;
    server.assert_serving().await;
}

/// Connections that this process may have open to itself, each of which takes two of its files.
#[cfg(unix)]
fn affordable() -> usize {
    let limit = delo_process::descriptors::raise_limit().expect("there is a limit of open files");
    usize::try_from(limit.saturating_sub(2000) / 2).unwrap_or(usize::MAX)
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_do_not_keep_others_waiting() {
    // A server raises the limit to what the system allows before the connections are counted.
    let server = start(&[]).await;
    let many = affordable().min(10_000);
    assert!(many >= 500, "the system allows too few open files: {many}");
    let mut held = Vec::with_capacity(many);
    for _ in 0..many {
        let mut stream = TcpStream::connect(server.addresses.classifier).await.unwrap();
        stream.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
        held.push(stream);
    }
    // The server's SETTINGS: each of them is served.
    for stream in &mut held {
        let mut frame = [0; 9];
        ends("SETTINGS", stream.read_exact(&mut frame)).await.unwrap();
        assert_eq!(frame[3], 4);
    }
    server.assert_serving().await;
    println!("{many} idle connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_streams_reset_at_once_cost_their_connection_alone() {
    let server = start(&[]).await;
    let (mut opened, mut closed) = (0, 0);
    while opened < 20_000 {
        let mut client = raw(server.addresses.classifier, 65_535).await;
        while opened < 20_000 {
            // An error: the server has closed this connection.
            let Ok(ready) = client.ready().await else { break };
            client = ready;
            let Ok((_, mut stream)) = client.send_request(head(CLASSIFY), false) else { break };
            stream.send_reset(h2::Reason::CANCEL);
            opened += 1;
        }
        closed += usize::from(opened < 20_000);
    }
    assert!(closed > 0, "no connection was closed");
    println!("{closed} connections were closed");
    server.assert_serving().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_never_read_hold_nothing_of_the_budget_for_requests() {
    let server = start(&[("server.max_message_bytes", "100000"), ("server.max_receive_bytes", "100000")]).await;
    let mut client = raw(server.addresses.classifier, 0).await;
    let mut unread = Vec::new();
    for _ in 0..5 {
        client = client.ready().await.unwrap();
        let (answer, mut stream) = client.send_request(head(CLASSIFY), false).unwrap();
        stream.send_data(framed(&text(&"a".repeat(60_000))), true).unwrap();
        let answer = answer.await.unwrap();
        assert!(Status::from_header_map(answer.headers()).is_none(), "{answer:?}");
        unread.push(answer);
    }
    server.assert_serving().await;
}

/// Sends the body of a call. A server that refuses a call by its head may have closed the stream before the
/// body is sent; the test then looks at the answer.
fn send_the_rest(stream: &mut h2::SendStream<Bytes>, body: Bytes) {
    let _ = stream.send_data(body, true);
}

/// A call of `path` with this body and, where there is one, this `grpc-encoding`.
async fn call(client: &SendRequest<Bytes>, path: &str, body: &[u8], encoding: Option<&'static str>) -> Status {
    let mut head = head(path);
    if let Some(encoding) = encoding {
        head.headers_mut().insert("grpc-encoding", encoding.parse().unwrap());
    }
    let (answer, mut stream) = client.clone().ready().await.unwrap().send_request(head, false).unwrap();
    send_the_rest(&mut stream, Bytes::copy_from_slice(body));
    ends("an answer", status(answer)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_message_are_the_client_s_fault_on_every_method() {
    let server = start(&[]).await;
    let classifier = raw(server.addresses.classifier, 65_535).await;
    let admin = raw(server.addresses.admin.unwrap(), 65_535).await;
    let frame = |flag: u8, length: u8, message: &[u8]| [&[flag, 0, 0, 0, length], message].concat();
    let garbage = [0xff; 4];
    let empty = frame(0, 0, &[]);
    let bad: [(&str, Vec<u8>, Option<&str>); 6] = [
        ("failed to decode Protobuf message", frame(0, 4, &garbage), None),
        ("invalid compression flag", b"{\"text\":\"pizza\"}".to_vec(), None),
        ("grpc-encoding", frame(1, 4, &garbage), None),
        ("in the middle of a message", frame(0, 100, &garbage), None),
        ("in the middle of a message", vec![0, 0], None),
        ("Error decompressing", frame(1, 4, &garbage), Some("gzip")),
    ];
    let of_one_message = [("send one message", Vec::new()), ("more than one message", [empty.clone(), empty.clone()].concat())];
    for (client, path, streams) in [
        (&classifier, CLASSIFY, false),
        (&classifier, "/delo.v1.Classifier/ClassifyBatch", false),
        (&classifier, "/delo.v1.Classifier/ClassifyStream", true),
        (&classifier, "/delo.v1.Classifier/ReportOutcome", false),
        (&classifier, "/grpc.health.v1.Health/Check", false),
        (&classifier, "/grpc.health.v1.Health/Watch", false),
        (&admin, "/delo.v1.Admin/LoadPartition", false),
        (&admin, "/delo.v1.Admin/ListPartitions", false),
        (&admin, "/delo.v1.Admin/SyncRegistry", false),
        (&admin, "/grpc.health.v1.Health/Check", false),
    ] {
        for (words, body, encoding) in &bad {
            // Health reads no compressed messages at all.
            if path.starts_with("/grpc.") && encoding.is_some() {
                continue;
            }
            let status = call(client, path, body, *encoding).await;
            assert!(status.code() == Code::InvalidArgument && status.message().contains(words), "{path}, {words}: {status:?}");
        }
        for (words, body) in of_one_message.iter().filter(|_| !streams) {
            let status = call(client, path, body, None).await;
            assert!(status.code() == Code::InvalidArgument && status.message().contains(words), "{path}, {words}: {status:?}");
        }
        let status = call(client, path, &empty, Some("rot13")).await;
        assert_eq!(status.code(), Code::Unimplemented, "{path}: {status:?}");
    }
    // Reflection ends its stream without a word.
    for client in [&classifier, &admin] {
        let status = call(client, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", &frame(0, 4, &garbage), None).await;
        assert!(matches!(status.code(), Code::Ok | Code::InvalidArgument), "{status:?}");
    }
    server.assert_serving().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_breaks_off_is_no_fault_of_the_server_however_it_does() {
    let server = start(&[]).await;
    let path = "/delo.v1.Admin/RollbackPartition";
    let address = server.addresses.admin.unwrap();
    for reason in [h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR, h2::Reason::PROTOCOL_ERROR, h2::Reason::NO_ERROR] {
        let mut client = raw(address, 65_535).await;
        let (_answer, mut stream) = half_sent(&mut client, path, 10);
        begun(&mut client).await;
        stream.send_reset(reason);
    }
    // And one whose connection ends.
    let mut client = raw(address, 65_535).await;
    let held = half_sent(&mut client, path, 10);
    begun(&mut client).await;
    drop((held, client));
    let counted = eventually(async || {
        let page = server.metrics().await;
        let lines = page.lines().filter(|line| line.starts_with("delo_requests_total{method=\"RollbackPartition\""));
        // Series appear at 0.
        let counted: Vec<String> = lines.filter(|line| !line.ends_with(" 0")).map(str::to_owned).collect();
        let calls: f64 = counted.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum();
        if calls == 5.0 { Ok(counted) } else { Err(counted) }
    });
    let counted = counted.await;
    assert!(!counted.iter().any(|line| line.contains("INTERNAL") || line.contains("UNKNOWN")), "{counted:?}");
    assert!(counted.iter().any(|line| line.contains("CANCELLED")), "{counted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_take_nothing_keep_no_scraper_out() {
    let server = start(&[]).await;
    let request = b"GET /metrics HTTP/1.1\r\nHost: delo\r\n\r\n".repeat(200);
    let mut held = Vec::new();
    for _ in 0..100 {
        let stream = TcpStream::connect(server.addresses.metrics.unwrap()).await.unwrap();
        // As much as the connection takes: the server closes those that are too many, and reads no more of
        // the others while they do not read.
        stream.writable().await.unwrap();
        let _ = stream.try_write(&request);
        held.push(stream);
        if held.len() % 25 == 0 {
            // The server gives up a connection after 10 seconds in which its reader takes nothing.
            let page = tokio::time::timeout(Duration::from_secs(8), server.metrics()).await.expect("before any of them is given up");
            assert!(page.contains("delo_build_info"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_grpc_is_an_unsupported_media_type_on_both_ports() {
    let server = start(&[]).await;
    let admin = server.addresses.admin.unwrap();
    for (address, path, message) in [
        (server.addresses.classifier, CLASSIFY, framed(&text("soup"))),
        (server.addresses.classifier, "/grpc.health.v1.Health/Check", framed(&HealthCheckRequest::default())),
        (admin, "/delo.v1.Admin/ListPartitions", framed(&ListPartitionsRequest {})),
    ] {
        for (kind, code) in [
            (Some("application/grpc"), 200),
            (Some("application/grpc+proto"), 200),
            (None, 415),
            (Some("application/json"), 415),
            (Some("application/grpc+json"), 415),
            (Some("application/grpc-web"), 415),
        ] {
            let mut client = raw(address, 65_535).await;
            let mut call = head(path);
            call.headers_mut().remove("content-type");
            if let Some(kind) = kind {
                call.headers_mut().insert("content-type", kind.parse().unwrap());
            }
            let (answer, mut stream) = client.send_request(call, false).unwrap();
            send_the_rest(&mut stream, message.clone());
            assert_eq!(answer.await.unwrap().status(), code, "{path} {kind:?}");
        }
    }
    server.assert_serving().await;
}
