//! More than can be computed: what is refused, and what is answered.
use std::time::Duration;

use delo_proto::{ClassifyBatchRequest, ClassifyRequest, GetStatusRequest};
use futures::future::join_all;
use image::ImageFormat;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::harness::{Running, image, picture, refused, start_with, text, until};

/// Calls at once; each may be large.
async fn flood(server: &Running, requests: Vec<ClassifyRequest>, timeout: Option<&str>) -> Vec<Result<(), Status>> {
    let client = server.classifier_without_a_clock();
    let calls = requests.into_iter().map(|request| {
        let mut client = client.clone();
        let mut request = Request::new(request);
        if let Some(timeout) = timeout {
            request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        async move { client.classify(request).await.map(drop) }
    });
    join_all(calls).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_says_when_to_retry_and_the_rest_is_answered() {
    let server = start_with(&["food"], &[("batching.max_queue_samples", "16"), ("batching.max_samples", "2")]).await;
    let requests = (0..200).map(|i| image(picture(i, ImageFormat::Png))).collect();
    let answers = flood(&server, requests, None).await;
    let refusals: Vec<&Status> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(!refusals.is_empty() && refusals.len() < answers.len(), "{} of {}", refusals.len(), answers.len());
    for status in refusals {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    }
    server.assert_serving().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_make_its_deadline_is_answered_by_then_while_others_are_computed() {
    let server = start_with(&["food"], &[("batching.max_samples", "1"), ("batching.max_queue_samples", "400")]).await;
    let requests: Vec<_> = (0..400).map(|i| image(picture(i, ImageFormat::Png))).collect();
    let mut client = server.classifier().await;
    let bulk = ClassifyBatchRequest { requests: requests[..300].to_vec() };
    let computing = tokio::spawn(async move { client.classify_batch(bulk).await });
    let admin = server.admin().await;
    let depth = async || admin.clone().get_status(GetStatusRequest {}).await.unwrap().into_inner().queue_depth;
    until("samples that wait", depth, |depth| *depth > 0).await;
    // Too little time for any sample: the answer leaves five milliseconds before the caller's deadline.
    let answers = flood(&server, requests[300..].to_vec(), Some("6m")).await;
    assert!(!computing.is_finished(), "they were to be answered while others are computed");
    let refusals: Vec<&Status> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    // A quick machine may compute a few of them.
    assert!(refusals.len() > 50, "{} of 100", refusals.len());
    for status in &refusals {
        assert!([Code::DeadlineExceeded, Code::ResourceExhausted].contains(&status.code()), "{status:?}");
    }
    let mut counted = 0.0;
    for reason in ["deadline_exceeded", "would_expire", "queue_full", "client_share"] {
        counted += server.value(&format!("delo_rejected_total{{reason=\"{reason}\"}}")).await;
    }
    assert!(counted >= refusals.len() as f64, "{counted} of {}", refusals.len());
    computing.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_that_would_take_too_much_memory_is_refused_before_it_is_decoded() {
    let server = start_with(&["food"], &[("batching.max_queue_bytes", "200000")]).await;
    // 200 × 200 pixels decode to 120,000 bytes; decoding takes up to three times that.
    let large = image::DynamicImage::ImageRgb8(image::RgbImage::new(200, 200));
    let status = refused(
        server.classifier().await.classify(image(crate::harness::encoded(&large, ImageFormat::Png))).await,
        Code::InvalidArgument,
        "batching.max_queue_bytes",
    );
    assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "image");
    server.classifier().await.classify(text("small")).await.unwrap();
}
