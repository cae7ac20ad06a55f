//! Bad requests: each is refused with its status, and the server still serves.
use delo_proto::load_partition_request::Source;
use delo_proto::{ClassifyBatchRequest, ClassifyRequest, LoadPartitionRequest, ReportOutcomeRequest};
use futures::stream;
use image::{DynamicImage, ImageFormat, RgbImage};
use tonic::codec::CompressionEncoding;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::{Running, encoded, eventually, image, picture, refused, start, start_with, text};

async fn classify(server: &Running, request: ClassifyRequest) -> Result<(), Status> {
    server.classifier().await.classify(request).await.map(drop)
}

/// A PNG whose header claims this size.
fn png_bomb(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = encoded(&DynamicImage::ImageRgb8(RgbImage::new(1, 1)), ImageFormat::Png);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 }))
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_samples_that_cannot_be_read_naming_the_field() {
    let server = start().await;
    let jpeg = picture(1, ImageFormat::Jpeg);
    for (request, field) in [
        (ClassifyRequest::default(), "image"),
        (text(""), "text"),
        (text("\u{200b}\u{a0}\0"), "text"),
        (text(&"a".repeat(10 << 20)), "text"),
        (image(jpeg[..jpeg.len() / 3].to_vec()), "image"),
        (image(png_bomb(50_000, 50_000)), "image"),
        (image(b"%PDF-1.7 this is no picture".to_vec()), "image"),
        (image(Vec::new()), "image"),
        (image(vec![0; 21 << 20]), "image"),
        (ClassifyRequest { request_id: "x".repeat(129), ..text("a") }, "request_id"),
    ] {
        let status = refused(classify(&server, request).await, Code::InvalidArgument, "");
        let violation = &status.get_details_bad_request().unwrap().field_violations[0];
        assert_eq!(violation.field, field, "{status:?}");
        assert!(!violation.description.is_empty());
        server.assert_serving().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_unusual_images() {
    let server = start().await;
    let grey = DynamicImage::new_luma8(50, 60);
    for bytes in [
        encoded(&DynamicImage::new_rgb8(1, 5000), ImageFormat::Png),
        encoded(&DynamicImage::new_luma16(30, 30), ImageFormat::Png),
        encoded(&DynamicImage::new_rgba8(30, 30), ImageFormat::Png),
        encoded(&grey, ImageFormat::Jpeg),
        encoded(&grey, ImageFormat::Bmp),
        encoded(&DynamicImage::new_rgba8(30, 30), ImageFormat::Gif),
        encoded(&DynamicImage::new_rgba8(30, 30), ImageFormat::WebP),
    ] {
        classify(&server, image(bytes)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_another_kind_is_named_and_a_damaged_palette_is_served() {
    let server = start().await;
    let heic = image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".to_vec());
    let status = refused(classify(&server, heic).await, Code::InvalidArgument, "HEIC");
    assert!(status.message().contains("convert it to JPEG or PNG"), "{status:?}");
    // A palette of one colour and a byte.
    let mut png = encoded(&DynamicImage::ImageRgb8(RgbImage::new(1, 1)), ImageFormat::Png)[..33].to_vec();
    png[25] = 3;
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    for (kind, body) in [(b"PLTE", &[10, 20, 30, 40][..]), (b"IDAT", &[0x78, 1, 1, 2, 0, 0xfd, 0xff, 0, 0, 0, 2, 0, 1])] {
        png.extend((body.len() as u32).to_be_bytes());
        let start = png.len();
        png.extend(kind);
        png.extend(body);
        let crc = crc32(&png[start..]);
        png.extend(crc.to_be_bytes());
    }
    classify(&server, image(png)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_a_message_over_the_limit() {
    let server = start_with(&["food"], &[("server.max_message_bytes", "10000")]).await;
    let words = "longer than the 10000 bytes that server.max_message_bytes allows";
    let long = image(vec![0; 20_000]);
    for compression in [None, Some(CompressionEncoding::Gzip), Some(CompressionEncoding::Zstd)] {
        let client = server.classifier().await;
        let mut client = compression.into_iter().fold(client, |client, encoding| client.send_compressed(encoding));
        // Of a stream, the answers to what came before are read first.
        let mut answers = client.classify_stream(stream::iter([text("soup"), long.clone()])).await.unwrap().into_inner();
        let ended = loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended well"),
                Err(status) => break status,
            }
        };
        let requests = vec![text("soup"), long.clone()];
        let statuses = [
            client.classify(long.clone()).await.unwrap_err(),
            client.classify_batch(ClassifyBatchRequest { requests }).await.unwrap_err(),
            ended,
        ];
        for status in statuses {
            assert_eq!(status.code(), Code::ResourceExhausted, "{compression:?}: {status:?}");
            assert!(status.message().contains(words), "{compression:?}: {status:?}");
            assert!(status.get_details_retry_info().is_none(), "the same message is refused again");
        }
    }
    server.assert_serving().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_an_upload_over_the_limit() {
    let server = start_with(&[], &[("admin.max_artifact_bytes", "500000")]).await;
    for compression in [None, Some(CompressionEncoding::Gzip)] {
        let client = server.admin().await;
        let mut client = compression.into_iter().fold(client, |client, encoding| client.send_compressed(encoding));
        let source = Some(Source::Artifact(vec![0; 1_000_000].into()));
        let status = client.load_partition(LoadPartitionRequest { source, ..Default::default() }).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("500000 bytes that admin.max_artifact_bytes allows"), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_more_samples_in_one_call_than_allowed() {
    let server = start_with(&["food"], &[("batching.max_samples_per_call", "2")]).await;
    let requests = vec![text("a"); 3];
    refused(server.classifier().await.classify_batch(ClassifyBatchRequest { requests }).await, Code::InvalidArgument, "3 samples");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_a_task_that_is_not_loaded() {
    let server = start().await;
    refused(classify(&server, ClassifyRequest { task: "space".to_owned(), ..text("a") }).await, Code::NotFound, "space");
    refused(classify(&server, ClassifyRequest { task: "x".repeat(1 << 20), ..text("a") }).await, Code::NotFound, "xxx");
    let report = ReportOutcomeRequest { request_id: "x".repeat(1 << 20), true_task: "food".to_owned(), ..Default::default() };
    refused(server.classifier().await.report_outcome(report).await, Code::InvalidArgument, "at most 128");
}

#[tokio::test(flavor = "multi_thread")]
async fn says_when_to_retry_when_it_is_full() {
    let server = start_with(&["food"], &[("server.max_in_flight_requests", "1"), ("batching.max_queue_samples", "1")]).await;
    let flood = (0..200).map(|i| {
        let server = &server;
        async move { classify(server, image(picture(i, ImageFormat::Png))).await }
    });
    let refusals: Vec<Status> = futures::future::join_all(flood).await.into_iter().filter_map(Result::err).collect();
    assert!(!refusals.is_empty());
    for status in refusals {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    }
    // The last answer's permit comes back a moment after the answer.
    eventually(async || server.classifier().await.classify(text("soup")).await).await;
}
