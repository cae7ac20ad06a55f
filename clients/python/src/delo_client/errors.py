"""What a call can fail with."""
from __future__ import annotations

from typing import Optional, cast

import grpc
from google.protobuf.message import DecodeError

from ._generated import classifier_pb2 as pb
from ._generated import wire_pb2 as wire

DETAILS = "grpc-status-details-bin"


class DeloError(Exception):
    """A call, or one sample of it, got no answer. The class itself stands for the codes that have none of their own:
    RESOURCE_EXHAUSTED without a time to retry (a message longer than the server or this client allows),
    FAILED_PRECONDITION (the server has no task), UNIMPLEMENTED (the server is older than the method, or the port
    is another's), INTERNAL and others.
    """

    code: grpc.StatusCode
    message: str
    #: Of the sample at fault, in ``classify``, ``classify_batch`` and ``classify_stream``.
    request_id: Optional[str] = None
    #: Seconds after which the server asks to retry; ``None`` where it says nothing.
    retry_after: Optional[float] = None

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class InvalidRequest(DeloError):
    """INVALID_ARGUMENT: the request is wrong and would be refused again."""

    #: The field of the request at fault (``image``, ``reject``…), where one is.
    field: Optional[str] = None


class Unauthenticated(DeloError):
    """UNAUTHENTICATED: the server does not know the client; give ``token``, or ``client_cert`` and ``client_key``."""


class PermissionDenied(DeloError):
    """PERMISSION_DENIED: the server knows the client, and its role does not allow the call."""


class NotFound(DeloError):
    """NOT_FOUND: no such task is loaded, or no such answer is remembered."""


class Busy(DeloError):
    """RESOURCE_EXHAUSTED: the server refused the work before it did any of it; ``retry_after`` says when to retry.
    It is ``None`` for one sample of a batch or stream, which carries no such time.
    """


class Unavailable(DeloError):
    """UNAVAILABLE: no connection, or the server is starting or stopping."""


class DeadlineExceeded(DeloError):
    """DEADLINE_EXCEEDED: no answer came within ``timeout``."""


_CLASSES: dict[grpc.StatusCode, type[DeloError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Busy,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def of_call(failure: grpc.RpcError, request_id: Optional[str] = None) -> DeloError:
    """The error of a call that ended with a status."""
    # Each error that a call raises is the call as well.
    call = cast(grpc.Call, failure)
    code = call.code()
    details = next((value for key, value in call.trailing_metadata() or () if key == DETAILS), b"")
    retry_after, field = _read_details(details)
    kind = _CLASSES.get(code, DeloError)
    if kind is Busy and retry_after is None:
        kind = DeloError
    error = kind(code, call.details() or "")
    error.request_id, error.retry_after = request_id, retry_after
    if isinstance(error, InvalidRequest):
        error.field = field
    return error


def of_sample(failure: pb.Error, request_id: str) -> DeloError:
    """The error of one sample of a batch or stream."""
    code = _CODES.get(failure.code, grpc.StatusCode.UNKNOWN)
    error = _CLASSES.get(code, DeloError)(code, failure.message)
    error.request_id = request_id
    if isinstance(error, InvalidRequest):
        error.field = failure.field or None
    if failure.HasField("retry_after_seconds"):
        error.retry_after = failure.retry_after_seconds
    return error


def _read_details(details: object) -> tuple[Optional[float], Optional[str]]:
    """The seconds of a ``google.rpc.RetryInfo`` and the first field of a ``google.rpc.BadRequest``. Details that
    cannot be read count as absent: the code and the message say enough.
    """
    retry_after: Optional[float] = None
    field: Optional[str] = None
    try:
        for detail in wire.Status.FromString(details if isinstance(details, bytes) else b"").details:
            name = detail.type_url.rpartition("/")[2]
            if name == "google.rpc.RetryInfo":
                retry_after = wire.RetryInfo.FromString(detail.value).retry_delay.ToNanoseconds() / 1e9
            elif name == "google.rpc.BadRequest":
                violations = wire.BadRequest.FromString(detail.value).field_violations
                field = violations[0].field if violations else None
    except DecodeError:
        pass
    return retry_after, field
