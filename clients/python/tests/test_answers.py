"""What the messages of Describe and timings become, without a server."""
from __future__ import annotations

from delo_client import Limits, RecentRouting, TaskDescription, Timings, answers
from delo_client._generated import classifier_pb2 as pb


def test_timings_are_read_field_by_field() -> None:
    message = pb.Timings(
        total_seconds=1, decode_seconds=2, tokenize_seconds=3, queue_seconds=4, compute_seconds=5,
        frozen_seconds=6, decision_seconds=7, adapted_seconds=8, batch_samples=9,
    )
    assert answers.answer(pb.ClassifyResponse(timings=message)).timings == Timings(1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert answers.answer(pb.ClassifyResponse()).timings is None


def test_a_description_is_read_field_by_field() -> None:
    recent = pb.RecentRouting(window_seconds=300, samples=2, expected_accuracy=0.5, outcomes=1, right=1)
    message = pb.DescribeResponse(
        version="0.1.0", model="m", backbone_fingerprint="f", routing_metric="lda", routing_signal="pooled",
        tasks=[
            pb.TaskDescription(task="a", labels=["x", "y"], multi_label=True, version=2, digest="d", created="c", recent=recent),
            pb.TaskDescription(task="b"),
        ],
        limits=pb.Limits(
            max_message_bytes=1, max_samples_per_call=2, max_image_bytes=3, max_image_pixels=4, max_image_side=5,
            max_text_bytes=6, text_tokens=7, default_deadline_seconds=8, max_deadline_seconds=9,
        ),
        recent=pb.RecentRouting(window_seconds=1),
    )
    description = answers.description(message)
    assert (description.version, description.model, description.backbone_fingerprint) == ("0.1.0", "m", "f")
    assert (description.routing_metric, description.routing_signal) == ("lda", "pooled")
    assert description.tasks == (
        TaskDescription("a", ("x", "y"), True, 2, "d", "c", RecentRouting(300, 2, 0.5, 1, 1)),
        TaskDescription("b", (), False, 0, "", "", None),
    )
    assert description.limits == Limits(1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert description.recent == RecentRouting(1, 0, None, 0, 0)
