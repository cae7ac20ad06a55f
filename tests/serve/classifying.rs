//! What a caller gets.
use delo::serve::pb::classify_result::Result::{Error, Response};
use delo::serve::pb::{ClassifyBatchRequest, ClassifyRequest, Modality};
use image::ImageFormat;
use tonic::Code;
use tonic::codec::CompressionEncoding;

use crate::harness::{TASKS, agree, image, mixed_requests, picture, start, text};

#[tokio::test(flavor = "multi_thread")]
async fn classifies_an_image_a_text_or_both_without_being_told_the_task() {
    let server = start().await;
    let mut client = server.classifier().await;
    let both = ClassifyRequest { text: Some("a cat".to_owned()), ..image(picture(1, ImageFormat::Png)) };
    for (request, image, text) in [
        (both, Modality::Present, Modality::Present),
        (image(picture(1, ImageFormat::Jpeg)), Modality::Present, Modality::Proxied),
        (text("a cat"), Modality::Proxied, Modality::Present),
        (text(""), Modality::Proxied, Modality::Present),
    ] {
        let answer = client.classify(request).await.unwrap().into_inner();
        assert!(TASKS.contains(&answer.task.as_str()));
        let modalities = answer.modalities.unwrap();
        assert_eq!((modalities.image(), modalities.text()), (image, text));
        assert!((answer.scores.iter().map(|s| s.score).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(answer.scores.is_sorted_by(|a, b| a.score >= b.score));
        assert!(answer.scores[0].label.starts_with(&answer.task));
        let routing = answer.routing.unwrap();
        assert_eq!((routing.task.as_str(), routing.candidates.len()), (answer.task.as_str(), TASKS.len()));
        assert!((routing.margin() - (routing.candidates[0].cosine - routing.candidates[1].cosine)).abs() < 1e-6);
        assert_eq!((answer.partition_version, answer.model.as_str()), (1, "emoji-mini (embedded)"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn honours_every_option_of_a_request() {
    let server = start().await;
    let mut client = server.classifier().await;
    let named = ClassifyRequest { task: "food".to_owned(), request_id: "mine".to_owned(), top_k: Some(2), ..text("soup") };
    let answer = client.classify(named).await.unwrap().into_inner();
    assert_eq!((answer.task.as_str(), answer.request_id.as_str(), answer.scores.len()), ("food", "mine", 2));
    assert!(answer.routing.is_none() && answer.factors.is_empty());

    let plain = client.classify(ClassifyRequest { top_k: None, ..text("soup") }).await.unwrap().into_inner();
    assert_eq!(plain.scores.len(), 5);
    assert_eq!(plain.request_id.len(), 36, "a UUID");

    let explained = client.classify(ClassifyRequest { explain: true, ..text("soup") }).await.unwrap().into_inner();
    // Layers 3 to 5, query, key and value, visual and textual; rank 2.
    assert_eq!(explained.factors.len(), 3 * 3 * 2);
    assert!(explained.factors.iter().all(|f| f.a.len() == 2 && f.b.len() == 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_holds_an_answer_or_an_error_for_each_sample() {
    let server = start().await;
    let mut client = server.classifier().await;
    let (first, last) = (text("a cat"), image(picture(3, ImageFormat::Png)));
    let requests = vec![
        first.clone(),
        ClassifyRequest::default(),
        image(b"no image".to_vec()),
        ClassifyRequest { task: "none".to_owned(), ..text("a") },
        last,
    ];
    let results = client.classify_batch(ClassifyBatchRequest { requests }).await.unwrap().into_inner().results;
    let alone = client.classify(first).await.unwrap().into_inner();
    let results: Vec<_> = results.into_iter().map(|r| r.result.unwrap()).collect();
    assert!(matches!(&results[0], Response(r) if agree(r, &alone)));
    for (at, code, field) in [(1, Code::InvalidArgument, "image"), (2, Code::InvalidArgument, "image"), (3, Code::NotFound, "")] {
        assert!(matches!(&results[at], Error(e) if e.code == code as i32 && e.field == field), "{:?}", results[at]);
    }
    assert!(matches!(&results[4], Response(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_requests_get_the_same_answer() {
    let server = start().await;
    let mut plain = server.classifier().await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut client = server.classifier().await.send_compressed(encoding).accept_compressed(encoding);
        for request in mixed_requests(3) {
            let (a, b) = (client.classify(request.clone()).await.unwrap(), plain.classify(request).await.unwrap());
            assert!(agree(a.get_ref(), b.get_ref()));
        }
    }
}
