"""Client of delo, an inference service for images and texts of many tasks."""
from .answers import (
    Answer,
    Candidate,
    Description,
    Limits,
    Modality,
    Outcome,
    RecentRouting,
    Result,
    Score,
    SelectedFactors,
    TaskDescription,
    TextReading,
    Timings,
)
from .async_client import AsyncClient
from .client import Client
from .errors import (
    Busy,
    DeadlineExceeded,
    DeloError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from .retry import Retry
from .samples import Priority, Sample

__all__ = [
    "Answer",
    "AsyncClient",
    "Busy",
    "Candidate",
    "Client",
    "DeadlineExceeded",
    "DeloError",
    "Description",
    "InvalidRequest",
    "Limits",
    "Modality",
    "NotFound",
    "Outcome",
    "PermissionDenied",
    "Priority",
    "RecentRouting",
    "Result",
    "Retry",
    "Sample",
    "Score",
    "SelectedFactors",
    "TaskDescription",
    "TextReading",
    "Timings",
    "Unauthenticated",
    "Unavailable",
]
