"""Both clients against the server itself."""
from __future__ import annotations

import asyncio
import io
import time
import uuid
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from PIL import Image

from conftest import PEACH, Ask, Secured
from delo_client import (
    Answer,
    AsyncClient,
    Client,
    DeadlineExceeded,
    DeloError,
    InvalidRequest,
    Modality,
    NotFound,
    PermissionDenied,
    Priority,
    Result,
    Retry,
    Sample,
    Unauthenticated,
    Unavailable,
)


@pytest.fixture
def extended(server: str) -> None:
    """Skips a test of what servers from before Describe and timings lack."""
    try:
        with Client(server) as client:
            client.describe()
    except DeloError as error:
        if error.code is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        pytest.skip("the server answers UNIMPLEMENTED to Describe: it is older than Describe and timings")


def test_a_text_is_classified(ask: Ask, server: str) -> None:
    answer: Answer = ask(server, lambda c: c.classify(text="slice of pizza with cheese", top_k=2, max_candidates=3))
    assert answer.task == answer.routed_task == "food-drink"
    assert answer.label == "food-prepared" and len(answer.scores) == 2
    assert answer.scores[0].score > 0.9
    assert answer.probability is not None and answer.probability > 0.9
    assert answer.cosine is not None and answer.margin is not None and answer.typicality is not None
    assert not answer.rejected and not answer.early
    assert [c.task for c in answer.candidates][:1] == ["food-drink"] and len(answer.candidates) == 3
    assert (answer.image, answer.text) == (Modality.PROXIED, Modality.PRESENT)
    assert answer.text_reading is not None and answer.text_reading.understood and not answer.text_reading.truncated
    assert (answer.factors, answer.timings) == ((), None)
    assert answer.version == 1 and answer.model
    uuid.UUID(answer.request_id)


def test_a_path_bytes_and_a_picture_are_the_same_image(ask: Ask, server: str) -> None:
    given = [str(PEACH), PEACH, PEACH.read_bytes(), Image.open(PEACH)]
    answers = [ask(server, lambda c: c.classify(image, "peach")) for image in given]
    assert {answer.label for answer in answers} == {"food-fruit"}
    assert {answer.image for answer in answers} == {Modality.PRESENT}
    assert len({answer.scores for answer in answers}) == 1


def test_a_picture_is_sent_upright_and_in_a_mode_of_png(ask: Ask, server: str) -> None:
    upright = Image.open(PEACH).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    turned = io.BytesIO()
    upright.rotate(180).save(turned, "TIFF", exif=exif)
    pictures = [upright, Image.open(turned), upright.convert("HSV")]
    answers = [ask(server, lambda c: c.classify(picture)) for picture in pictures]
    assert answers[0].scores == answers[1].scores
    assert answers[2].image is Modality.PRESENT


def test_a_named_task_skips_routing(ask: Ask, server: str) -> None:
    answer: Answer = ask(server, lambda c: c.classify(text="pizza", task="food-drink", top_k=0, explain=True))
    assert answer.task == "food-drink" and len(answer.scores) > 5
    assert (answer.routed_task, answer.probability, answer.cosine, answer.margin, answer.typicality) == (None,) * 5
    assert answer.candidates == ()
    assert answer.factors and answer.factors[0].target in ("query", "key", "value")
    assert len(answer.factors[0].a) == len(answer.factors[0].b) > 0


def test_a_rejected_sample_has_neither_task_nor_scores(ask: Ask, server: str) -> None:
    answer: Answer = ask(server, lambda c: c.classify(text="qwrt zzz", reject=1.0, priority=Priority.BULK))
    assert answer.rejected and answer.task is None and answer.label is None and answer.scores == ()
    assert answer.routed_task is not None


def test_errors_have_classes_and_fields(ask: Ask, server: str) -> None:
    with pytest.raises(InvalidRequest) as invalid:
        ask(server, lambda c: c.classify(b"no image", request_id="broken"))
    assert (invalid.value.field, invalid.value.request_id) == ("image", "broken")
    with pytest.raises(InvalidRequest):
        ask(server, lambda c: c.classify())
    with pytest.raises(InvalidRequest) as share:
        ask(server, lambda c: c.classify(text="pizza", reject=1.5))
    assert share.value.field == "reject"
    with pytest.raises(NotFound, match="space"):
        ask(server, lambda c: c.classify(text="a rocket", task="space"))
    with pytest.raises(TypeError, match="float"):
        ask(server, lambda c: c.classify(1.5))
    with pytest.raises(FileNotFoundError):
        ask(server, lambda c: c.classify("no/such.png"))


def test_a_message_that_is_too_long_is_not_busy(ask: Ask, server: str) -> None:
    start = time.monotonic()
    with pytest.raises(DeloError) as refused:
        ask(server, lambda c: c.classify(bytes(26_000_000)))
    assert type(refused.value) is DeloError and refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert time.monotonic() - start < 10


def test_a_batch_answers_in_order_with_errors_in_place(ask: Ask, server: str) -> None:
    samples = [Sample(text="pizza", request_id="a"), Sample(b"no image", request_id="b"), Sample(PEACH, request_id="c")]
    results: list[Result] = ask(server, lambda c: c.classify_batch(iter(samples)))
    assert [result.request_id for result in results] == ["a", "b", "c"]
    first, broken, last = results
    assert isinstance(first, Answer) and first.label == "food-prepared"
    assert isinstance(broken, InvalidRequest) and broken.field == "image"
    assert isinstance(last, Answer) and last.image is Modality.PRESENT


def test_a_batch_with_more_samples_than_a_call_may_have_is_refused(ask: Ask, server: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ask(server, lambda c: c.classify_batch([Sample(text="pizza")] * 1025))
    assert refused.value.field == "requests"


def test_a_stream_answers_each_sample(server: str) -> None:
    samples = [Sample(text=text, request_id=text) for text in ("pizza", "soup", "peach")]
    with Client(server) as client:
        results = list(client.classify_stream([*samples, Sample(b"no", request_id="no")]))
    assert sorted(str(result.request_id) for result in results) == ["no", "peach", "pizza", "soup"]
    assert [type(result) for result in results if result.request_id == "no"] == [InvalidRequest]


def test_an_asyncio_stream_answers_samples_as_they_come(server: str) -> None:
    async def main() -> list[str]:
        answered: asyncio.Queue[str] = asyncio.Queue()

        async def samples() -> AsyncIterator[Sample]:
            yield Sample(text="pizza", request_id="first")
            # The next sample depends on the answer to the one before it.
            assert await answered.get() == "first"
            yield Sample(PEACH, request_id="second")

        seen = []
        async with AsyncClient(server) as client:
            async for result in client.classify_stream(samples()):
                assert isinstance(result, Answer)
                seen.append(result.request_id)
                answered.put_nowait(result.request_id)
            plain = [r.request_id async for r in client.classify_stream([Sample(text="soup", request_id="third")])]
        return seen + [str(request_id) for request_id in plain]

    assert asyncio.run(main()) == ["first", "second", "third"]


def test_what_the_samples_of_a_stream_raise_is_raised_after_the_answers_before_it(server: str) -> None:
    def samples() -> Iterator[Sample]:
        yield Sample(text="pizza", request_id="before")
        raise KeyError("mine")

    seen = []
    with Client(server) as client, pytest.raises(KeyError, match="mine"):
        for result in client.classify_stream(samples()):
            seen.append(result.request_id)
    assert seen == ["before"]

    async def main() -> None:
        async with AsyncClient(server) as client:
            async for result in client.classify_stream(samples()):
                seen.append(result.request_id)

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(main())
    assert seen == ["before", "before"]


def test_a_stream_can_be_left_early(server: str) -> None:
    def endless() -> Iterator[Sample]:
        while True:
            yield Sample(text="pizza")

    with Client(server) as client:
        stream = client.classify_stream(endless())
        assert isinstance(next(stream), Answer)
        del stream
        assert client.health()


def test_an_outcome_is_counted_once(ask: Ask, server: str) -> None:
    request_id = str(uuid.uuid4())
    answer: Answer = ask(server, lambda c: c.classify(text="slice of pizza with cheese", request_id=request_id))
    assert answer.request_id == request_id
    labels = ["food-prepared"]
    outcome = ask(server, lambda c: c.report_outcome(request_id, true_task="food-drink", true_labels=labels))
    assert (outcome.routed_task, outcome.task_correct, outcome.label_correct, outcome.counted) == ("food-drink", True, True, True)
    again = ask(server, lambda c: c.report_outcome(request_id, true_labels=["food-fruit"]))
    assert (again.task_correct, again.label_correct, again.counted) == (None, False, False)
    with pytest.raises(NotFound):
        ask(server, lambda c: c.report_outcome(str(uuid.uuid4()), true_task="food-drink"))


def test_health_is_that_of_the_server(ask: Ask, server: str) -> None:
    assert ask(server, lambda c: c.health()) is True
    assert ask(server, lambda c: c.health("liveness")) is True
    with pytest.raises(NotFound):
        ask(server, lambda c: c.health("no-service"))
    with pytest.raises(Unavailable):
        ask("127.0.0.1:1", lambda c: c.health())


def test_describe_unless_the_server_answers_unimplemented(ask: Ask, server: str, extended: None) -> None:
    description = ask(server, lambda c: c.describe())
    tasks = {task.task: task for task in description.tasks}
    assert list(tasks) == sorted(tasks) and "food-prepared" in tasks["food-drink"].labels
    food = tasks["food-drink"]
    assert food.version == 1 and len(food.digest) == 64 and food.created and not food.multi_label
    assert description.version and description.model and len(description.backbone_fingerprint) == 64
    assert description.routing_metric == "lda" and description.routing_signal
    limits = description.limits
    assert (limits.max_message_bytes, limits.max_samples_per_call) == (25165824, 1024)
    assert (limits.max_image_bytes, limits.max_image_pixels, limits.max_image_side) == (20971520, 50000000, 20000)
    assert limits.max_text_bytes == 131072 and limits.text_tokens > 2
    assert (limits.default_deadline_seconds, limits.max_deadline_seconds) == (30.0, 120.0)
    one = ask(server, lambda c: c.describe(["food-drink", "space"]))
    assert [task.task for task in one.tasks] == ["food-drink"]


def test_recent_routing_counts_samples_and_outcomes_unless_the_server_answers_unimplemented(
    ask: Ask, server: str, extended: None
) -> None:
    before = ask(server, lambda c: c.describe(["food-drink"]))
    answer = ask(server, lambda c: c.classify(text="slice of pizza with cheese"))
    ask(server, lambda c: c.report_outcome(answer.request_id, true_task="food-drink"))
    after = ask(server, lambda c: c.describe(["food-drink"]))
    for earlier, later in ((before.recent, after.recent), (before.tasks[0].recent, after.tasks[0].recent)):
        assert later.samples == earlier.samples + 1 and later.outcomes == earlier.outcomes + 1
        assert later.right == earlier.right + 1
        assert 0 < later.expected_accuracy <= 1 and later.window_seconds > 0


def test_timings_unless_the_server_answers_unimplemented_to_describe(ask: Ask, server: str, extended: None) -> None:
    timings = ask(server, lambda c: c.classify(PEACH, "peach", timings=True)).timings
    assert timings.batch_samples >= 1
    parts = timings.decode_seconds + timings.tokenize_seconds + timings.queue_seconds + timings.compute_seconds
    # Decoding and tokenising may overlap, so that the parts can exceed the total by what is done at the same time.
    assert 0 < timings.total_seconds and parts <= 2 * timings.total_seconds
    of_compute = timings.frozen_seconds + timings.decision_seconds + timings.adapted_seconds
    assert 0 < of_compute <= timings.compute_seconds
    assert timings.decode_seconds > 0 and timings.tokenize_seconds > 0


def test_tls_with_a_token(ask: Ask, secured: Secured) -> None:
    def classify(token: object, **arguments: object) -> Answer:
        answer = ask(secured.address, lambda c: c.classify(text="pizza"), ca=secured.ca, token=token, **arguments)
        assert isinstance(answer, Answer)
        return answer

    assert classify(secured.TOKEN).label == "food-prepared"
    assert classify(lambda: secured.TOKEN + "\n").label == "food-prepared"
    with pytest.raises(Unauthenticated):
        classify(None)
    with pytest.raises(Unauthenticated):
        classify("another")
    with pytest.raises(PermissionDenied):
        classify(secured.READ_ONLY_TOKEN)
    # Health needs no token.
    assert ask(secured.address, lambda c: c.health(), ca=secured.ca.read_bytes()) is True


def test_tls_with_a_client_certificate(ask: Ask, secured: Secured) -> None:
    certificate = {"ca": secured.ca, "client_cert": secured.cert, "client_key": secured.key}
    assert ask(secured.address, lambda c: c.classify(text="pizza"), **certificate).label == "food-prepared"
    # Without a scheme, a certificate says that it is TLS.
    bare = secured.address.rpartition("/")[2]
    assert ask(bare, lambda c: c.classify(text="pizza"), **certificate).label == "food-prepared"


def test_a_server_that_is_not_trusted_is_unavailable(ask: Ask, secured: Secured) -> None:
    with pytest.raises(Unavailable):
        ask(secured.address, lambda c: c.classify(text="pizza"), token=secured.TOKEN, retry=Retry(attempts=1))


def test_a_deadline_that_is_too_short_is_exceeded(ask: Ask, server: str) -> None:
    with pytest.raises(DeadlineExceeded):
        ask(server, lambda c: c.classify(text="pizza", timeout=1e-4))
