"""The gRPC door: ``inference.GRPCInferenceService`` of the Open Inference Protocol v2.

The service is registered by generic handlers under its public name, with our own generated messages (see
open_inference.proto). Requests are parsed here and not by gRPC, so that broken bytes are INVALID_ARGUMENT with a
reason instead of INTERNAL.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from skerry_agent.engine.errors import BackendError, DeadlineError, NoReleaseError, OverloadedError
from skerry_agent.errors import AgentError, DeviceError, InputError
from skerry_agent.serving.core import (
    EXTENSIONS,
    NO_CONFIGURATION,
    OVERHEAD_BYTES,
    SERVER_NAME,
    ServingCore,
    TensorInfo,
)
from skerry_agent.serving.errors import TooLargeError, UnknownModelError
from skerry_agent.serving.oip_messages import decode_request, encode_answer
from skerry_contract.errors import WireError
from skerry_contract.limits import INFERENCE_BYTES
from skerry_contract.oip import open_inference_pb2 as oip
from skerry_contract.oip import statistics_pb2 as statistics
from skerry_contract.wire import parse_message

_log = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
MESSAGE_LIMIT = INFERENCE_BYTES + OVERHEAD_BYTES
#: Requests under way at the same time; more get RESOURCE_EXHAUSTED. A thread waits for the bytes of each, so that
#: clients that trickle hold threads and not each other; the engine decides how many are computed at a time.
CONCURRENT_REQUESTS = 64
#: Requests under way on one connection; more wait at the client.
STREAMS = 32
#: After so long a connection is closed and its client opens another (ms): the end of requests that never arrive whole.
CONNECTION_AGE_MS = 300_000
CONNECTION_GRACE_MS = 10_000
#: How long requests under way may take at shutdown (s).
DRAIN_SECONDS = 5.0

_STATUS: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (InputError, grpc.StatusCode.INVALID_ARGUMENT),
    (WireError, grpc.StatusCode.INVALID_ARGUMENT),
    (TooLargeError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (NoReleaseError, grpc.StatusCode.UNAVAILABLE),
    (DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeviceError, grpc.StatusCode.UNAVAILABLE),
    (BackendError, grpc.StatusCode.INTERNAL),
)

Q = TypeVar("Q", bound=Message)


class GrpcDoor:
    """A gRPC server. :meth:`start` opens it; :meth:`stop` drains and ends its threads.

    Args:
        core: Answers.
        version: Version of the agent.
        host: Address to listen on.
        port: 0 picks a free one.

    Raises:
        DeviceError: The address cannot be bound.
    """

    def __init__(self, core: ServingCore, *, version: str, host: str, port: int) -> None:
        self._core = core
        self._version = version
        self._pool = ThreadPoolExecutor(CONCURRENT_REQUESTS, thread_name_prefix="grpc-door")
        self._server: Any = grpc.server(
            self._pool,
            maximum_concurrent_rpcs=CONCURRENT_REQUESTS,
            options=[
                ("grpc.max_receive_message_length", MESSAGE_LIMIT),
                ("grpc.max_concurrent_streams", STREAMS),
                ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
                ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
                ("grpc.so_reuseport", 0),  # with it, two agents would share a port in silence
            ],
        )
        self._server.add_generic_rpc_handlers((self._handlers(),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = int(self._server.add_insecure_port(address))
        except RuntimeError as error:
            self._pool.shutdown()
            raise DeviceError(
                f"the gRPC door cannot listen on {address}", remedy="free the port, or set grpc_port to 0"
            ) from error

    def start(self) -> None:
        """Answer."""
        self._server.start()

    def stop(self) -> None:
        """Finish the requests that run, refuse new ones, end the threads."""
        self._server.stop(DRAIN_SECONDS).wait(DRAIN_SECONDS + 5)
        self._pool.shutdown()

    def _handlers(self) -> Any:
        methods = {
            "ServerLive": _unary(oip.ServerLiveRequest, lambda *_: oip.ServerLiveResponse(live=True)),
            "ServerReady": _unary(oip.ServerReadyRequest, lambda *_: oip.ServerReadyResponse(ready=self._core.ready)),
            "ServerMetadata": _unary(oip.ServerMetadataRequest, self._server_metadata),
            "ModelReady": _unary(oip.ModelReadyRequest, self._model_ready),
            "ModelMetadata": _unary(oip.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": _unary(oip.ModelInferRequest, self._infer, refused=self._core.refuse),
            "ModelStatistics": _unary(statistics.ModelStatisticsRequest, self._statistics),
            "ModelConfig": grpc.unary_unary_rpc_method_handler(_no_configuration),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _server_metadata(self, *_: object) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=EXTENSIONS)

    def _model_ready(self, request: oip.ModelReadyRequest, _: object) -> oip.ModelReadyResponse:
        try:
            self._core.require_model(request.name, request.version)
        except (UnknownModelError, NoReleaseError):
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=True)

    def _model_metadata(self, request: oip.ModelMetadataRequest, _: object) -> oip.ModelMetadataResponse:
        info = self._core.metadata(request.name, request.version)
        return oip.ModelMetadataResponse(
            name=info.name,
            versions=info.versions,
            platform=info.platform,
            inputs=[_tensor(tensor) for tensor in info.inputs],
            outputs=[_tensor(tensor) for tensor in info.outputs],
        )

    def _statistics(self, request: statistics.ModelStatisticsRequest, _: object) -> statistics.ModelStatisticsResponse:
        response = statistics.ModelStatisticsResponse()
        for found in self._core.statistics(request.name, request.version):
            one = response.model_stats.add(name=found.name, version=found.version)
            one.inference_count, one.execution_count = found.rows, found.requests
            for success in (one.inference_stats.success, one.inference_stats.compute_infer):
                success.count, success.ns = found.requests, found.success_ns
            one.inference_stats.fail.count = found.failures
        return response

    def _infer(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        self._core.require_model(request.model_name, request.model_version)
        try:
            call = decode_request(request)
        except InputError as error:
            self._core.refuse(error)
            raise
        remaining_s: float | None = context.time_remaining()
        if remaining_s is not None:
            deadline_us = remaining_s * 1e6
            call = replace(call, deadline_us=min(deadline_us, call.deadline_us or deadline_us))
        answer = self._core.infer(call)
        return encode_answer(answer, typed=not request.raw_input_contents)


def _unary(
    request_type: type[Q],
    answer: Callable[[Q, Any], Message],
    *,
    refused: Callable[[InputError], None] | None = None,
) -> Any:
    """A handler that takes bytes, so that parsing is ours, and turns our errors into status codes."""

    def handle(data: bytes, context: Any) -> bytes:
        try:
            return answer(parse_message(request_type, data, limit=MESSAGE_LIMIT), context).SerializeToString()
        except WireError as error:
            if refused is not None:
                refused(InputError(error.field, expected=error.expected, got=error.got))
            _abort(context, error)
        except AgentError as error:
            _abort(context, error)
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(handle)


def _no_configuration(_: bytes, context: Any) -> bytes:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, NO_CONFIGURATION)
    raise AssertionError("abort raises")


def _abort(context: Any, error: Exception) -> None:
    code = next((code for kind, code in _STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    if code is grpc.StatusCode.INTERNAL:
        _log.error("%s", error)
    context.abort(code, str(error))


def _tensor(tensor: TensorInfo) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
