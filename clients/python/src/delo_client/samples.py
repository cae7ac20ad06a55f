"""What is sent: samples, and reports of what they truly were."""
from __future__ import annotations

import enum
import io
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Union

from ._generated import classifier_pb2 as pb

if TYPE_CHECKING:
    from PIL.Image import Image

#: A path, the bytes of an encoded image (JPEG, PNG, WebP, GIF or BMP), or a picture of Pillow.
ImageInput = Union[str, "os.PathLike[str]", bytes, "Image"]

# Modes that PNG has; pictures of others are converted.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


class Priority(enum.Enum):
    """What goes first when the server is busy."""

    #: Somebody waits for it. The default of ``classify``.
    INTERACTIVE = "interactive"
    #: It can wait. The default of ``classify_batch`` and ``classify_stream``.
    BULK = "bulk"


@dataclass(frozen=True)
class Sample:
    """One sample: an image, a text, or both."""

    #: A path, the bytes of an encoded image (JPEG, PNG, WebP, GIF's first frame, BMP), or a picture of Pillow,
    #: which is turned upright as its EXIF data says and sent as PNG. ``None``: the sample has no image.
    image: Optional[ImageInput] = None
    #: ``None``: the sample has no text.
    text: Optional[str] = None
    #: The task, where it is known: the server then chooses none.
    task: Optional[str] = None
    #: How many scores to return. ``None``: 5; 0: all.
    top_k: Optional[int] = None
    #: At most how many tasks to return as candidates. ``None``: 5; 0: none.
    max_candidates: Optional[int] = None
    #: Also return the factors chosen in each layer.
    explain: bool = False
    #: From 0 to 1: a sample with a lower typicality gets neither task nor scores. ``None``: the server's setting.
    reject: Optional[float] = None
    #: Also return where the time went.
    timings: bool = False
    #: Names the sample in its answer and in ``report_outcome``, at most 128 bytes. ``None``: the client makes a UUID.
    request_id: Optional[str] = None
    #: ``None``: the default of the method.
    priority: Optional[Priority] = None


def classify_request(sample: Sample) -> pb.ClassifyRequest:
    """The sample's message. It always has a request_id: by it the server decides which version of a task on trial
    answers, so that all attempts of a call must have the same.

    Raises ``OSError``: the image cannot be read. ``TypeError``, ``ValueError``: an argument is of a wrong type or
    out of its range.
    """
    request = pb.ClassifyRequest(
        request_id=sample.request_id or str(uuid.uuid4()),
        task=sample.task or "",
        explain=sample.explain,
        timings=sample.timings,
    )
    if sample.image is not None:
        request.image = _encoded(sample.image)
    if sample.text is not None:
        request.text = sample.text
    if sample.top_k is not None:
        request.top_k = sample.top_k
    if sample.max_candidates is not None:
        request.max_candidates = sample.max_candidates
    if sample.reject is not None:
        request.reject = sample.reject
    if sample.priority is Priority.INTERACTIVE:
        request.priority = pb.INTERACTIVE
    elif sample.priority is Priority.BULK:
        request.priority = pb.BULK
    return request


def reads_files(sample: Sample) -> bool:
    """Whether making the sample's message reads a file or encodes a picture."""
    return not isinstance(sample.image, (bytes, type(None)))


def outcome_request(
    request_id: Optional[str], task: Optional[str], true_task: Optional[str], true_labels: Iterable[str]
) -> pb.ReportOutcomeRequest:
    if isinstance(true_labels, str):
        raise TypeError("true_labels is a list of labels, not one")
    return pb.ReportOutcomeRequest(
        request_id=request_id or "", task=task or "", true_task=true_task or "", true_labels=true_labels
    )


def describe_request(tasks: Iterable[str]) -> pb.DescribeRequest:
    if isinstance(tasks, str):
        raise TypeError("tasks is a list of tasks, not one")
    return pb.DescribeRequest(tasks=tasks)


def _encoded(image: ImageInput) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, os.PathLike)):
        return Path(image).read_bytes()
    try:
        from PIL import Image, ImageOps
    except ImportError:
        Image = None  # type: ignore[assignment]
    if Image is None or not isinstance(image, Image.Image):
        raise TypeError(f"an image is a path, bytes or a picture of Pillow, not {type(image).__name__}")
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in _PNG_MODES:
        upright = upright.convert("RGB")
    encoded = io.BytesIO()
    upright.save(encoded, "PNG")
    return encoded.getvalue()
