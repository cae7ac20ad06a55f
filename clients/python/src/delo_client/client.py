"""The client for programs without an event loop."""
from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Optional, TypeVar

import grpc

from . import answers, connection, errors
from ._generated import classifier_pb2 as pb
from ._generated import wire_pb2 as wire
from .answers import Answer, Description, Outcome, Result
from .connection import Metadata, Pem, Token
from .retry import Attempts, Retry
from .samples import ImageInput, Priority, Sample, classify_request, describe_request, outcome_request

_Response = TypeVar("_Response")


class Client:
    """A connection to a server. It may be shared by threads, and connects at the first call.

    ``server``: ``host:port``, ``http://host:port`` or ``https://host:port``. The connection is TLS with the last,
    and where ``ca`` or ``client_cert`` is given.

    ``ca``: certificates of those who sign the server's certificate; without it, those that gRPC brings.

    ``client_cert``, ``client_key``: this client's certificate and key, for a server that asks for one. These three
    are paths, or PEM as bytes.

    ``token``: sent as ``authorization: Bearer``; without TLS everybody on the way can read it.

    ``metadata``: sent with every call.

    ``timeout``: seconds that a call may take, all attempts and waits included, unless the call gives its own.
    ``None``: the server's default for each attempt.

    ``options``: gRPC channel options, ``("grpc.max_receive_message_length", bytes)`` for example; this one is 64 MiB.

    Raises ``ValueError``: the server or the certificates are not given as they must be. ``OSError``: a file cannot
    be read.

    Every call raises a :class:`DeloError` of the class that its docstring names, or of another class for what can
    happen to any call: ``Unavailable``, ``Busy`` (after the last attempt), ``DeadlineExceeded``,
    ``Unauthenticated``, ``PermissionDenied``. ``traceparent`` (W3C Trace Context) is passed to the server.
    """

    def __init__(
        self,
        server: str = connection.SERVER,
        *,
        ca: Optional[Pem] = None,
        client_cert: Optional[Pem] = None,
        client_key: Optional[Pem] = None,
        token: Optional[Token] = None,
        metadata: Metadata = (),
        timeout: Optional[float] = connection.TIMEOUT,
        retry: Retry = Retry(),
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        given = any(pem is not None for pem in (ca, client_cert, client_key))
        target, tls = connection.address(server, tls=given)
        all_options = connection.channel_options(options)
        if tls:
            secrets = connection.credentials(ca, client_cert, client_key)
            self._channel = grpc.secure_channel(target, secrets, all_options)
        else:
            self._channel = grpc.insecure_channel(target, all_options)
        self._token, self._metadata, self._timeout, self._retry = token, metadata, timeout, retry
        unary = self._channel.unary_unary
        self._classify = unary(
            connection.CLASSIFY, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
        )
        self._classify_batch = unary(
            connection.CLASSIFY_BATCH, pb.ClassifyBatchRequest.SerializeToString, pb.ClassifyBatchResponse.FromString
        )
        self._classify_stream = self._channel.stream_stream(
            connection.CLASSIFY_STREAM, pb.ClassifyRequest.SerializeToString, pb.ClassifyResult.FromString
        )
        self._report_outcome = unary(
            connection.REPORT_OUTCOME, pb.ReportOutcomeRequest.SerializeToString, pb.ReportOutcomeResponse.FromString
        )
        self._describe = unary(
            connection.DESCRIBE, pb.DescribeRequest.SerializeToString, pb.DescribeResponse.FromString
        )
        self._health = unary(
            connection.HEALTH_CHECK, wire.HealthCheckRequest.SerializeToString, wire.HealthCheckResponse.FromString
        )

    def classify(
        self,
        image: Optional[ImageInput] = None,
        text: Optional[str] = None,
        *,
        task: Optional[str] = None,
        top_k: Optional[int] = None,
        max_candidates: Optional[int] = None,
        explain: bool = False,
        reject: Optional[float] = None,
        timings: bool = False,
        request_id: Optional[str] = None,
        priority: Optional[Priority] = None,
        timeout: Optional[float] = None,
        traceparent: Optional[str] = None,
    ) -> Answer:
        """Classifies one sample: an image (a path, encoded bytes, or a picture of Pillow), a text, or both.
        :class:`Sample` explains the arguments.

        ``timeout``: seconds, all attempts included; ``None``: the client's.

        Raises :class:`InvalidRequest`: the sample has neither image nor text, or one that cannot be read or is too
        large; its ``field`` says which. :class:`NotFound`: ``task`` is not loaded. ``OSError``: the image's file
        cannot be read.
        """
        sample = Sample(
            image, text, task, top_k, max_candidates, explain, reject, timings, request_id, priority
        )
        request = classify_request(sample)
        response = self._call(self._classify, request, timeout, traceparent, request_id=request.request_id)
        return answers.answer(response)

    def classify_batch(
        self, samples: Iterable[Sample], *, timeout: Optional[float] = None, traceparent: Optional[str] = None
    ) -> list[Result]:
        """Classifies many samples in one call. Returns, in their order, an answer or an error for each; errors of
        single samples are returned and not raised, and those samples are not tried again.

        ``timeout``: seconds, all attempts included; ``None``: the client's.

        Raises :class:`InvalidRequest`: more samples than the server takes in a call (1024 unless set otherwise).
        :class:`DeloError` with RESOURCE_EXHAUSTED: the message is longer than the server takes (24 MiB unless set
        otherwise), or the answer than this client. ``OSError``: an image's file cannot be read.
        """
        request = pb.ClassifyBatchRequest(requests=[classify_request(sample) for sample in samples])
        return [answers.result(each) for each in self._call(self._classify_batch, request, timeout, traceparent).results]

    def classify_stream(
        self, samples: Iterable[Sample], *, timeout: Optional[float] = None, traceparent: Optional[str] = None
    ) -> Iterator[Result]:
        """Classifies samples as they come, and yields an answer or an error for each as soon as it is there, in any
        order: give each sample a ``request_id`` to tell them apart. ``samples`` is read in another thread.

        ``timeout``: seconds for the whole stream, and for each sample from its arrival; ``None``: no limit for the
        stream, and the server's default for each sample.

        A stream is not tried again. Raises :class:`Unavailable` where the server stops: samples that have no answer
        by then may be sent again. What ``samples`` itself raises is raised here after the answers to the samples
        before it.
        """
        failures: list[Exception] = []

        def requests() -> Iterator[pb.ClassifyRequest]:
            # If an exception reached gRPC, it would only be logged there.
            try:
                for sample in samples:
                    yield classify_request(sample)
            except Exception as failure:
                failures.append(failure)

        call = self._classify_stream(requests(), timeout=timeout, metadata=self._call_metadata(traceparent))
        try:
            for message in call:
                yield answers.result(message)
        except grpc.RpcError as failure:
            raise errors.of_call(failure) from failure
        finally:
            call.cancel()
        if failures:
            raise failures[0]

    def report_outcome(
        self,
        request_id: Optional[str] = None,
        *,
        task: Optional[str] = None,
        true_task: Optional[str] = None,
        true_labels: Iterable[str] = (),
        timeout: Optional[float] = None,
        traceparent: Optional[str] = None,
    ) -> Outcome:
        """Reports what a sample truly was: the true task, the true labels, or both. ``request_id`` is that of the
        answer; where it is not remembered any more, ``task`` as it was routed and ``true_task`` can be counted.

        Without a ``request_id`` the server cannot know a report that it has counted; such a report is therefore not
        tried again after :class:`Unavailable`.

        Raises :class:`NotFound`: the answer is not remembered, or the sample was rejected.
        :class:`InvalidRequest`: nothing is reported, or of no answer.
        """
        request = outcome_request(request_id, task, true_task, true_labels)
        repeatable = bool(request_id)
        return answers.outcome(self._call(self._report_outcome, request, timeout, traceparent, repeatable=repeatable))

    def describe(
        self, tasks: Iterable[str] = (), *, timeout: Optional[float] = None, traceparent: Optional[str] = None
    ) -> Description:
        """The server's tasks (those named, or all) and their labels, its model, its limits, and how well it routed
        in the last minutes. A named task that is not loaded is left out.

        Raises :class:`DeloError` with UNIMPLEMENTED: the server is older than this method.
        """
        return answers.description(self._call(self._describe, describe_request(tasks), timeout, traceparent))

    def health(self, service: str = "", *, timeout: Optional[float] = None) -> bool:
        """Whether the server is ready for requests; with the service "liveness", whether its process works at all.
        Needs no token, and is not tried again.

        Raises :class:`Unavailable`: no server answers. :class:`NotFound`: there is no health of that name.
        """
        timeout = self._timeout if timeout is None else timeout
        request = wire.HealthCheckRequest(service=service)
        try:
            response = self._health(request, timeout=timeout, metadata=self._call_metadata(None))
        except grpc.RpcError as failure:
            raise errors.of_call(failure) from failure
        return bool(response.status == wire.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Ends the connection and the calls in progress."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def _call_metadata(self, traceparent: Optional[str]) -> tuple[tuple[str, Any], ...]:
        return connection.call_metadata(self._token, self._metadata, traceparent)

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[Any, _Response],
        request: object,
        timeout: Optional[float],
        traceparent: Optional[str],
        *,
        repeatable: bool = True,
        request_id: Optional[str] = None,
    ) -> _Response:
        attempts = Attempts(self._retry, self._timeout if timeout is None else timeout, repeatable=repeatable)
        while True:
            try:
                return method(request, timeout=attempts.remaining(), metadata=self._call_metadata(traceparent))
            except grpc.RpcError as failure:
                error = errors.of_call(failure, request_id)
                wait = attempts.wait_after(error)
                if wait is None:
                    raise error from failure
            time.sleep(wait)
