"""The HTTP door: Open Inference Protocol v2, labels, metrics and status, on starlette and uvicorn.

A request body is read up to the largest size that can be valid for the active model, never further. Inference runs on
the event loop's thread, which is the fastest way for models of microseconds to a few milliseconds; labels, which wait
for the disk, run in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from skerry_agent.engine.errors import BackendError, NoReleaseError, SchemaError
from skerry_agent.errors import AgentError, DeviceError, InputError
from skerry_agent.serving.core import EXTENSIONS, SERVER_NAME, ServingCore, TensorInfo
from skerry_agent.serving.errors import TooLargeError, UnknownModelError, UnsupportedEncodingError
from skerry_agent.serving.oip_json import decode_labels, decode_request, encode_answer

_log = logging.getLogger(__name__)

HEADER_LENGTH = "inference-header-content-length"
#: Requests under way at the same time; more get 503.
CONCURRENT_REQUESTS = 64
#: Largest body with labels (bytes).
LABELS_BYTES = 2 << 20
#: How long requests under way may take at shutdown (s).
DRAIN_SECONDS = 5.0
#: How long uvicorn may take to start (s).
START_SECONDS = 30.0

_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (InputError, 400),
    (UnknownModelError, 404),
    (TooLargeError, 413),
    (UnsupportedEncodingError, 415),
    (NoReleaseError, 503),
    (DeviceError, 503),
    (BackendError, 500),
)

_Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    core: ServingCore,
    *,
    version: str,
    metrics: Callable[[], tuple[bytes, str]],
    status: Callable[[], dict[str, Any]],
) -> Starlette:
    """The routes.

    Args:
        core: Answers.
        version: Version of the agent.
        metrics: Gives the Prometheus text and its content type.
        status: Gives the document of ``/v1/status``.
    """

    async def live(_: Request) -> Response:
        return Response(status_code=200)

    async def ready(_: Request) -> Response:
        return Response(status_code=200 if core.ready else 503)

    async def server(_: Request) -> Response:
        return _json({"name": SERVER_NAME, "version": version, "extensions": list(EXTENSIONS)})

    async def model_ready(request: Request) -> Response:
        core.require_model(*_model(request))
        return Response(status_code=200)

    async def metadata(request: Request) -> Response:
        info = core.metadata(*_model(request))
        return _json(
            {
                "name": info.name,
                "versions": list(info.versions),
                "platform": info.platform,
                "inputs": [_tensor(tensor) for tensor in info.inputs],
                "outputs": [_tensor(tensor) for tensor in info.outputs],
            }
        )

    async def infer(request: Request) -> Response:
        model, model_version = _model(request)
        core.require_model(model, model_version)
        try:
            header_length = _header_length(request)
            limit = core.text_limit if header_length is None else core.body_limit
            body = await _body(request, limit)
            decoded = decode_request(body, header_length=header_length, model=model, version=model_version)
        except InputError as error:
            core.refuse(error)
            raise
        answer = core.infer(decoded.call)
        data, json_length = encode_answer(answer, decoded)
        if json_length is None:
            return Response(data, media_type="application/json")
        return Response(data, media_type="application/octet-stream", headers={HEADER_LENGTH: str(json_length)})

    async def labels(request: Request) -> Response:
        core.require_model(*_model(request))
        batch = decode_labels(await _body(request, LABELS_BYTES))
        outcome = await run_in_threadpool(core.labels.add, batch)
        errors = [
            {"index": r.index, "id": r.label.request_id[:128], "row": r.label.row, "error": r.reason}
            for r in outcome.refused
        ]
        return _json({"accepted": outcome.accepted, "duplicates": outcome.duplicates, "errors": errors})

    async def prometheus(_: Request) -> Response:
        text, content_type = metrics()
        return Response(text, headers={"content-type": content_type})

    async def device_status(_: Request) -> Response:
        return _json(status())

    def guarded(handler: _Handler) -> _Handler:
        async def respond(request: Request) -> Response:
            try:
                return await handler(request)
            except AgentError as error:
                code = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
                if code >= 500 and not isinstance(error, NoReleaseError):
                    _log.error("%s %s: %s", request.method, request.url.path, error)
                return _json({"error": str(error)}, code)

        return respond

    routes = [
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2", server),
        Route("/v1/status", guarded(device_status)),
        Route("/metrics", guarded(prometheus)),
        Route("/v2/models/{model}/labels", guarded(labels), methods=["POST"]),
    ]
    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            Route(f"{prefix}/infer", guarded(infer), methods=["POST"]),
            Route(f"{prefix}/ready", guarded(model_ready)),
            Route(prefix, guarded(metadata)),
        ]

    async def not_found(request: Request, error: Exception) -> Response:
        code = getattr(error, "status_code", 500)
        return _json({"error": f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}"}, code)

    return Starlette(routes=routes, exception_handlers={404: not_found, 405: not_found})


class HttpDoor:
    """uvicorn on its own thread. :meth:`start` returns when the door answers; :meth:`stop` drains and joins.

    Args:
        app: From :func:`create_app`.
        host: Address to listen on.
        port: 0 picks a free one.

    Raises:
        DeviceError: The address cannot be bound.
    """

    def __init__(self, app: Starlette, *, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # With protocol 0 asyncio would not switch Nagle's algorithm off, and every answer would wait 40 ms.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(128)
        except OSError as error:
            self._socket.close()
            raise DeviceError(
                f"the HTTP door cannot listen on {host} port {port} ({error.strerror})",
                remedy="free the port, or set http_port to 0",
            ) from error
        self.port: int = self._socket.getsockname()[1]
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._with_start(app),
                log_config=None,
                access_log=False,
                lifespan="on",
                ws="none",  # "auto" would load a WebSocket library for a door that has none
                server_header=False,
                limit_concurrency=CONCURRENT_REQUESTS,
                timeout_graceful_shutdown=int(DRAIN_SECONDS),
            )
        )
        self._thread = threading.Thread(target=self._run, name="http-door", daemon=True)

    def start(self) -> None:
        """Answer; raises DeviceError if that does not come about in time."""
        self._thread.start()
        if not self._started.wait(START_SECONDS):
            self.stop()
            raise DeviceError("the HTTP door did not start", remedy="see the log of the serving process")

    @property
    def alive(self) -> bool:
        """Whether the door's thread runs."""
        return self._thread.is_alive()

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have the loop that answers requests call something; nothing happens once it has ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call)

    def stop(self) -> None:
        """Finish the requests that run, refuse new ones, end the thread."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(DRAIN_SECONDS + 5)
        self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def _with_start(self, app: Starlette) -> Starlette:
        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            self._loop = asyncio.get_running_loop()
            self._started.set()
            yield

        app.router.lifespan_context = lifespan
        return app


async def _body(request: Request, limit: int) -> bytes:
    """Read a body of at most ``limit`` bytes, whatever its headers say."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding not in ("identity", ""):
        raise UnsupportedEncodingError(encoding)
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise TooLargeError("body", limit)
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise TooLargeError("body", limit)
            parts.append(part)
    except ClientDisconnect as error:
        raise SchemaError(
            "body", expected=f"{declared} bytes", got=f"{size} bytes, then a closed connection"
        ) from error
    return b"".join(parts)


def _header_length(request: Request) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise SchemaError("Inference-Header-Content-Length", expected="a number of bytes", got=text)
    return int(text)


def _model(request: Request) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


def _tensor(tensor: TensorInfo) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _json(document: dict[str, Any], code: int = 200) -> Response:
    data = json.dumps(document, separators=(",", ":"))
    return Response(data, status_code=code, media_type="application/json")
