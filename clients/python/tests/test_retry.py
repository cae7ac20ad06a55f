"""When the clients try again, against a fake server."""
from __future__ import annotations

import inspect
import pickle
import threading
import time

import grpc
import pytest

from conftest import Ask, Fake, refusal
from delo_client import AsyncClient, Busy, Client, DeadlineExceeded, DeloError, InvalidRequest, Retry, Unavailable

BUSY, UNAVAILABLE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE


def test_a_busy_server_is_asked_again_after_the_time_that_it_names_with_the_same_request_id(ask: Ask, fake: Fake) -> None:
    fake.refusals = [refusal(BUSY, 0.2), refusal(BUSY, 0.3)]
    start = time.monotonic()
    answer = ask(fake.address, lambda c: c.classify(text="pizza"))
    assert 0.5 <= time.monotonic() - start < 2.5
    assert len(fake.requests) == 3
    assert {request.request_id for request in fake.requests} == {answer.request_id} and answer.request_id


def test_waits_differ_by_chance(ask: Ask, fake: Fake) -> None:
    waits = []
    for _ in range(4):
        fake.refusals = [refusal(BUSY, 0.1)]
        start = time.monotonic()
        ask(fake.address, lambda c: c.classify(text="pizza"), retry=Retry(jitter=3.0))
        waits.append(time.monotonic() - start)
    assert min(waits) >= 0.1 and max(waits) - min(waits) > 0.01


def test_without_a_time_to_retry_an_exhausted_call_is_not_tried_again(ask: Ask, fake: Fake) -> None:
    fake.refusals = [refusal(BUSY)]
    with pytest.raises(DeloError) as refused:
        ask(fake.address, lambda c: c.classify(text="pizza"))
    assert not isinstance(refused.value, Busy) and refused.value.code is BUSY and len(fake.requests) == 1


def test_an_unavailable_server_is_asked_again_with_growing_waits(ask: Ask, fake: Fake) -> None:
    fake.refusals = [refusal(UNAVAILABLE)] * 3
    start = time.monotonic()
    ask(fake.address, lambda c: c.classify(text="pizza"))
    assert 0.7 <= time.monotonic() - start < 3 and len(fake.requests) == 4


def test_attempts_are_bounded(ask: Ask, fake: Fake) -> None:
    fake.refusals = [refusal(BUSY, 0.01)] * 9
    with pytest.raises(Busy) as busy:
        ask(fake.address, lambda c: c.classify(text="pizza", request_id="mine"), retry=Retry(attempts=3))
    assert (busy.value.retry_after, busy.value.request_id, len(fake.requests)) == (0.01, "mine", 3)


def test_a_wait_beyond_the_deadline_is_not_begun(ask: Ask, fake: Fake) -> None:
    fake.refusals = [refusal(BUSY, 60.0)]
    start = time.monotonic()
    with pytest.raises(Busy) as busy:
        ask(fake.address, lambda c: c.classify(text="pizza", timeout=5.0))
    assert busy.value.retry_after == 60.0 and time.monotonic() - start < 2


def test_the_deadline_covers_all_attempts(ask: Ask, fake: Fake) -> None:
    fake.refusals, fake.seconds = [refusal(BUSY, 0.1)] * 9, 0.3
    start = time.monotonic()
    with pytest.raises((Busy, DeadlineExceeded)):
        ask(fake.address, lambda c: c.classify(text="pizza"), timeout=1.0, retry=Retry(attempts=10))
    assert time.monotonic() - start < 1.5 and 2 <= len(fake.requests) <= 3


def test_a_call_without_an_answer_ends_at_its_deadline(ask: Ask, fake: Fake) -> None:
    fake.seconds = 60.0
    with pytest.raises(DeadlineExceeded):
        ask(fake.address, lambda c: c.classify(text="pizza", timeout=0.3))


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.FAILED_PRECONDITION])
def test_other_codes_are_not_tried_again(ask: Ask, fake: Fake, code: grpc.StatusCode) -> None:
    fake.refusals = [refusal(code, 0.01)]
    with pytest.raises(DeloError) as refused:
        ask(fake.address, lambda c: c.classify(text="pizza"))
    assert (refused.value.code, len(fake.requests)) == (code, 1)


def test_a_report_that_could_be_counted_twice_is_tried_again_only_where_nothing_was_done(ask: Ask, fake: Fake) -> None:
    fake.refusals = [refusal(UNAVAILABLE)]
    with pytest.raises(Unavailable):
        ask(fake.address, lambda c: c.report_outcome(task="a", true_task="b"))
    fake.refusals = [refusal(BUSY, 0.01)]
    assert ask(fake.address, lambda c: c.report_outcome(task="a", true_task="b")).counted
    fake.refusals = [refusal(UNAVAILABLE)]
    assert ask(fake.address, lambda c: c.report_outcome("id", true_task="b")).counted
    assert len(fake.requests) == 5


def test_a_server_that_starts_late_is_reached(ask: Ask) -> None:
    late = Fake()
    starter = threading.Timer(0.4, late.start)
    starter.start()
    try:
        assert ask(late.address, lambda c: c.classify(text="pizza"), retry=Retry(attempts=8)).task == "t"
    finally:
        starter.join()
        late.stop()


def test_metadata_are_sent_with_every_attempt_and_the_token_is_asked_for_each_time(ask: Ask, fake: Fake) -> None:
    fake.refusals = [refusal(BUSY, 0.01)]
    tokens = iter(["old", "new"])
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    metadata = [("x-shop", "7")]
    ask(fake.address, lambda c: c.classify(text="pizza", traceparent=trace), token=lambda: next(tokens), metadata=metadata)
    assert [sent["authorization"] for sent in fake.metadata] == ["Bearer old", "Bearer new"]
    assert {(sent["x-shop"], sent["traceparent"]) for sent in fake.metadata} == {("7", trace)}


def test_the_field_at_fault_is_read_beside_other_details(ask: Ask, fake: Fake) -> None:
    fake.refusals = [refusal(grpc.StatusCode.INVALID_ARGUMENT, 1.0, "reject")]
    with pytest.raises(InvalidRequest) as invalid:
        ask(fake.address, lambda c: c.classify(text="pizza"))
    assert invalid.value.field == "reject"


def test_an_error_survives_pickling(ask: Ask, fake: Fake) -> None:
    fake.refusals = [refusal(BUSY, 60.0)]
    with pytest.raises(Busy) as busy:
        ask(fake.address, lambda c: c.classify(text="pizza", timeout=5.0))
    copy = pickle.loads(pickle.dumps(busy.value))
    assert (type(copy), copy.code, copy.message, copy.retry_after) == (Busy, BUSY, "no", 60.0)


@pytest.mark.parametrize("server", ["", "localhost", "ftp://localhost:1", "http://:1"])
def test_an_address_that_is_none_is_refused(server: str) -> None:
    with pytest.raises(ValueError):
        Client(server)


def test_a_certificate_needs_tls_and_a_key() -> None:
    with pytest.raises(ValueError, match="https"):
        Client("http://localhost:1", ca=b"")
    with pytest.raises(ValueError, match="client_key"):
        Client("https://localhost:1", client_cert=b"")


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[inspect.Parameter]]:
        public = {name: each for name, each in vars(kind).items() if not name.startswith("_") or name == "__init__"}
        return {name: list(inspect.signature(each).parameters.values()) for name, each in public.items()}

    sync, asynchronous = methods(Client), methods(AsyncClient)
    # The asynchronous stream also takes asynchronous samples.
    for kind in (sync, asynchronous):
        kind["classify_stream"] = [each.replace(annotation=None) for each in kind["classify_stream"]]
    assert sync == asynchronous
