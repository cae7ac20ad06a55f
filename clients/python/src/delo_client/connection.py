"""Where the server is and how the client shows who it is."""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional, Union
from urllib.parse import urlsplit

import grpc

#: Names in lower case; a value is bytes where the name ends with ``-bin``.
Metadata = Sequence[tuple[str, Union[str, bytes]]]
#: A path, or the PEM itself as bytes.
Pem = Union[str, "os.PathLike[str]", bytes]
#: The token, or a function that returns it: it is called before every attempt, so that a token can be exchanged.
Token = Union[str, Callable[[], str]]

SERVER = "127.0.0.1:50051"
#: Seconds.
TIMEOUT = 30.0

CLASSIFY = "/delo.v1.Classifier/Classify"
CLASSIFY_BATCH = "/delo.v1.Classifier/ClassifyBatch"
CLASSIFY_STREAM = "/delo.v1.Classifier/ClassifyStream"
REPORT_OUTCOME = "/delo.v1.Classifier/ReportOutcome"
DESCRIBE = "/delo.v1.Classifier/Describe"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"

_OPTIONS: dict[str, Any] = {
    # gRPC's own limit, 4 MiB, is less than the answers of a batch may need.
    "grpc.max_receive_message_length": 64 << 20,
    # gRPC waits a second after a failed connection and refuses all calls meanwhile; all attempts of a call could
    # fall into that time.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 5000,
}


def address(server: str, *, tls: bool) -> tuple[str, bool]:
    """``host:port``, and whether the connection is TLS. ``tls``: a certificate is given, which needs TLS."""
    parts = urlsplit(server if "://" in server else f"{'https' if tls else 'http'}://{server}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port is None:
        raise ValueError(f"{server!r} is no server: give it as 127.0.0.1:50051 or https://localhost:50051")
    if tls and parts.scheme == "http":
        raise ValueError(f"a certificate needs TLS: give the server as https://…, not {server}")
    return parts.netloc, parts.scheme == "https"


def credentials(ca: Optional[Pem], client_cert: Optional[Pem], client_key: Optional[Pem]) -> grpc.ChannelCredentials:
    if (client_cert is None) != (client_key is None):
        raise ValueError("client_cert and client_key need each other")
    return grpc.ssl_channel_credentials(_pem(ca), _pem(client_key), _pem(client_cert))


def channel_options(options: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return list({**_OPTIONS, **dict(options)}.items())


def call_metadata(
    token: Optional[Token], metadata: Metadata, traceparent: Optional[str]
) -> tuple[tuple[str, Union[str, bytes]], ...]:
    sent = list(metadata)
    if token is not None:
        sent.append(("authorization", f"Bearer {(token if isinstance(token, str) else token()).strip()}"))
    if traceparent is not None:
        sent.append(("traceparent", traceparent))
    return tuple(sent)


def _pem(source: Optional[Pem]) -> Optional[bytes]:
    return source if source is None or isinstance(source, bytes) else Path(source).read_bytes()
