"""Both gRPC doors, the compiled one and grpcio's, answer the same requests in the same way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from integration.engine.tiny_bundle import TinyRelease, some_input
from integration.serving.doors_rig import RELEASE, Doors, open_doors
from skerry_agent.engine.engine import Engine
from skerry_agent.errors import DeviceError
from skerry_agent.serving import http2
from skerry_agent.serving.core import ServingCore
from skerry_agent.serving.grpc_door import GrpcDoor, open_grpc_door
from skerry_contract.oip import open_inference_pb2 as oip

KINDS = [
    pytest.param(False, id="grpcio"),
    pytest.param(
        True,
        id="own",
        marks=pytest.mark.skipif(not http2.COMPILED, reason="nghttp2 was not there at installation"),
    ),
]
Open = Callable[[], grpc.Channel]


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with open_doors(tmp_path_factory.mktemp("device")) as opened:
        yield opened


@pytest.fixture(scope="module", params=KINDS)
def door(request: pytest.FixtureRequest, doors: Doors) -> Iterator[GrpcDoor]:
    opened = open_grpc_door(doors.core, version="1", host="127.0.0.1", port=0, own=request.param)
    opened.start()
    yield opened
    opened.stop()


@pytest.fixture
def open_channel(door: GrpcDoor) -> Iterator[Open]:
    channels: list[grpc.Channel] = []

    def make() -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        channels.append(grpc.insecure_channel(f"127.0.0.1:{door.port}", options))
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()


def infer(channel: grpc.Channel) -> Any:
    return channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")


def message(x: Any, **fields: Any) -> oip.ModelInferRequest:
    made = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[x.tobytes()], **fields)
    made.inputs.add(name="input", datatype="FP32", shape=x.shape)
    return made


def scores_of(reply: bytes) -> Any:
    answer = oip.ModelInferResponse.FromString(reply)
    return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_answers_are_those_of_the_model_again_and_again(open_channel: Open, rows: int) -> None:
    """From the second on, a request is recognised by its bytes; nobody sees a difference."""
    stub = infer(open_channel())
    for number in range(5):
        x = some_input(rows) * np.float32(1 - number / 10)
        reply = oip.ModelInferResponse.FromString(stub(message(x).SerializeToString(), timeout=20))
        scores, features = RELEASE.compute(x)
        outputs = [np.frombuffer(raw, np.float32).reshape(rows, -1) for raw in reply.raw_output_contents]
        np.testing.assert_allclose(outputs[0], scores, atol=1e-5)
        np.testing.assert_allclose(outputs[1], features, atol=1e-6)
        assert [(o.name, o.datatype, list(o.shape)) for o in reply.outputs] == [
            ("scores", "FP32", [rows, 3]),
            ("features", "FP32", [rows, 2]),
        ]
        assert (reply.model_name, reply.model_version, len(reply.id)) == ("tiny", "release-one", 16)
        assert reply.parameters["skerry_variant"].string_param == "fp32"
        assert reply.parameters["skerry_rung"].int64_param == 0


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda x: x.__setitem__((0, 0, 0), np.nan), grpc.StatusCode.INVALID_ARGUMENT, "NaN at index [0, 0, 0]"),
        (lambda x: x.__setitem__((0, 1, 2), 1e9), grpc.StatusCode.INVALID_ARGUMENT, "1e+09 at index [0, 1, 2]"),
    ],
)
def test_bad_values_are_refused_before_and_after_the_request_is_known(
    open_channel: Open, doors: Doors, change: Callable[[Any], None], code: grpc.StatusCode, says: str
) -> None:
    stub, bad = infer(open_channel()), some_input()
    change(bad)
    for data in (some_input(), bad, bad, some_input()):
        before = sum(doors.engine.status().counters.refused.values())
        if data is bad:
            with pytest.raises(grpc.RpcError) as caught:
                stub(message(data).SerializeToString(), timeout=20)
            assert caught.value.code() is code
            assert says in caught.value.details()
            assert sum(doors.engine.status().counters.refused.values()) == before + 1
        else:
            np.testing.assert_allclose(
                scores_of(stub(message(data).SerializeToString(), timeout=20)), RELEASE.compute(data)[0], atol=1e-5
            )


def test_a_request_that_differs_anywhere_is_not_taken_for_a_known_one(open_channel: Open) -> None:
    stub = infer(open_channel())
    known = message(some_input()).SerializeToString()
    for _ in range(2):
        stub(known, timeout=20)
    other = message(some_input())
    other.model_name = "tin1"
    same_size = other.SerializeToString()
    assert len(same_size) == len(known)
    with pytest.raises(grpc.RpcError) as caught:
        stub(same_size, timeout=20)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    other = message(some_input())
    other.inputs[0].shape[:] = [2, 1, 3]
    assert len(other.SerializeToString()) == len(known)
    with pytest.raises(grpc.RpcError) as caught:
        stub(other.SerializeToString(), timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "shape" in caught.value.details()


@pytest.mark.parametrize("how", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages(open_channel: Open, how: grpc.Compression) -> None:
    x = np.zeros((64, 2, 3), np.float32)
    reply = infer(open_channel())(message(x).SerializeToString(), timeout=20, compression=how)
    np.testing.assert_allclose(scores_of(reply), RELEASE.compute(x)[0], atol=1e-5)


def test_a_bomb_of_zeros_is_refused(open_channel: Open) -> None:
    channel = open_channel()
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel)(bytes(66 << 20), timeout=60, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    infer(channel)(message(some_input()).SerializeToString(), timeout=20)


def test_a_message_that_is_too_large_costs_the_connection_nothing(open_channel: Open) -> None:
    channel = open_channel()
    for _ in range(3):
        with pytest.raises(grpc.RpcError) as caught:
            infer(channel)(bytes(66 << 20), timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger" in caught.value.details()
        infer(channel)(message(some_input()).SerializeToString(), timeout=20)


def test_a_deadline_that_cannot_be_met(open_channel: Open) -> None:
    stub = infer(open_channel())
    late = message(some_input())
    late.parameters["deadline_us"].double_param = 1e-3
    for _ in range(2):  # the second would be recognised
        with pytest.raises(grpc.RpcError) as caught:
            stub(late.SerializeToString(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    stub(message(some_input()).SerializeToString(), timeout=20)


def test_every_other_method(open_channel: Open) -> None:
    channel = open_channel()

    def ask(method: str, request: Any, reply: Any) -> Any:
        return reply.FromString(
            channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(request.SerializeToString(), timeout=20)
        )

    assert ask("ServerLive", oip.ServerLiveRequest(), oip.ServerLiveResponse).live
    assert ask("ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse).ready
    assert ask("ServerMetadata", oip.ServerMetadataRequest(), oip.ServerMetadataResponse).name == "skerry-agent"
    assert ask("ModelReady", oip.ModelReadyRequest(name="tiny"), oip.ModelReadyResponse).ready
    assert not ask("ModelReady", oip.ModelReadyRequest(name="x"), oip.ModelReadyResponse).ready
    metadata = ask("ModelMetadata", oip.ModelMetadataRequest(name="tiny"), oip.ModelMetadataResponse)
    assert [list(tensor.shape) for tensor in metadata.inputs] == [[-1, 2, 3]]
    for method, code in (("ModelConfig", "UNIMPLEMENTED"), ("Nothing", "UNIMPLEMENTED")):
        with pytest.raises(grpc.RpcError) as caught:
            ask(method, oip.ServerLiveRequest(), oip.ServerLiveResponse)
        assert caught.value.code().name == code
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/other.Service/ServerLive")(b"", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_many_clients_with_many_requests_under_way(open_channel: Open) -> None:
    wanted, data = RELEASE.compute(some_input())[0], message(some_input()).SerializeToString()
    channels = [open_channel() for _ in range(8)]
    replies = [infer(channel).future(data, timeout=60) for _ in range(50) for channel in channels]
    for reply in replies:
        np.testing.assert_allclose(scores_of(reply.result()), wanted, atol=1e-5)


def test_cancelled_requests_cost_nobody_else_anything(open_channel: Open) -> None:
    channel, data = open_channel(), message(some_input()).SerializeToString()
    for _ in range(200):
        infer(channel).future(data, timeout=20).cancel()
    big = [infer(channel).future(bytes(8 << 20), timeout=20) for _ in range(5)]
    for reply in big:
        reply.cancel()
    np.testing.assert_allclose(scores_of(infer(channel)(data, timeout=20)), RELEASE.compute(some_input())[0], atol=1e-5)


def test_a_client_that_sends_nothing_or_twice(open_channel: Open) -> None:
    """Streaming clients of a unary method."""
    channel, data = open_channel(), message(some_input()).SerializeToString()
    stream = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError):
        stream(iter(()), timeout=20)
    np.testing.assert_allclose(scores_of(infer(channel)(data, timeout=20)), RELEASE.compute(some_input())[0], atol=1e-5)


@pytest.mark.parametrize("own", KINDS)
def test_another_release_takes_over_between_two_requests(tmp_path: Path, own: bool) -> None:
    with open_doors(tmp_path) as opened:
        door = open_grpc_door(opened.core, version="1", host="127.0.0.1", port=0, own=own)
        door.start()
        with grpc.insecure_channel(f"127.0.0.1:{door.port}") as channel:
            data = message(some_input()).SerializeToString()
            for _ in range(3):
                assert (
                    oip.ModelInferResponse.FromString(infer(channel)(data, timeout=20)).model_version == "release-one"
                )
            opened.activate(TinyRelease(release_id="release-two", variants={"fp32": 0.5}))
            for _ in range(3):
                reply = infer(channel)(data, timeout=20)
                assert oip.ModelInferResponse.FromString(reply).model_version == "release-two"
        door.stop()


@pytest.mark.parametrize("own", KINDS)
def test_a_port_that_is_taken(doors: Doors, own: bool) -> None:
    port = doors.http.port
    with pytest.raises(DeviceError, match=f"cannot listen on 127.0.0.1.*{port}"):
        open_grpc_door(doors.core, version="1", host="127.0.0.1", port=port, own=own)


class SlowEngine:
    """An engine whose answers can be held back."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def infer(self, *arguments: Any, **options: Any) -> Any:
        self.entered.set()
        assert self.go_on.wait(20)
        return self._engine.infer(*arguments, **options)


@pytest.mark.parametrize("own", KINDS)
def test_stopping_finishes_the_request_that_runs(doors: Doors, own: bool) -> None:
    slow: Any = SlowEngine(doors.engine)
    core = ServingCore(slow, recent=doors.core._recent, labels=doors.core.labels)
    door = open_grpc_door(core, version="1", host="127.0.0.1", port=0, own=own)
    door.start()
    with grpc.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        reply = infer(channel).future(message(some_input()).SerializeToString(), timeout=30)
        assert slow.entered.wait(20)
        stopping = threading.Thread(target=door.stop)
        stopping.start()
        slow.go_on.set()
        np.testing.assert_allclose(scores_of(reply.result()), RELEASE.compute(some_input())[0], atol=1e-5)
        stopping.join(20)
        assert not stopping.is_alive()
        with pytest.raises(grpc.RpcError):
            infer(channel)(message(some_input()).SerializeToString(), timeout=2)
