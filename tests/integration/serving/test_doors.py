"""Both doors, with unmodified Triton clients and with nonsense. Every refusal is followed by a request that works."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from integration.engine.tiny_bundle import TinyRelease, enrol, install, some_input
from integration.serving.serving_process import Reply, ServingProcess
from skerry_agent.policy.live_latency import FEWEST, LatencyReader
from skerry_contract.oip import open_inference_pb2 as oip

RELEASE = TinyRelease(variants={"fp32": 0.0})
MODELS = "/v2/models/tiny"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    layout = enrol(tmp_path_factory.mktemp("device"))
    install(layout, RELEASE)
    with ServingProcess(layout) as process:
        yield process


@pytest.fixture(params=["grpc", "http"])
def triton(request: pytest.FixtureRequest, serving: ServingProcess) -> Iterator[tuple[Any, Any]]:
    """The client's module and a client."""
    module = tritonclient.grpc if request.param == "grpc" else tritonclient.http
    port = serving.grpc_port if request.param == "grpc" else serving.http_port
    client = module.InferenceServerClient(f"127.0.0.1:{port}")
    yield module, client
    client.close()


def tensor(module: Any, x: Any, *, name: str = "input", datatype: str = "FP32", **options: Any) -> Any:
    made = module.InferInput(name, list(x.shape), datatype)
    made.set_data_from_numpy(x, **options)
    return made


def as_dict(message: Any) -> dict[str, Any]:
    if isinstance(message, dict):
        return message
    return {
        "name": message.name,
        "versions": list(message.versions),
        "inputs": [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in message.inputs],
        "outputs": [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in message.outputs],
    }


class TestTritonClients:
    """``tritonclient`` as it comes, over both protocols."""

    def test_health_and_metadata(self, triton: tuple[Any, Any]) -> None:
        _, client = triton
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.is_model_ready("tiny", "release-one")
        assert not client.is_model_ready("other")
        assert not client.is_model_ready("tiny", "release-zero")
        metadata = as_dict(client.get_model_metadata("tiny"))
        assert metadata["versions"] == ["release-one"]
        assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 2, 3]}]
        assert metadata["outputs"] == [
            {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "features", "datatype": "FP32", "shape": [-1, 2]},
        ]
        server = client.get_server_metadata()
        assert (server["name"] if isinstance(server, dict) else server.name) == "skerry-agent"

    @pytest.mark.parametrize("rows", [1, 64])
    def test_infer(self, triton: tuple[Any, Any], rows: int) -> None:
        module, client = triton
        x = some_input(rows)
        result = client.infer("tiny", [tensor(module, x)], request_id="mine", model_version="release-one")
        scores, features = RELEASE.compute(x)
        np.testing.assert_allclose(result.as_numpy("scores"), scores, atol=1e-5)
        np.testing.assert_allclose(result.as_numpy("features"), features, atol=1e-6)
        response = result.get_response()
        if module is tritonclient.http:
            assert (response["id"], response["model_version"]) == ("mine", "release-one")
        else:
            assert (response.id, response.model_version) == ("mine", "release-one")

    def test_only_the_wanted_output(self, triton: tuple[Any, Any]) -> None:
        module, client = triton
        result = client.infer("tiny", [tensor(module, some_input())], outputs=[module.InferRequestedOutput("features")])
        assert result.as_numpy("features").shape == (1, 2)
        assert result.as_numpy("scores") is None

    @pytest.mark.parametrize("binary_in", [True, False])
    @pytest.mark.parametrize("binary_out", [True, False])
    def test_http_in_json_and_binary(self, serving: ServingProcess, binary_in: bool, binary_out: bool) -> None:
        client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{serving.http_port}")
        x = some_input(2)
        outputs = [
            tritonclient.http.InferRequestedOutput("scores", binary_data=binary_out),
            tritonclient.http.InferRequestedOutput("features", binary_data=True),
        ]
        result = client.infer("tiny", [tensor(tritonclient.http, x, binary_data=binary_in)], outputs=outputs)
        scores, features = RELEASE.compute(x)
        np.testing.assert_allclose(result.as_numpy("scores"), scores, atol=1e-5)
        np.testing.assert_allclose(result.as_numpy("features"), features, atol=1e-6)
        client.close()

    def test_async_infer(self, serving: ServingProcess) -> None:
        client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{serving.http_port}", concurrency=4)
        pending = [client.async_infer("tiny", [tensor(tritonclient.http, some_input(1, seed=s))]) for s in range(20)]
        for seed, request in enumerate(pending):
            wanted = RELEASE.compute(some_input(1, seed=seed))[0]
            np.testing.assert_allclose(request.get_result().as_numpy("scores"), wanted, atol=1e-5)
        client.close()

    @pytest.mark.parametrize(
        ("what", "model", "x", "options", "codes", "says"),
        [
            ("unknown model", "other", some_input(), {}, ("404", "StatusCode.NOT_FOUND"), "tiny"),
            ("wrong shape", "tiny", some_input()[:, :1], {}, ("400", "StatusCode.INVALID_ARGUMENT"), "input"),
            (
                "wrong type",
                "tiny",
                some_input().astype(np.float64),
                {"datatype": "FP64"},
                ("400", "StatusCode.INVALID_ARGUMENT"),
                "input",
            ),
            (
                "NaN",
                "tiny",
                some_input() * np.nan,
                {},
                ("400", "StatusCode.INVALID_ARGUMENT"),
                "NaN at index [0, 0, 0]",
            ),
            ("infinity", "tiny", some_input() * np.inf, {}, ("400", "StatusCode.INVALID_ARGUMENT"), "index [0, 0, 0]"),
            ("range", "tiny", some_input() + 1e4, {}, ("400", "StatusCode.INVALID_ARGUMENT"), "from -100 to 100"),
            ("too many rows", "tiny", some_input(65), {}, ("400", "StatusCode.INVALID_ARGUMENT"), "[1..64, 2, 3]"),
            (
                "unknown tensor",
                "tiny",
                some_input(),
                {"name": "x"},
                ("400", "StatusCode.INVALID_ARGUMENT"),
                "inputs[x]",
            ),
        ],
    )
    def test_refusals(
        self,
        triton: tuple[Any, Any],
        what: str,
        model: str,
        x: Any,
        options: dict[str, Any],
        codes: tuple[str, str],
        says: str,
    ) -> None:
        module, client = triton
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, [tensor(module, x.astype(x.dtype, copy=False), **options)])
        assert caught.value.status() == codes[0 if module is tritonclient.http else 1]
        assert says in caught.value.message()
        good = client.infer("tiny", [tensor(module, some_input())])
        np.testing.assert_allclose(good.as_numpy("scores"), RELEASE.compute(some_input())[0], atol=1e-5)

    def test_unknown_output(self, triton: tuple[Any, Any]) -> None:
        module, client = triton
        with pytest.raises(InferenceServerException, match=r"outputs\[logits\]"):
            client.infer("tiny", [tensor(module, some_input())], outputs=[module.InferRequestedOutput("logits")])


def request_with(**changes: Any) -> dict[str, Any]:
    """A JSON request whose input tensor is changed."""
    x = some_input()
    entry = {"name": "input", "datatype": "FP32", "shape": [1, 2, 3], "data": x.ravel().tolist(), **changes}
    return {"inputs": [entry]}


BAD_JSON: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "garbage": (b"\x00\xff{", {}, 400, "body"),
    "empty": (b"", {}, 400, "body"),
    "not an object": (b"[1]", {}, 400, "request"),
    "deep nesting": (b"[" * 100_000, {}, 400, "body"),
    "no inputs": (b"{}", {}, 400, "inputs"),
    "inputs no array": (b'{"inputs": 3}', {}, 400, "inputs"),
    "input no object": (b'{"inputs": [3]}', {}, 400, "inputs[0]"),
    "no name": (json.dumps(request_with(name=None)).encode(), {}, 400, "inputs[0].name"),
    "no datatype": (json.dumps(request_with(datatype=None)).encode(), {}, 400, "inputs[input].datatype"),
    "BYTES": (json.dumps(request_with(datatype="BYTES")).encode(), {}, 400, "inputs[input].datatype"),
    "negative size": (json.dumps(request_with(shape=[-1, 2, 3])).encode(), {}, 400, "inputs[input].shape"),
    "fractional size": (json.dumps(request_with(shape=[1.5, 2, 3])).encode(), {}, 400, "inputs[input].shape"),
    "huge shape": (json.dumps(request_with(shape=[1 << 31, 1 << 31])).encode(), {}, 400, "inputs[input].shape"),
    "rank 9": (json.dumps(request_with(shape=[1] * 9)).encode(), {}, 400, "inputs[input].shape"),
    "too few values": (json.dumps(request_with(data=[1.0])).encode(), {}, 400, "inputs[input].data"),
    "ragged": (json.dumps(request_with(data=[[1.0, 2.0], [3.0]])).encode(), {}, 400, "inputs[input].data"),
    "strings": (json.dumps(request_with(data=["a"] * 6)).encode(), {}, 400, "inputs[input].data"),
    "null values": (json.dumps(request_with(data=[None] * 6)).encode(), {}, 400, "NaN"),
    "NaN literal": (json.dumps(request_with(data=[float("nan")] * 6)).encode(), {}, 400, "NaN"),
    "above float32": (json.dumps(request_with(data=[1e300] * 6)).encode(), {}, 400, "index [0, 0, 0]"),
    "above float64": (
        b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,2,3],"data":[1e999,0,0,0,0,0]}]}',
        {},
        400,
        "inf",
    ),
    "twice the same input": (
        json.dumps({"inputs": request_with()["inputs"] * 2}).encode(),
        {},
        400,
        "distinct",
    ),
    "id no string": (json.dumps({**request_with(), "id": 7}).encode(), {}, 400, "id"),
    "long id": (json.dumps({**request_with(), "id": "x" * 129}).encode(), {}, 400, "id"),
    "header length beyond": (
        json.dumps(request_with()).encode(),
        {"Inference-Header-Content-Length": "99999"},
        400,
        "Length",
    ),
    "header length no number": (
        json.dumps(request_with()).encode(),
        {"Inference-Header-Content-Length": "-1"},
        400,
        "Length",
    ),
    "unknown packing": (json.dumps(request_with()).encode(), {"Content-Encoding": "br"}, 415, "Content-Encoding"),
    "not packed": (json.dumps(request_with()).encode(), {"Content-Encoding": "gzip"}, 400, "Content-Encoding"),
    "packed and cut": (
        gzip.compress(json.dumps(request_with()).encode())[:-9],
        {"Content-Encoding": "gzip"},
        400,
        "packed",
    ),
    "packed bomb": (gzip.compress(bytes(32 << 20)), {"Content-Encoding": "gzip"}, 413, "unpacked"),
    "oversize": (b" " * (2 << 20), {}, 413, "larger"),
}


def assert_still_answers(serving: ServingProcess) -> None:
    reply = serving.post(f"{MODELS}/infer", request_with())
    assert reply.status == 200
    scores = np.array(reply.document["outputs"][0]["data"], dtype=np.float32)
    np.testing.assert_allclose(scores, RELEASE.compute(some_input())[0].ravel(), atol=1e-5)


@pytest.mark.parametrize("name", sorted(BAD_JSON))
def test_bad_json(serving: ServingProcess, name: str) -> None:
    body, headers, status, says = BAD_JSON[name]
    reply = serving.request("POST", f"{MODELS}/infer", body, headers)
    assert reply.status == status
    assert says in reply.document["error"]
    assert_still_answers(serving)


def binary_request(size: int, data: bytes, *, header_length: int | None = None) -> tuple[bytes, dict[str, str]]:
    entry = {"name": "input", "datatype": "FP32", "shape": [1, 2, 3], "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [entry]}).encode()
    length = len(header) if header_length is None else header_length
    return header + data, {"Inference-Header-Content-Length": str(length)}


@pytest.mark.parametrize(
    ("name", "request_", "says"),
    [
        ("truncated", binary_request(24, bytes(20)), "binary_data_size"),
        ("size of another shape", binary_request(20, bytes(20)), "24 for FP32 [1, 2, 3]"),
        ("bytes left over", binary_request(24, bytes(30)), "6 more bytes"),
        ("JSON cut short", binary_request(24, bytes(24), header_length=30), "body"),
    ],
)
def test_bad_binary(serving: ServingProcess, name: str, request_: tuple[bytes, dict[str, str]], says: str) -> None:
    reply = serving.request("POST", f"{MODELS}/infer", *request_)
    assert reply.status == 400
    assert says in reply.document["error"]
    assert_still_answers(serving)


def test_a_connection_that_ends_in_the_middle_of_a_body(serving: ServingProcess) -> None:
    with socket.create_connection(("127.0.0.1", serving.http_port), timeout=10) as connection:
        connection.sendall(f"POST {MODELS}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 400\r\n\r\n{{".encode())
    with socket.create_connection(("127.0.0.1", serving.http_port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        assert b"400" in connection.recv(100)
    assert_still_answers(serving)


def test_a_body_in_chunks_is_bounded_too(serving: ServingProcess) -> None:
    with socket.create_connection(("127.0.0.1", serving.http_port), timeout=10) as connection:
        connection.sendall(f"POST {MODELS}/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        reply = b""
        for _ in range(64):
            try:
                connection.sendall(chunk)
            except OSError:
                break
        try:
            reply = connection.recv(1000)
        except ConnectionResetError:
            pass
    assert reply == b"" or b"413" in reply
    assert_still_answers(serving)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("GET", "/v2/models/tiny/versions/9", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("GET", "/v3", 404),
        ("POST", "/v2/models/other/labels", 404),
    ],
)
def test_paths(serving: ServingProcess, method: str, path: str, status: int) -> None:
    reply = serving.request(method, path)
    assert reply.status == status
    assert reply.document["error"]


def good_message() -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[some_input().tobytes()])
    message.inputs.add(name="input", datatype="FP32", shape=[1, 2, 3])
    return message


def call(serving: ServingProcess, data: bytes, method: str = "ModelInfer") -> oip.ModelInferResponse:
    with grpc.insecure_channel(f"127.0.0.1:{serving.grpc_port}", [("grpc.max_send_message_length", -1)]) as channel:
        stub = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        return oip.ModelInferResponse.FromString(stub(data, timeout=20))


def changed(change: Callable[[oip.ModelInferRequest], object]) -> bytes:
    message = good_message()
    change(message)
    return message.SerializeToString()


def typed(message: oip.ModelInferRequest, values: list[float]) -> None:
    message.ClearField("raw_input_contents")
    message.inputs[0].contents.fp32_contents.extend(values)


BAD_MESSAGES: dict[str, tuple[bytes, grpc.StatusCode, str]] = {
    "broken bytes": (b"\xff\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, "ModelInferRequest"),
    "empty": (b"", grpc.StatusCode.NOT_FOUND, "tiny"),
    "cut short": (good_message().SerializeToString()[:-10], grpc.StatusCode.INVALID_ARGUMENT, "ModelInferRequest"),
    "truncated tensor": (
        changed(lambda m: m.raw_input_contents.__setitem__(0, bytes(20))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs[input].raw_input_contents",
    ),
    "two raw, one input": (
        changed(lambda m: m.raw_input_contents.append(b"")),
        grpc.StatusCode.INVALID_ARGUMENT,
        "raw_input_contents",
    ),
    "raw and typed": (
        changed(lambda m: m.inputs[0].contents.fp32_contents.append(1)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "contents",
    ),
    "too few typed": (changed(lambda m: typed(m, [1.0])), grpc.StatusCode.INVALID_ARGUMENT, "fp32_contents"),
    "typed NaN": (changed(lambda m: typed(m, [float("nan")] * 6)), grpc.StatusCode.INVALID_ARGUMENT, "NaN"),
    "negative size": (
        changed(lambda m: m.inputs[0].shape.__setitem__(0, -1)),
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs[input].shape",
    ),
    "no datatype": (
        changed(lambda m: setattr(m.inputs[0], "datatype", "")),
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs[input].datatype",
    ),
    "no input": (
        oip.ModelInferRequest(model_name="tiny").SerializeToString(),
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs",
    ),
    "oversize": (b"\x00" * (66 << 20), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger"),
    "another version": (
        changed(lambda m: setattr(m, "model_version", "7")),
        grpc.StatusCode.NOT_FOUND,
        "version 7",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_MESSAGES))
def test_bad_messages(serving: ServingProcess, name: str) -> None:
    data, code, says = BAD_MESSAGES[name]
    with pytest.raises(grpc.RpcError) as caught:
        call(serving, data)
    assert caught.value.code() is code
    assert says in caught.value.details()
    answer = call(serving, good_message().SerializeToString())
    scores = np.frombuffer(answer.raw_output_contents[0], dtype=np.float32)
    np.testing.assert_allclose(scores, RELEASE.compute(some_input())[0].ravel(), atol=1e-5)


def test_typed_contents_are_answered_with_typed_contents(serving: ServingProcess) -> None:
    x = some_input()
    answer = call(serving, changed(lambda m: typed(m, x.ravel().tolist())))
    assert not answer.raw_output_contents
    wanted = RELEASE.compute(x)[0].ravel()
    np.testing.assert_allclose(answer.outputs[0].contents.fp32_contents, wanted, atol=1e-5)


def test_an_unknown_method(serving: ServingProcess) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(serving, b"", "RepositoryIndex")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_refusals_and_answers_are_in_status_and_metrics(serving: ServingProcess) -> None:
    before = serving.status()
    serving.post(f"{MODELS}/infer", request_with(shape=[1, 3, 2]))
    serving.post(f"{MODELS}/infer", request_with(data=[float("nan")] * 6))
    serving.post(f"{MODELS}/infer", request_with(data=[1e5] * 6))
    serving.post(f"{MODELS}/infer", request_with(datatype="X"))
    serving.post(f"{MODELS}/infer", request_with())
    after = serving.status()
    assert after["requests"] - before["requests"] == 1
    assert after["errors"] == before["errors"]
    gained = {reason: after["refused"][reason] - before["refused"][reason] for reason in after["refused"]}
    assert gained == {"schema": 2, "missing": 1, "out_of_range": 1}
    assert (after["release_id"], after["slot"], after["variant"], after["task"]) == ("release-one", "a", "fp32", "tiny")
    metrics = serving.request("GET", "/metrics")
    lines = dict(line.rsplit(" ", 1) for line in metrics.body.decode().splitlines() if not line.startswith("#"))
    assert float(lines["skerry_requests_total"]) == after["requests"]
    assert float(lines['skerry_refused_requests_total{reason="schema"}']) == after["refused"]["schema"]
    buckets = [lines[line] for line in lines if line.startswith("skerry_latency_seconds_bucket{") and '"+Inf"' in line]
    assert sum(map(float, buckets)) == after["requests"]
    active = [line for line in lines if line.startswith("skerry_release_active")]
    assert len(active) == 1
    assert 'release="release-one"' in active[0]


def test_json_and_binary_say_the_same(serving: ServingProcess) -> None:
    plain: Reply = serving.post(f"{MODELS}/infer", request_with())
    body, headers = binary_request(24, some_input().tobytes())
    binary = serving.request("POST", f"{MODELS}/versions/release-one/infer", body, headers)
    assert plain.document["outputs"] == binary.document["outputs"]
    assert plain.headers["content-type"] == "application/json"


def test_the_training_process_sees_how_fast_answers_are(serving: ServingProcess) -> None:
    reader = LatencyReader(serving.layout.latency_file)
    deadline = time.monotonic() + 30
    seen = None
    while seen is None:
        assert time.monotonic() < deadline, "no record while requests are answered"
        assert serving.post(f"{MODELS}/infer", request_with()).status == 200
        seen = reader.read()
    reader.close()
    assert seen.requests >= FEWEST
    assert 0 < seen.p99_us < 10_000_000
