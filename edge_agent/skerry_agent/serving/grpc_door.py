"""The gRPC door: ``inference.GRPCInferenceService`` of the Open Inference Protocol v2.

The service is registered by generic handlers under its public name, with our own generated messages (see
open_inference.proto). Requests are parsed here and not by gRPC, so that broken bytes are INVALID_ARGUMENT with a
reason instead of INTERNAL.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from skerry_agent.engine.errors import BackendError, NoReleaseError
from skerry_agent.errors import AgentError, DeviceError, InputError
from skerry_agent.serving.core import EXTENSIONS, OVERHEAD_BYTES, SERVER_NAME, ServingCore, TensorInfo
from skerry_agent.serving.errors import TooLargeError, UnknownModelError
from skerry_agent.serving.oip_messages import decode_request, encode_answer
from skerry_contract.errors import WireError
from skerry_contract.limits import INFERENCE_BYTES
from skerry_contract.oip import open_inference_pb2 as oip
from skerry_contract.wire import parse_message

_log = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
MESSAGE_LIMIT = INFERENCE_BYTES + OVERHEAD_BYTES
#: Threads that answer, and requests that may wait beside them; more get RESOURCE_EXHAUSTED.
THREADS = 4
CONCURRENT_REQUESTS = 64
#: How long requests under way may take at shutdown (s).
DRAIN_SECONDS = 5.0

_STATUS: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (InputError, grpc.StatusCode.INVALID_ARGUMENT),
    (WireError, grpc.StatusCode.INVALID_ARGUMENT),
    (TooLargeError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (NoReleaseError, grpc.StatusCode.UNAVAILABLE),
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
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="grpc-door")
        self._server: Any = grpc.server(
            self._pool,
            maximum_concurrent_rpcs=CONCURRENT_REQUESTS,
            options=[
                ("grpc.max_receive_message_length", MESSAGE_LIMIT),
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
            "ServerLive": _unary(oip.ServerLiveRequest, lambda _: oip.ServerLiveResponse(live=True)),
            "ServerReady": _unary(oip.ServerReadyRequest, lambda _: oip.ServerReadyResponse(ready=self._core.ready)),
            "ServerMetadata": _unary(oip.ServerMetadataRequest, self._server_metadata),
            "ModelReady": _unary(oip.ModelReadyRequest, self._model_ready),
            "ModelMetadata": _unary(oip.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": _unary(oip.ModelInferRequest, self._infer, refused=self._core.refuse),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _server_metadata(self, _: oip.ServerMetadataRequest) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=EXTENSIONS)

    def _model_ready(self, request: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
        try:
            self._core.require_model(request.name, request.version)
        except (UnknownModelError, NoReleaseError):
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=True)

    def _model_metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        info = self._core.metadata(request.name, request.version)
        return oip.ModelMetadataResponse(
            name=info.name,
            versions=info.versions,
            platform=info.platform,
            inputs=[_tensor(tensor) for tensor in info.inputs],
            outputs=[_tensor(tensor) for tensor in info.outputs],
        )

    def _infer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        self._core.require_model(request.model_name, request.model_version)
        try:
            call = decode_request(request)
        except InputError as error:
            self._core.refuse(error)
            raise
        answer = self._core.infer(call)
        return encode_answer(answer, typed=not request.raw_input_contents)


def _unary(
    request_type: type[Q],
    answer: Callable[[Q], Message],
    *,
    refused: Callable[[InputError], None] | None = None,
) -> Any:
    """A handler that takes bytes, so that parsing is ours, and turns our errors into status codes."""

    def handle(data: bytes, context: Any) -> bytes:
        try:
            return answer(parse_message(request_type, data, limit=MESSAGE_LIMIT)).SerializeToString()
        except WireError as error:
            if refused is not None:
                refused(InputError(error.field, expected=error.expected, got=error.got))
            _abort(context, error)
        except AgentError as error:
            _abort(context, error)
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(handle)


def _abort(context: Any, error: Exception) -> None:
    code = next((code for kind, code in _STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    if code is grpc.StatusCode.INTERNAL:
        _log.error("%s", error)
    context.abort(code, str(error))


def _tensor(tensor: TensorInfo) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
