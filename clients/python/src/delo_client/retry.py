"""When a call is tried again."""
from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Optional

import grpc

from .errors import DeloError

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass(frozen=True)
class Retry:
    """How often and after what waits a call is tried again. It is tried again after RESOURCE_EXHAUSTED with
    ``google.rpc.RetryInfo``, and after UNAVAILABLE; never beyond its timeout.
    """

    #: Attempts in all; 1: a call is never tried again.
    attempts: int = 4
    #: Seconds after the first UNAVAILABLE for which the server names no time; each later one doubles them.
    first_wait: float = 0.1
    #: The longest of those waits in seconds. What the server asks for is not shortened.
    longest_wait: float = 5.0
    #: Each wait is longer by a random share of itself, up to this, so that clients refused together do not come
    #: back together.
    jitter: float = 0.25


class Attempts:
    """The attempts of one call."""

    def __init__(self, retry: Retry, timeout: Optional[float], *, repeatable: bool) -> None:
        """``repeatable``: doing the call twice does no harm. Otherwise it is tried again only where the server has
        refused it before it did anything, not after UNAVAILABLE.
        """
        self._retry = retry
        self._end = None if timeout is None else time.monotonic() + timeout
        self._repeatable = repeatable
        self._failures = 0

    def remaining(self) -> Optional[float]:
        """Seconds until the deadline; ``None`` without one."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def wait_after(self, error: DeloError) -> Optional[float]:
        """Seconds until the next attempt; ``None``: there is none, the error is the call's result."""
        self._failures += 1
        retry = self._retry
        if self._failures >= retry.attempts:
            return None
        if error.code is not _EXHAUSTED and not (error.code is _UNAVAILABLE and self._repeatable):
            return None
        if error.retry_after is not None:
            wait = error.retry_after
        elif error.code is _UNAVAILABLE:
            wait = min(retry.longest_wait, retry.first_wait * 2.0 ** (self._failures - 1))
        else:
            return None
        wait *= 1.0 + random.uniform(0.0, retry.jitter)
        remaining = self.remaining()
        return wait if remaining is None or wait < remaining else None
