"""Servers to test against: the program itself, and a fake one that answers what a test tells it."""
from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional, Union

import grpc
import pytest
import trustme
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from delo_client import AsyncClient, Client
from delo_client._generated import classifier_pb2 as pb

REPOSITORY = Path(__file__).parents[3]
PEACH = REPOSITORY / "data/emoji-cmml/images/1f351-noto.png"

#: Runs a function with a client, or its coroutine with an asynchronous one, and returns the result.
Ask = Callable[..., Any]


def binary() -> Path:
    given = os.environ.get("DELO_BINARY")
    places = [Path(given)] if given else [REPOSITORY / "target" / profile / "delo" for profile in ("release", "debug")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        pytest.exit(f"no server: {' and '.join(map(str, places))} do not exist; build it or set DELO_BINARY", 2)
    return found


class Served:
    """A process of the server, on a free port."""

    def __init__(self, **settings: str) -> None:
        # The settings of whoever runs the tests are not meant for this server.
        environment = {key: value for key, value in os.environ.items() if not key.upper().startswith("DELO_")}
        environment.update(
            DELO_SERVER__LISTEN="127.0.0.1:0", DELO_ADMIN__LISTEN="off", DELO_METRICS__LISTEN="off", DELO_LOGGING__FORMAT="json"
        )
        self._process = subprocess.Popen(
            [binary(), "serve"], env={**environment, **settings}, stderr=subprocess.PIPE, text=True
        )
        lines: list[str] = []
        assert self._process.stderr is not None
        for line in self._process.stderr:
            lines.append(line)
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("message") == "serving":
                self.address = str(entry["classifier"])
                break
        else:
            raise AssertionError("the server ended before it served:\n" + "".join(lines))
        # A full pipe would block the server.
        threading.Thread(target=self._process.stderr.read, daemon=True).start()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server that speaks plaintext and asks for nothing."""
    served = Served()
    yield served.address
    served.stop()


class Secured:
    """A server with TLS, tokens and certificates of clients."""

    TOKEN, READ_ONLY_TOKEN = "a-token-of-a-shop", "a-token-of-a-dashboard"

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.ca = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        self.cert, self.key = directory / "client.pem", directory / "client.key"
        client = authority.issue_cert("client.example")
        client.cert_chain_pems[0].write_to_path(self.cert)
        client.private_key_pem.write_to_path(self.key)
        issued = authority.issue_cert("localhost")
        issued.cert_chain_pems[0].write_to_path(directory / "server.pem")
        issued.private_key_pem.write_to_path(directory / "server.key")
        (directory / "server.key").chmod(0o600)
        clients = directory / "clients.toml"
        entries = [("shop", "classify", self.TOKEN), ("dashboard", "read_only", self.READ_ONLY_TOKEN)]
        clients.write_text(
            "".join(
                f'[[client]]\nname = "{name}"\nrole = "{role}"\ntoken_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
                for name, role, token in entries
            )
            + '[[client]]\nname = "certified"\nrole = "classify"\ncertificate = "client.example"\n'
        )
        clients.chmod(0o600)
        self._served = Served(
            DELO_TLS__CERTIFICATE=str(directory / "server.pem"),
            DELO_TLS__KEY=str(directory / "server.key"),
            DELO_TLS__CLIENT_CA=str(self.ca),
            DELO_TLS__CLIENT_CERTIFICATE="optional",
            DELO_AUTH__CLIENTS_FILE=str(clients),
        )
        self.address = f"https://localhost:{self._served.address.rpartition(':')[2]}"
        self.stop = self._served.stop


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    secured = Secured(tmp_path_factory.mktemp("secured"))
    yield secured
    secured.stop()


def refusal(code: grpc.StatusCode, retry_after: Optional[float] = None, field: Optional[str] = None) -> status_pb2.Status:
    """A status with details, made by another library than the client reads them with."""
    status = status_pb2.Status(code=code.value[0], message="no")
    detail = any_pb2.Any()
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_after * 1e9))
        detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        status.details.append(detail)
    if field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description="no")
        detail.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        status.details.append(detail)
    return status


class Fake:
    """Ends the calls with the statuses of ``refusals``, one after another, and then answers."""

    def __init__(self) -> None:
        self.refusals: list[status_pb2.Status] = []
        self.seconds = 0.0
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Union[str, bytes]]] = []
        self._released = threading.Event()
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Classify": grpc.unary_unary_rpc_method_handler(
                self._answer(lambda request: pb.ClassifyResponse(request_id=request.request_id, task="t")),
                pb.ClassifyRequest.FromString,
                pb.ClassifyResponse.SerializeToString,
            ),
            "ReportOutcome": grpc.unary_unary_rpc_method_handler(
                self._answer(lambda request: pb.ReportOutcomeResponse(counted=True)),
                pb.ReportOutcomeRequest.FromString,
                pb.ReportOutcomeResponse.SerializeToString,
            ),
        }
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("delo.v1.Classifier", handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._released.set()
        self._server.stop(None)

    def _answer(self, answer: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
        def serve(request: Any, context: grpc.ServicerContext) -> Any:
            self.requests.append(request)
            self.metadata.append({key: value for key, value in context.invocation_metadata()})
            self._released.wait(self.seconds)
            if self.refusals:
                context.abort_with_status(rpc_status.to_status(self.refusals.pop(0)))
            return answer(request)

        return serve


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture(params=["sync", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """``ask(server, do, **arguments of the client)`` returns what ``do(client)`` returns, of either client."""
    if request.param == "sync":

        def ask(server: str, do: Callable[[Client], Any], **arguments: Any) -> Any:
            with Client(server, **arguments) as client:
                return do(client)

        return ask

    def ask_async(server: str, do: Callable[[AsyncClient], Awaitable[Any]], **arguments: Any) -> Any:
        async def main() -> Any:
            async with AsyncClient(server, **arguments) as client:
                return await do(client)

        return asyncio.run(main())

    return ask_async
