"""What ``tritonclient`` asks for beyond plain inference, over both protocols, unmodified."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from integration.engine.tiny_bundle import some_input
from integration.serving.doors_rig import RELEASE, Doors, open_doors
from skerry_contract.oip import statistics_pb2 as ours


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with open_doors(tmp_path_factory.mktemp("device")) as opened:
        yield opened


@pytest.fixture(params=["grpc", "http"])
def triton(request: pytest.FixtureRequest, doors: Doors) -> Iterator[tuple[Any, Any]]:
    module = tritonclient.grpc if request.param == "grpc" else tritonclient.http
    client = module.InferenceServerClient(f"127.0.0.1:{getattr(doors, request.param).port}")
    yield module, client
    client.close()


def tensor(module: Any, x: Any) -> Any:
    made = module.InferInput("input", list(x.shape), "FP32")
    made.set_data_from_numpy(x)
    return made


def infer(triton: tuple[Any, Any], x: Any, **options: Any) -> Any:
    module, client = triton
    result = client.infer("tiny", [tensor(module, x)], **options)
    np.testing.assert_allclose(result.as_numpy("scores"), RELEASE.compute(x)[0], atol=1e-5)
    return result.get_response()


def test_there_is_no_configuration_and_the_error_says_so(triton: tuple[Any, Any]) -> None:
    module, client = triton
    with pytest.raises(InferenceServerException) as caught:
        client.get_model_config("tiny")
    assert caught.value.status() == ("StatusCode.UNIMPLEMENTED" if module is tritonclient.grpc else "501")
    assert "ask for metadata" in caught.value.message()


def test_statistics(triton: tuple[Any, Any], doors: Doors) -> None:
    module, client = triton
    before = doors.engine.status().counters
    infer(triton, some_input(3))
    with pytest.raises(InferenceServerException):
        client.infer("tiny", [tensor(module, some_input() * np.float32("nan"))])
    for name in ("tiny", ""):
        found = client.get_inference_statistics(name)
        stats = found["model_stats"] if isinstance(found, dict) else found.model_stats
        assert len(stats) == 1
    document = stats[0] if isinstance(stats[0], dict) else as_dict(stats[0])
    assert (document["name"], document["version"]) == ("tiny", "release-one")
    assert document["inference_count"] == before.rows + 3
    assert document["execution_count"] == before.requests + 1
    assert document["inference_stats"]["success"]["count"] == before.requests + 1
    assert document["inference_stats"]["success"]["ns"] > 0
    assert document["inference_stats"]["fail"]["count"] >= 1
    with pytest.raises(InferenceServerException, match="unknown model"):
        client.get_inference_statistics("other")


def as_dict(message: Any) -> dict[str, Any]:
    return {
        "name": message.name,
        "version": message.version,
        "inference_count": message.inference_count,
        "execution_count": message.execution_count,
        "inference_stats": {
            part: {
                "count": getattr(message.inference_stats, part).count,
                "ns": getattr(message.inference_stats, part).ns,
            }
            for part in ("success", "fail")
        },
    }


def test_fields_of_statistics_are_those_of_the_public_extension() -> None:
    public = tritonclient.grpc.service_pb2.DESCRIPTOR.message_types_by_name
    for name, message in ours.DESCRIPTOR.message_types_by_name.items():
        for field in message.fields:
            other = public[name].fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)


def test_every_answer_says_which_form_gave_it(triton: tuple[Any, Any]) -> None:
    response = infer(triton, some_input())
    if isinstance(response, dict):
        assert response["parameters"] == {"skerry_variant": "fp32", "skerry_rung": 0}
    else:
        assert response.parameters["skerry_variant"].string_param == "fp32"
        assert response.parameters["skerry_rung"].int64_param == 0


def test_a_deadline_that_can_be_met(triton: tuple[Any, Any]) -> None:
    infer(triton, some_input(), parameters={"deadline_us": 20_000_000})


@pytest.mark.parametrize(
    ("value", "codes", "says"),
    [
        (1e-3, ("StatusCode.DEADLINE_EXCEEDED", "503"), "deadline"),
        (0, ("StatusCode.INVALID_ARGUMENT", "400"), "parameters.deadline_us"),
        ("soon", ("StatusCode.INVALID_ARGUMENT", "400"), "parameters.deadline_us"),
    ],
)
def test_deadlines(triton: tuple[Any, Any], value: Any, codes: tuple[str, str], says: str) -> None:
    module, client = triton
    with pytest.raises(InferenceServerException) as caught:
        client.infer("tiny", [tensor(module, some_input())], parameters={"deadline_us": value})
    assert caught.value.status() == codes[0 if module is tritonclient.grpc else 1]
    assert says in caught.value.message()
    infer(triton, some_input())


def test_the_deadline_of_grpc_itself(doors: Doors) -> None:
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{doors.grpc.port}")
    x = some_input()
    assert client.infer("tiny", [tensor(tritonclient.grpc, x)], client_timeout=20.0).as_numpy("scores").shape == (1, 3)
    client.close()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_packed_bodies(doors: Doors, algorithm: str) -> None:
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{doors.http.port}")
    options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    infer((tritonclient.http, client), some_input(8), **options)
    client.close()
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{doors.grpc.port}") as packed:
        infer((tritonclient.grpc, packed), some_input(8), compression_algorithm=algorithm)
