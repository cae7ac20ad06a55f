"""What is received."""
from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Optional, Union

from . import errors
from ._generated import classifier_pb2 as pb


class Modality(enum.Enum):
    #: The sample has it.
    PRESENT = "present"
    #: The sample lacks it: the other modality's query stood in for its own.
    PROXIED = "proxied"


@dataclass(frozen=True)
class Score:
    """A label and its score: softmax over the task's labels; an independent sigmoid for a multi-label task."""

    label: str
    score: float


@dataclass(frozen=True)
class Candidate:
    """A task that the sample may be of."""

    task: str
    cosine: float
    #: ``None`` where the server decides tasks by cosine.
    probability: Optional[float]


@dataclass(frozen=True)
class TextReading:
    """How much of a text the model was given."""

    #: Whether the vocabulary knows at least one token of the text. ``False``: the answer tells nothing about the text.
    understood: bool
    #: Whether the text was longer than the model reads; its end was cut off.
    truncated: bool
    #: Tokens that the model was given, after the cut.
    tokens: int
    #: Those of them that the vocabulary does not know.
    unknown_tokens: int


@dataclass(frozen=True)
class SelectedFactors:
    """The factors that the sample used in one adapted map, by falling score; the i-th of ``a`` is paired with the
    i-th of ``b``.
    """

    layer: int
    #: "query", "key" or "value".
    target: str
    #: "visual" or "textual".
    modality: str
    a: tuple[int, ...]
    b: tuple[int, ...]
    #: Experts of the pool that they were selected from.
    experts: int


@dataclass(frozen=True)
class Timings:
    """Where the time of one sample went on the server, in seconds. The parts do not sum to the total: what is left
    are waits for a thread. Frozen pass, decision and adapted pass are those of the whole batch.
    """

    #: From the arrival of the sample's message to its answer.
    total_seconds: float
    #: Decoding, resizing and normalising the image.
    decode_seconds: float
    #: Turning the text into tokens.
    tokenize_seconds: float
    #: Waiting in the queue until its batch began.
    queue_seconds: float
    #: The batch, all in all.
    compute_seconds: float
    #: Of compute: the pass of the frozen backbone by which tasks are decided.
    frozen_seconds: float
    #: Of compute: the decision of the tasks.
    decision_seconds: float
    #: Of compute: the pass with the tasks' adapters, and the heads.
    adapted_seconds: float
    #: Samples of the batch, this one included.
    batch_samples: int


@dataclass(frozen=True)
class Answer:
    """The answer to one sample. How the task was chosen (``routed_task`` to ``early``) is absent, that is ``None``,
    empty or ``False``, where the request named the task.
    """

    #: For ``report_outcome``.
    request_id: str
    #: The task that served the sample; ``None`` where the sample was rejected.
    task: Optional[str]
    #: The best labels, falling by score; none where the sample was rejected.
    scores: tuple[Score, ...]
    #: The task that was chosen: ``task``, or the likeliest task of a rejected sample.
    routed_task: Optional[str]
    #: Of the chosen task; those of all loaded tasks sum to 1. ``None`` where the server decides tasks by cosine.
    probability: Optional[float]
    #: Of the sample with the chosen task's key.
    cosine: Optional[float]
    #: How far the chosen task is ahead of the second one: in probability where tasks are decided by it, else in
    #: cosine. ``None`` where one task alone is loaded.
    margin: Optional[float]
    #: The share of the chosen task's own held-out samples that fit it less well, from 0 (none of these) to 1.
    #: ``None`` where the server does not know it.
    typicality: Optional[float]
    #: Whether the sample belongs to none of the loaded tasks, by ``reject`` or the server's setting.
    rejected: bool
    #: Whether the frozen backbone's statistics answered alone.
    early: bool
    #: The best of the loaded tasks.
    candidates: tuple[Candidate, ...]
    #: Whether the sample had an image and a text.
    image: Modality
    text: Modality
    #: ``None`` where the sample has no text.
    text_reading: Optional[TextReading]
    #: The factors chosen, with ``explain``.
    factors: tuple[SelectedFactors, ...]
    #: With ``timings``, of a server that knows them.
    timings: Optional[Timings]
    #: The version of the task's partition that served the sample.
    version: int
    #: The backbone that served the sample.
    model: str

    @property
    def label(self) -> Optional[str]:
        """The best label; ``None`` where there is none."""
        return self.scores[0].label if self.scores else None


#: The answer to one sample of a batch or stream, or why it has none. Either has the sample's ``request_id``.
Result = Union[Answer, errors.DeloError]


@dataclass(frozen=True)
class Outcome:
    """What a reported truth says of the answer."""

    #: The task that had been chosen.
    routed_task: str
    #: Whether that was the true task; ``None`` where none was given.
    task_correct: Optional[bool]
    #: Whether the best label is a true one; ``None`` where none was given.
    label_correct: Optional[bool]
    #: ``False`` where the same was reported before: an outcome is counted once.
    counted: bool


@dataclass(frozen=True)
class RecentRouting:
    """How tasks were decided in the last minutes, over the samples whose request named no task."""

    #: How long "the last minutes" are, in seconds.
    window_seconds: float
    samples: int
    #: The mean probability of the chosen tasks: the routing accuracy that the server expects of itself.
    expected_accuracy: Optional[float]
    #: Outcomes reported in this time, and those of them whose task had been chosen rightly.
    outcomes: int
    right: int


@dataclass(frozen=True)
class TaskDescription:
    """A task that a sample can be of."""

    task: str
    labels: tuple[str, ...]
    #: Scores are independent sigmoids.
    multi_label: bool
    #: Of its live partition: version, SHA-256 of the file (hexadecimal), and when it was trained (RFC 3339, UTC).
    version: int
    digest: str
    created: str
    recent: Optional[RecentRouting]


@dataclass(frozen=True)
class Limits:
    """The bounds within which the server answers a request."""

    max_message_bytes: int
    #: Of one ``classify_batch``.
    max_samples_per_call: int
    max_image_bytes: int
    #: Width times height.
    max_image_pixels: int
    max_image_side: int
    max_text_bytes: int
    #: Tokens of a text that the model reads; the rest is cut off.
    text_tokens: int
    #: The deadline of a call that names none, and the longest.
    default_deadline_seconds: float
    max_deadline_seconds: float


@dataclass(frozen=True)
class Description:
    """What a server answers with."""

    #: Of the server's program.
    version: str
    #: The backbone, and SHA-256 over its tensors, hexadecimal.
    model: str
    backbone_fingerprint: str
    #: How a task is chosen: "lda", "whitened" or "plain"; and the signal of the backbone that it is chosen by.
    routing_metric: str
    routing_signal: str
    #: What is loaded, by name.
    tasks: tuple[TaskDescription, ...]
    limits: Limits
    recent: Optional[RecentRouting]


def answer(response: pb.ClassifyResponse) -> Answer:
    # An absent message reads as one whose fields are absent.
    routing, modalities, timings = response.routing, response.modalities, response.timings
    routed = response.HasField("routing")
    reading = modalities.text_reading
    return Answer(
        request_id=response.request_id,
        task=response.task or None,
        scores=tuple(Score(score.label, score.score) for score in response.scores),
        routed_task=routing.task or None,
        probability=routing.probability if routing.HasField("probability") else None,
        cosine=routing.cosine if routed else None,
        margin=routing.margin if routing.HasField("margin") else None,
        typicality=routing.typicality if routing.HasField("typicality") else None,
        rejected=routing.rejected,
        early=routing.early,
        candidates=tuple(
            Candidate(each.task, each.cosine, each.probability if each.HasField("probability") else None)
            for each in routing.candidates
        ),
        image=_modality(modalities.image),
        text=_modality(modalities.text),
        text_reading=TextReading(reading.understood, reading.truncated, reading.tokens, reading.unknown_tokens)
        if modalities.HasField("text_reading")
        else None,
        factors=tuple(
            SelectedFactors(each.layer, each.target, each.modality, tuple(each.a), tuple(each.b), each.experts)
            for each in response.factors
        ),
        timings=Timings(
            total_seconds=timings.total_seconds,
            decode_seconds=timings.decode_seconds,
            tokenize_seconds=timings.tokenize_seconds,
            queue_seconds=timings.queue_seconds,
            compute_seconds=timings.compute_seconds,
            frozen_seconds=timings.frozen_seconds,
            decision_seconds=timings.decision_seconds,
            adapted_seconds=timings.adapted_seconds,
            batch_samples=timings.batch_samples,
        )
        if response.HasField("timings")
        else None,
        version=response.partition_version,
        model=response.model,
    )


def result(message: pb.ClassifyResult) -> Result:
    if message.WhichOneof("result") == "error":
        return errors.of_sample(message.error, message.request_id)
    return answer(message.response)


def outcome(response: pb.ReportOutcomeResponse) -> Outcome:
    return Outcome(
        routed_task=response.routed_task,
        task_correct=response.task_correct if response.HasField("task_correct") else None,
        label_correct=response.label_correct if response.HasField("label_correct") else None,
        counted=response.counted,
    )


def description(response: pb.DescribeResponse) -> Description:
    limits = response.limits
    return Description(
        version=response.version,
        model=response.model,
        backbone_fingerprint=response.backbone_fingerprint,
        routing_metric=response.routing_metric,
        routing_signal=response.routing_signal,
        tasks=tuple(
            TaskDescription(
                task=each.task,
                labels=tuple(each.labels),
                multi_label=each.multi_label,
                version=each.version,
                digest=each.digest,
                created=each.created,
                recent=_recent(each.recent) if each.HasField("recent") else None,
            )
            for each in response.tasks
        ),
        limits=Limits(
            max_message_bytes=limits.max_message_bytes,
            max_samples_per_call=limits.max_samples_per_call,
            max_image_bytes=limits.max_image_bytes,
            max_image_pixels=limits.max_image_pixels,
            max_image_side=limits.max_image_side,
            max_text_bytes=limits.max_text_bytes,
            text_tokens=limits.text_tokens,
            default_deadline_seconds=limits.default_deadline_seconds,
            max_deadline_seconds=limits.max_deadline_seconds,
        ),
        recent=_recent(response.recent) if response.HasField("recent") else None,
    )


def _modality(modality: pb.Modality) -> Modality:
    return Modality.PRESENT if modality == pb.PRESENT else Modality.PROXIED


def _recent(recent: pb.RecentRouting) -> RecentRouting:
    return RecentRouting(
        window_seconds=recent.window_seconds,
        samples=recent.samples,
        expected_accuracy=recent.expected_accuracy if recent.HasField("expected_accuracy") else None,
        outcomes=recent.outcomes,
        right=recent.right,
    )
