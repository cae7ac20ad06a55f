//! More than can be computed: what is refused, what is answered, and when.
use std::time::{Duration, Instant};

use delo_proto::ClassifyRequest;
use futures::future::join_all;
use image::ImageFormat;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::harness::{Running, image, picture, refused, start_with, text};

/// Calls at once; each may be large.
async fn flood(server: &Running, requests: Vec<ClassifyRequest>, timeout: Option<&str>) -> Vec<(Result<(), Status>, Duration)> {
    let client = server.classifier_without_a_clock();
    let calls = requests.into_iter().map(|request| {
        let mut client = client.clone();
        let mut request = Request::new(request);
        if let Some(timeout) = timeout {
            request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        async move {
            let sent = Instant::now();
            (client.classify(request).await.map(drop), sent.elapsed())
        }
    });
    join_all(calls).await
}

fn value(page: &str, series: &str) -> f64 {
    page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok()).unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_says_when_to_retry_and_the_rest_is_answered() {
    let server = start_with(&["food"], &[("batching.max_queue_samples", "16"), ("batching.max_samples", "2")]).await;
    let requests = (0..200).map(|i| image(picture(i, ImageFormat::Png))).collect();
    let answers = flood(&server, requests, None).await;
    let refusals: Vec<&Status> = answers.iter().filter_map(|(answer, _)| answer.as_ref().err()).collect();
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
    let requests = (0..300).map(|i| image(picture(i, ImageFormat::Png))).collect();
    let answers = flood(&server, requests, Some("60m")).await;
    // Most are refused at once, by the pace measured so far; those of which it was too hopeful expire.
    let late: Vec<Duration> = answers.iter().filter_map(|(answer, took)| answer.is_err().then_some(*took)).collect();
    let known = [Code::DeadlineExceeded, Code::ResourceExhausted];
    for status in answers.iter().filter_map(|(answer, _)| answer.as_ref().err()) {
        assert!(known.contains(&status.code()), "{status:?}");
    }
    assert!(late.len() > 100, "{} of 300", late.len());
    // A test shares its machine with others; the load scenario `expiry` measures the milliseconds, and that nothing of it is computed.
    assert!(late.iter().all(|took| *took < Duration::from_millis(1000)), "{late:?}");
    let page = server.metrics().await;
    let refused = ["deadline_exceeded", "would_expire", "queue_full", "client_share"]
        .map(|reason| value(&page, &format!("delo_rejected_total{{reason=\"{reason}\"}}")));
    assert!(refused.iter().sum::<f64>() >= late.len() as f64, "{refused:?}");
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
