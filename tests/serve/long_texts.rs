//! Texts longer than the checkpoint's own text positions (`model.text_positions`).
use delo_proto::ClassifyResponse;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::artifacts::with_meta;
use crate::harness::{Running, TASKS, artifact, refused, start, start_at, start_in, state_in, text};

/// Tokens of the longest text of these servers, [CLS] and [SEP] included.
const POSITIONS: usize = 512;
const SETTING: (&str, &str) = ("model.text_positions", "512");

/// The bytes of a small partition of this task that was trained with [`POSITIONS`].
fn long(task: &str) -> Vec<u8> {
    with_meta(&artifact(task), |meta| meta["text_positions"] = POSITIONS.into())
}

/// A server of [`POSITIONS`] that serves [`TASKS`].
async fn start_long() -> Running {
    let partitions = tempfile::tempdir().unwrap();
    for task in TASKS {
        std::fs::write(partitions.path().join(format!("{task}.safetensors")), long(task)).unwrap();
    }
    let server = start_in(partitions, &[SETTING]).await;
    server.until_health(ServingStatus::Serving).await;
    server
}

/// A text of this many words, each one token, of which the last is `last`.
fn words(count: usize, last: &str) -> String {
    format!("{}{last}", "cat ".repeat(count - 1))
}

async fn answer(server: &Running, words: &str) -> ClassifyResponse {
    let answer = server.classifier().await.classify(text(words)).await.unwrap().into_inner();
    ClassifyResponse { request_id: String::new(), ..answer }
}

fn read(answer: &ClassifyResponse) -> (u32, bool) {
    let reading = answer.modalities.as_ref().unwrap().text_reading.unwrap();
    (reading.tokens, reading.truncated)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_text_is_read_to_its_end_and_every_server_answers_the_same() {
    let (one, other, short) = (start_long().await, start_long().await, start().await);
    let full = POSITIONS - 2;
    let (rain, soup) = (words(full, "rain"), words(full, "soup"));
    let long_answer = answer(&one, &rain).await;
    assert_eq!(read(&long_answer), (510, false));
    assert_ne!(long_answer.scores, answer(&one, &soup).await.scores, "the last word decides nothing");
    assert_eq!(long_answer, answer(&other, &rain).await, "to the bit");
    // What goes beyond is cut off, and the answer says so.
    let beyond = [words(full + 1, "rain"), words(full + 1, "soup")];
    let [rain_beyond, soup_beyond] = [answer(&one, &beyond[0]).await, answer(&one, &beyond[1]).await];
    assert_eq!((read(&rain_beyond), &rain_beyond.scores), ((510, true), &soup_beyond.scores));
    // The checkpoint's own 40 positions.
    let [rain, soup] = [answer(&short, &rain).await, answer(&short, &soup).await];
    assert_eq!((read(&rain), &rain.scores), ((38, true), &soup.scores));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_of_other_text_positions_is_refused_and_says_what_to_set() {
    for (server, other, words) in [
        (start().await, long("symbols"), ["512 text positions", "model.text_positions = 512", "train it with --text-positions 40"]),
        (start_long().await, artifact("symbols"), ["40 text positions", "model.text_positions = 40", "train it with --text-positions 512"]),
    ] {
        let status = refused(server.upload(other).await, Code::FailedPrecondition, "symbols");
        assert!(words.iter().all(|words| status.message().contains(words)), "{status:?}");
        assert_eq!(server.live().await, TASKS.map(|t| (t.to_owned(), 1)));
        server.assert_serving().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_another_setting_is_refused_and_loses_nothing_of_the_state() {
    let (state, partitions) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(partitions.path().join("food.safetensors"), long("food")).unwrap();
    let settings = [SETTING, state_in(state.path())[0]];
    let mut server = start_at(partitions.path(), &settings).await;
    server.until_health(ServingStatus::Serving).await;
    server.ask_to_stop();
    server.ended().await.unwrap();
    std::fs::remove_file(partitions.path().join("food.safetensors")).unwrap();
    let refusal = start_at(partitions.path(), &state_in(state.path())).await.ended().await.unwrap_err().to_string();
    assert!(refusal.contains("food") && refusal.contains("model.text_positions = 512"), "{refusal}");
    let server = start_at(partitions.path(), &settings).await;
    server.until_health(ServingStatus::Serving).await;
    assert_eq!(server.live().await, [("food".to_owned(), 1)]);
}
