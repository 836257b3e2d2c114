"""The methods of ``inference.GRPCInferenceService`` (Open Inference Protocol v2), whatever brings the bytes.

Requests are parsed here with our own generated messages (see open_inference.proto), so that broken bytes are
INVALID_ARGUMENT with a reason instead of INTERNAL. Nothing here does I/O.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from google.protobuf.message import Message

from skerry_agent.engine.arrays import rows_of
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
from skerry_agent.serving.oip_messages import (
    PlainRequest,
    PlainRequests,
    decode_request,
    encode_answer,
    encode_plain,
)
from skerry_contract.errors import WireError
from skerry_contract.limits import INFERENCE_BYTES
from skerry_contract.oip import open_inference_pb2 as oip
from skerry_contract.oip import statistics_pb2 as statistics
from skerry_contract.wire import parse_message

_log = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
#: Longest message of a request (bytes).
MESSAGE_LIMIT = INFERENCE_BYTES + OVERHEAD_BYTES


class Status(enum.IntEnum):
    """gRPC's status codes, as far as they are used here (grpc/doc/statuscodes.md)."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


_STATUS: tuple[tuple[type[Exception], Status], ...] = (
    (InputError, Status.INVALID_ARGUMENT),
    (WireError, Status.INVALID_ARGUMENT),
    (TooLargeError, Status.INVALID_ARGUMENT),
    (UnknownModelError, Status.NOT_FOUND),
    (NoReleaseError, Status.UNAVAILABLE),
    (DeadlineError, Status.DEADLINE_EXCEEDED),
    (OverloadedError, Status.RESOURCE_EXHAUSTED),
    (DeviceError, Status.UNAVAILABLE),
    (BackendError, Status.INTERNAL),
)

Q = TypeVar("Q", bound=Message)
#: Takes the bytes of a request and how long its answer may take (us; None: no matter), gives the bytes of the answer.
Method = Callable[[bytes, float | None], bytes]


class CallError(Exception):
    """A request without an answer.

    Attributes:
        status: For the client.
        text: Why, for people.
    """

    def __init__(self, status: Status, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(text)


class GrpcMethods:
    """The methods of one core, by name.

    Args:
        core: Answers.
        version: Version of the agent.

    Attributes:
        table: Name to method; a method raises CallError and nothing else that a request could cause.
    """

    def __init__(self, core: ServingCore, *, version: str) -> None:
        self._core = core
        self._version = version
        self._plain = PlainRequests()
        self.table: dict[str, Method] = {
            "ServerLive": _method(oip.ServerLiveRequest, lambda *_: oip.ServerLiveResponse(live=True)),
            "ServerReady": _method(oip.ServerReadyRequest, lambda *_: oip.ServerReadyResponse(ready=core.ready)),
            "ServerMetadata": _method(oip.ServerMetadataRequest, self._server_metadata),
            "ModelReady": _method(oip.ModelReadyRequest, self._model_ready),
            "ModelMetadata": _method(oip.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": self._infer,
            "ModelStatistics": _method(statistics.ModelStatisticsRequest, self._statistics),
            "ModelConfig": _no_configuration,
        }

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

    def _infer(self, data: bytes, remaining_us: float | None) -> bytes:
        try:
            plain = self._plain.find(data, self._core.spec)
            if plain is not None:
                return self._infer_plain(plain, data, remaining_us)
            return self._infer_any(data, remaining_us)
        except WireError as error:
            self._core.refuse(InputError(error.field, expected=error.expected, got=error.got))
            raise _call_error(error) from error
        except AgentError as error:
            raise _call_error(error) from error

    def _infer_plain(self, plain: PlainRequest, data: bytes, remaining_us: float | None) -> bytes:
        spec = plain.spec
        x, within = rows_of(data, len(plain.head), plain.shape, spec.minimum, spec.maximum)
        deadline_us = _sooner(plain.deadline_us, remaining_us)
        prediction = self._core.predict(x, "", deadline_us, spec if within else None)
        return encode_plain(spec, prediction)

    def _infer_any(self, data: bytes, remaining_us: float | None) -> bytes:
        request = parse_message(oip.ModelInferRequest, data, limit=MESSAGE_LIMIT)
        spec = self._core.require_model(request.model_name, request.model_version)
        try:
            call = decode_request(request)
        except InputError as error:
            self._core.refuse(error)
            raise
        answer = self._core.infer(replace(call, deadline_us=_sooner(call.deadline_us, remaining_us)))
        self._plain.learn(data, request, call, spec)
        return encode_answer(answer, typed=not request.raw_input_contents).SerializeToString()


def _sooner(one_us: float | None, other_us: float | None) -> float | None:
    """The shorter of two times to answer in; None is no limit."""
    if one_us is None or other_us is None:
        return one_us if other_us is None else other_us
    return min(one_us, other_us)


def _method(request_type: type[Q], answer: Callable[[Q, float | None], Message]) -> Method:
    """A method that parses, and turns our errors into status codes."""

    def call(data: bytes, remaining_us: float | None) -> bytes:
        try:
            return answer(parse_message(request_type, data, limit=MESSAGE_LIMIT), remaining_us).SerializeToString()
        except (WireError, AgentError) as error:
            raise _call_error(error) from error

    return call


def _no_configuration(_: bytes, __: float | None) -> bytes:
    raise CallError(Status.UNIMPLEMENTED, NO_CONFIGURATION)


def _call_error(error: Exception) -> CallError:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), Status.INTERNAL)
    if status is Status.INTERNAL:
        _log.error("%s", error)
    return CallError(status, str(error))


def _tensor(tensor: TensorInfo) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
