"""The routes of the HTTP door: Open Inference Protocol v2, labels, metrics, status.

Inference goes past the framework (:mod:`skerry_agent.serving.http_infer`); labels, which wait for the disk, run in a
thread. Triton's extensions: statistics are answered, the model's configuration is 501, because there is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from skerry_agent.errors import AgentError
from skerry_agent.serving.core import EXTENSIONS, NO_CONFIGURATION, SERVER_NAME, ServingCore, TensorInfo
from skerry_agent.serving.http_body import Bodies, Receive
from skerry_agent.serving.http_infer import InferEndpoint, Scope, Send, error_answer
from skerry_agent.serving.oip_json import decode_labels

#: Largest body with labels (bytes).
LABELS_BYTES = 2 << 20

_INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")

_Handler = Callable[[Request], Awaitable[Response]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def create_app(
    core: ServingCore,
    *,
    version: str,
    metrics: Callable[[str], tuple[bytes, str]],
    status: Callable[[], dict[str, Any]],
) -> Application:
    """The routes, as an ASGI application without a lifespan.

    Args:
        core: Answers.
        version: Version of the agent.
        metrics: Gives the Prometheus text and its content type for the value of an Accept header.
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

    bodies = Bodies()
    infer = InferEndpoint(core, bodies)

    async def labels(request: Request) -> Response:
        core.require_model(*_model(request))
        headers = dict(request.scope["headers"])
        batch = decode_labels(await bodies.receive(request.receive, headers, LABELS_BYTES))
        outcome = await run_in_threadpool(core.labels.add, batch)
        errors = [
            {"index": r.index, "id": r.label.request_id[:128], "row": r.label.row, "error": r.reason}
            for r in outcome.refused
        ]
        return _json({"accepted": outcome.accepted, "duplicates": outcome.duplicates, "errors": errors})

    async def no_configuration(request: Request) -> Response:
        core.require_model(*_model(request))
        return _json({"error": NO_CONFIGURATION}, 501)

    async def statistics(request: Request) -> Response:
        model = request.path_params.get("model", "")
        found = core.statistics(model, request.path_params.get("version", ""))
        return _json({"model_stats": [one.document() for one in found]})

    async def prometheus(request: Request) -> Response:
        text, content_type = metrics(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    async def device_status(_: Request) -> Response:
        return _json(status())

    def guarded(handler: _Handler) -> _Handler:
        async def respond(request: Request) -> Response:
            try:
                return await handler(request)
            except AgentError as error:
                code, headers, body = error_answer(error, f"{request.method} {request.url.path}")
                return Response(body, code, {name.decode(): value.decode() for name, value in headers})

        return respond

    routes = [
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2", server),
        Route("/v2/models/stats", guarded(statistics)),
        Route("/v1/status", guarded(device_status)),
        Route("/metrics", guarded(prometheus)),
        Route("/v2/models/{model}/labels", guarded(labels), methods=["POST"]),
    ]
    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        routes += [
            Route(f"{prefix}/infer", infer, methods=["POST"]),
            Route(f"{prefix}/config", guarded(no_configuration)),
            Route(f"{prefix}/stats", guarded(statistics)),
            Route(f"{prefix}/ready", guarded(model_ready)),
            Route(prefix, guarded(metadata)),
        ]

    async def not_found(request: Request, error: Exception) -> Response:
        code = getattr(error, "status_code", 500)
        return _json({"error": f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}"}, code)

    framework = Starlette(routes=routes, exception_handlers={404: not_found, 405: not_found})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST" and _INFER.fullmatch(scope["path"]):
            await infer(scope, receive, send)
        else:
            await framework(scope, receive, send)

    return app


def _model(request: Request) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


def _tensor(tensor: TensorInfo) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _json(document: dict[str, Any], code: int = 200) -> Response:
    data = json.dumps(document, separators=(",", ":"))
    return Response(data, status_code=code, media_type="application/json")
