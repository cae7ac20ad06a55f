//! What a caller gets.
use delo_proto::classify_result::Result::{Error, Response};
use delo_proto::{ClassifyBatchRequest, ClassifyRequest, Modality, TextReading};
use image::ImageFormat;
use prost::Message;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::artifacts::renamed;
use crate::harness::{TASKS, agree, artifact, image, mixed_requests, picture, start, start_in, start_with, text};

#[tokio::test(flavor = "multi_thread")]
async fn classifies_an_image_a_text_or_both_without_a_given_task() {
    let server = start().await;
    let mut client = server.classifier().await;
    let both = ClassifyRequest { text: Some("a cat".to_owned()), ..image(picture(1, ImageFormat::Png)) };
    for (request, image, text) in [
        (both, Modality::Present, Modality::Present),
        (image(picture(1, ImageFormat::Jpeg)), Modality::Present, Modality::Proxied),
        (text("a cat"), Modality::Proxied, Modality::Present),
        (ClassifyRequest { text: Some(" ".to_owned()), ..image(picture(2, ImageFormat::Png)) }, Modality::Present, Modality::Proxied),
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

#[tokio::test(flavor = "multi_thread")]
async fn tells_how_the_text_was_read() {
    let server = start().await;
    let mut client = server.classifier().await;
    // The embedded model reads 40 tokens, [CLS] and [SEP] among them.
    for (words, understood, truncated, tokens, unknown_tokens) in [
        ("a cat".to_owned(), true, false, 2, 0),
        ("\u{1f600}".to_owned(), false, false, 1, 1),
        ("cat ".repeat(39), true, true, 38, 0),
        ("[SEP]".to_owned(), true, false, 3, 0),
    ] {
        let answer = client.classify(text(&words)).await.unwrap().into_inner();
        let modalities = answer.modalities.unwrap();
        assert_eq!(modalities.text(), Modality::Present, "{words:?}");
        assert_eq!(modalities.text_reading, Some(TextReading { understood, truncated, tokens, unknown_tokens }), "{words:?}");
    }
    let blank = ClassifyRequest { text: Some(" ".to_owned()), ..image(picture(2, ImageFormat::Png)) };
    assert_eq!(client.classify(blank).await.unwrap().into_inner().modalities.unwrap().text_reading, None);
    let page = server.metrics().await;
    for reading in ["understood", "unknown", "truncated"] {
        let counted = page.lines().find_map(|line| line.strip_prefix(&format!("delo_texts_total{{reading=\"{reading}\"}} ")));
        assert!(counted.unwrap().parse::<u64>().unwrap() >= 1, "{reading}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_cannot_hide_its_words_behind_special_tokens() {
    let server = start().await;
    let mut client = server.classifier().await;
    let mut answer = async |words: &str| client.classify(text(words)).await.unwrap().into_inner();
    // The same words, written as a special token is and not.
    let (special, plain) = (answer("[SEP] soup [PAD] [PAD]").await, answer("[sep] soup [pad] [pad]").await);
    assert!(agree(&special, &plain) && special.modalities == plain.modalities, "{special:?} {plain:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn candidates_are_as_many_as_requested_and_the_margin_is_there_without_them() {
    let tasks = ["a", "b", "c", "d", "e", "f", "g"];
    let server = start_with(&tasks, &[]).await;
    let mut client = server.classifier().await;
    let mut routing = async |max_candidates| {
        let request = ClassifyRequest { max_candidates, ..text("a cat") };
        client.classify(request).await.unwrap().into_inner().routing.unwrap()
    };
    let all = routing(Some(u32::MAX)).await;
    assert_eq!(all.candidates.len(), tasks.len());
    assert!(all.candidates.is_sorted_by(|a, b| a.cosine >= b.cosine));
    for (most, length) in [(None, 5), (Some(0), 0), (Some(1), 1), (Some(6), 6), (Some(7), 7), (Some(8), 7)] {
        let routing = routing(most).await;
        assert_eq!(routing.candidates, all.candidates[..length], "{most:?}");
        assert_eq!((&routing.task, routing.cosine, routing.margin), (&all.task, all.cosine, all.margin), "{most:?}");
    }
}

/// What a gRPC client takes by default, grpcio and tonic alike.
const DEFAULT_CLIENT_LIMIT: usize = 4 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_batch_over_a_hundred_tasks_fits_what_a_client_takes_by_default() {
    let partitions = tempfile::tempdir().unwrap();
    let one = artifact("food");
    for i in 0..100 {
        let task = format!("{i:0>3}-{}", "n".repeat(36));
        std::fs::write(partitions.path().join(format!("{i}.safetensors")), renamed(&one, &task)).unwrap();
    }
    let server = start_in(partitions, &[]).await;
    server.until_health(ServingStatus::Serving).await;
    let requests = vec![ClassifyRequest { top_k: Some(1), ..text("soup") }; 1024];
    let answer = server.classifier().await.classify_batch(ClassifyBatchRequest { requests }).await.unwrap().into_inner();
    let answered = answer.results.iter().filter(|r| matches!(&r.result, Some(Response(r)) if r.task.len() == 40 && r.routing.is_some()));
    assert_eq!(answered.count(), 1024);
    assert!(answer.encoded_len() < DEFAULT_CLIENT_LIMIT / 2, "{} bytes", answer.encoded_len());
}
