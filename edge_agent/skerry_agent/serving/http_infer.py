"""``POST …/infer`` as a bare ASGI application: the one path where a framework would cost more than the model.

Also the one place that turns errors into HTTP: status, headers, body.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any

from skerry_agent.engine.errors import BackendError, DeadlineError, NoReleaseError, OverloadedError, SchemaError
from skerry_agent.errors import AgentError, DeviceError, InputError
from skerry_agent.serving.call import check_deadline
from skerry_agent.serving.core import ServingCore
from skerry_agent.serving.errors import TooLargeError, UnknownModelError, UnsupportedEncodingError
from skerry_agent.serving.http_body import Bodies, Receive
from skerry_agent.serving.oip_json import decode_request, encode_answer

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HEADER_LENGTH = b"inference-header-content-length"
DEADLINE = b"skerry-deadline-us"
VARIANT = b"skerry-variant"

_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (InputError, 400),
    (UnknownModelError, 404),
    (TooLargeError, 413),
    (UnsupportedEncodingError, 415),
    (NoReleaseError, 503),
    (DeadlineError, 503),
    (OverloadedError, 503),
    (DeviceError, 503),
    (BackendError, 500),
)
#: When to ask again (s): a deadline may be met by the very next request.
_RETRY_AFTER: tuple[tuple[type[Exception], bytes], ...] = ((DeadlineError, b"0"), (OverloadedError, b"1"))
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")

Headers = list[tuple[bytes, bytes]]


def error_answer(error: AgentError, where: str) -> tuple[int, Headers, bytes]:
    """Status, headers and JSON body for an error; what is our own fault is logged with ``where``."""
    code = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    if isinstance(error, BackendError | DeviceError) or code == 500:
        _log.error("%s: %s", where, error)
    headers = [_JSON, *((b"retry-after", after) for kind, after in _RETRY_AFTER if isinstance(error, kind))]
    return code, headers, json.dumps({"error": str(error)}, separators=(",", ":")).encode()


class InferEndpoint:
    """Answers infer requests of both path forms, with and without a version.

    Args:
        core: Answers.
        bodies: Receives bodies.
    """

    def __init__(self, core: ServingCore, bodies: Bodies) -> None:
        self._core = core
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI 3."""
        started = time.perf_counter_ns()
        try:
            code, headers, body = await self._answer(scope, receive, started)
        except AgentError as error:
            code, headers, body = error_answer(error, f"POST {scope['path']}")
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive, started: int) -> tuple[int, Headers, bytes]:
        model, version = _model(scope["path"])
        core = self._core
        core.require_model(model, version)
        headers = dict(scope["headers"])
        try:
            header_length = _header_length(headers)
            limit = core.text_limit if header_length is None else core.body_limit
            body = await self._bodies.receive(receive, headers, limit)
            decoded = decode_request(body, header_length=header_length, model=model, version=version)
            deadline_us = _deadline(headers, decoded.call.deadline_us)
        except InputError as error:
            core.refuse(error)
            raise
        call = decoded.call
        if deadline_us is not None:  # it runs since the request's head has come
            call = replace(call, deadline_us=deadline_us - (time.perf_counter_ns() - started) / 1000)
        answer = core.infer(call)
        data, json_length = encode_answer(answer, decoded)
        variant = (VARIANT, answer.variant.encode("latin-1", "replace"))
        if json_length is None:
            return 200, [_JSON, variant], data
        return 200, [_BINARY, variant, (HEADER_LENGTH, b"%d" % json_length)], data


def _model(path: str) -> tuple[str, str]:
    """Model and version of ``/v2/models/{model}[/versions/{version}]/infer``."""
    parts = path.split("/")
    return parts[3], parts[5] if len(parts) == 7 else ""


def _header_length(headers: Mapping[bytes, bytes]) -> int | None:
    text = headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isdigit() and len(text) < 12):
        got = text.decode("latin-1")
        raise SchemaError("Inference-Header-Content-Length", expected="a number of bytes", got=got)
    return int(text)


def _deadline(headers: Mapping[bytes, bytes], parameter: float | None) -> float | None:
    """The deadline of the header or that of the request's parameter; the shorter one, if both are there."""
    text = headers.get(DEADLINE)
    if text is None:
        return parameter
    header = check_deadline(text.decode("latin-1"), DEADLINE.decode())
    return header if parameter is None else min(header, parameter)
