"""The client for asyncio."""
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Optional, TypeVar, Union

import grpc
import grpc.aio

from . import answers, connection, errors
from ._generated import classifier_pb2 as pb
from ._generated import wire_pb2 as wire
from .answers import Answer, Description, Outcome, Result
from .connection import Metadata, Pem, Token
from .retry import Attempts, Retry
from .samples import ImageInput, Priority, Sample, classify_request, describe_request, outcome_request, reads_files

_Response = TypeVar("_Response")


class AsyncClient:
    """:class:`Client` for asyncio, with the same arguments, methods and errors. Create it where an event loop runs,
    and use it in that loop alone. Files are read and pictures encoded in a thread.
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
            self._channel = grpc.aio.secure_channel(target, secrets, all_options)
        else:
            self._channel = grpc.aio.insecure_channel(target, all_options)
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

    async def classify(
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
        """As :meth:`Client.classify`."""
        sample = Sample(
            image, text, task, top_k, max_candidates, explain, reject, timings, request_id, priority
        )
        request = await _request(sample)
        response = await self._call(self._classify, request, timeout, traceparent, request_id=request.request_id)
        return answers.answer(response)

    async def classify_batch(
        self, samples: Iterable[Sample], *, timeout: Optional[float] = None, traceparent: Optional[str] = None
    ) -> list[Result]:
        """As :meth:`Client.classify_batch`."""
        request = pb.ClassifyBatchRequest(requests=[await _request(sample) for sample in samples])
        response = await self._call(self._classify_batch, request, timeout, traceparent)
        return [answers.result(each) for each in response.results]

    async def classify_stream(
        self,
        samples: Union[Iterable[Sample], AsyncIterable[Sample]],
        *,
        timeout: Optional[float] = None,
        traceparent: Optional[str] = None,
    ) -> AsyncIterator[Result]:
        """As :meth:`Client.classify_stream`; ``samples`` may be asynchronous and is read in the event loop. Where you
        leave the iteration early, close it (``aclose()``) to end the call at once.
        """
        failures: list[Exception] = []

        async def requests() -> AsyncIterator[pb.ClassifyRequest]:
            # If an exception reached gRPC, the call would only be cancelled.
            try:
                async for sample in _each(samples):
                    yield await _request(sample)
            except Exception as failure:
                failures.append(failure)

        call = self._classify_stream(requests(), timeout=timeout, metadata=self._call_metadata(traceparent))
        try:
            async for message in call:
                yield answers.result(message)
        except grpc.RpcError as failure:
            raise errors.of_call(failure) from failure
        finally:
            call.cancel()
        if failures:
            raise failures[0]

    async def report_outcome(
        self,
        request_id: Optional[str] = None,
        *,
        task: Optional[str] = None,
        true_task: Optional[str] = None,
        true_labels: Iterable[str] = (),
        timeout: Optional[float] = None,
        traceparent: Optional[str] = None,
    ) -> Outcome:
        """As :meth:`Client.report_outcome`."""
        request = outcome_request(request_id, task, true_task, true_labels)
        repeatable = bool(request_id)
        response = await self._call(self._report_outcome, request, timeout, traceparent, repeatable=repeatable)
        return answers.outcome(response)

    async def describe(
        self, tasks: Iterable[str] = (), *, timeout: Optional[float] = None, traceparent: Optional[str] = None
    ) -> Description:
        """As :meth:`Client.describe`."""
        return answers.description(await self._call(self._describe, describe_request(tasks), timeout, traceparent))

    async def health(self, service: str = "", *, timeout: Optional[float] = None) -> bool:
        """As :meth:`Client.health`."""
        timeout = self._timeout if timeout is None else timeout
        request = wire.HealthCheckRequest(service=service)
        try:
            response = await self._health(request, timeout=timeout, metadata=self._call_metadata(None))
        except grpc.RpcError as failure:
            raise errors.of_call(failure) from failure
        return bool(response.status == wire.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Ends the connection and the calls in progress."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        await self.close()

    def _call_metadata(self, traceparent: Optional[str]) -> tuple[tuple[str, Any], ...]:
        return connection.call_metadata(self._token, self._metadata, traceparent)

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, _Response],
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
                return await method(request, timeout=attempts.remaining(), metadata=self._call_metadata(traceparent))
            except grpc.RpcError as failure:
                error = errors.of_call(failure, request_id)
                wait = attempts.wait_after(error)
                if wait is None:
                    raise error from failure
            await asyncio.sleep(wait)


async def _request(sample: Sample) -> pb.ClassifyRequest:
    return await asyncio.to_thread(classify_request, sample) if reads_files(sample) else classify_request(sample)


async def _each(samples: Union[Iterable[Sample], AsyncIterable[Sample]]) -> AsyncIterator[Sample]:
    if isinstance(samples, AsyncIterable):
        async for sample in samples:
            yield sample
    else:
        for sample in samples:
            yield sample
