"""The serving process: start, stop, kill, swap under load, and everything that can be wrong around it."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from integration.engine.tiny_bundle import TinyRelease, enrol, install, some_input
from integration.serving.serving_process import ServingProcess, mapped_files
from skerry_agent.config import AgentLayout
from skerry_agent.control.serving_client import ServingClient
from skerry_agent.link.outbox import Outbox
from skerry_agent.local_call import LocalCall
from skerry_agent.socket_address import SocketAddress
from skerry_agent.update.ports import ActivationResult
from skerry_agent.update.slots import Pointer, write_pointer
from skerry_contract.v1.agent_local_pb2 import ActivateRequest, ServingStatus, ServingStatusRequest
from skerry_contract.v1.serving_admin_pb2 import AdminReply, AdminRequest

REQUEST = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2, 3], "data": some_input().ravel().tolist()}]}
INFER = "/v2/models/tiny/infer"
ONE = TinyRelease(release_id="release-one", variants={"fp32": 0.0})
TWO = TinyRelease(release_id="release-two", sequence=2, seed=2, variants={"fp32": 0.0})


@pytest.fixture
def layout(tmp_path: Path) -> AgentLayout:
    return enrol(tmp_path / "d")


def ask(layout: AgentLayout, request: AdminRequest) -> AdminReply:
    with (
        closing(SocketAddress(layout.serving_socket)) as address,
        closing(LocalCall(address.path, request.SerializeToString(), timeout_s=30.0)) as call,
    ):
        while (data := call.poll()) is None:
            time.sleep(0.002)
    return AdminReply.FromString(data)


def admin(layout: AgentLayout, request: ActivateRequest | None = None) -> ServingStatus:
    reply = ask(
        layout, AdminRequest(status=ServingStatusRequest()) if request is None else AdminRequest(activate=request)
    )
    assert reply.code == AdminReply.CODE_OK, reply.detail
    return reply.status


def refused(layout: AgentLayout, slot: str) -> tuple[int, str]:
    reply = ask(layout, AdminRequest(activate=ActivateRequest(slot=slot)))
    assert reply.code != AdminReply.CODE_OK
    return reply.code, reply.detail


def outbox(layout: AgentLayout) -> Outbox:
    return Outbox(layout.outbox, device_id="device-1", message_limit=1000, byte_limit=1 << 20)


def test_without_a_release_the_doors_are_open_and_the_first_activation_answers(layout: AgentLayout) -> None:
    with ServingProcess(layout) as serving:
        assert serving.request("GET", "/v2/health/live").status == 200
        assert serving.request("GET", "/v2/health/ready").status == 503
        assert serving.request("GET", "/v2").status == 200
        assert serving.request("GET", "/metrics").status == 200
        for path in ("/v2/models/tiny", "/v2/models/tiny/ready"):
            assert serving.request("GET", path).status == 503
        reply = serving.post(INFER, REQUEST)
        assert reply.status == 503
        assert reply.document["error"] == "no release active"
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{serving.grpc_port}")
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("tiny")
        with pytest.raises(Exception, match="no release active") as caught:
            client.get_model_metadata("tiny")
        assert "UNAVAILABLE" in str(caught.value)
        client.close()

        assert refused(layout, "a")[0] == AdminReply.CODE_FAILED_PRECONDITION
        assert refused(layout, "z")[0] == AdminReply.CODE_INVALID_ARGUMENT
        install(layout, ONE)
        status = admin(layout, ActivateRequest(slot="a", release_id="release-one"))
        assert (status.release_id, status.slot, status.variant) == ("release-one", "a", "fp32")
        assert serving.post(INFER, REQUEST).status == 200
        assert admin(layout).release_requests == 1


def test_activation_under_load_on_both_doors_loses_no_request(layout: AgentLayout) -> None:
    install(layout, ONE, "a")
    install(layout, TWO, "b", activate=False)
    wanted = {r.release_id: r.compute(some_input())[0] for r in (ONE, TWO)}
    answered: dict[str, int] = {"release-one": 0, "release-two": 0}
    failures: list[str] = []
    done = threading.Event()
    lock = threading.Lock()

    with ServingProcess(layout) as serving:

        def ask(module: object, port: int) -> None:
            client = module.InferenceServerClient(f"127.0.0.1:{port}")  # type: ignore[attr-defined]
            tensor = module.InferInput("input", [1, 2, 3], "FP32")  # type: ignore[attr-defined]
            tensor.set_data_from_numpy(some_input())
            with closing(client):
                while not done.is_set():
                    try:
                        result = client.infer("tiny", [tensor])
                    except Exception as error:
                        failures.append(f"{type(error).__name__}: {error}")
                        continue
                    response = result.get_response()
                    version = response["model_version"] if isinstance(response, dict) else response.model_version
                    if not np.allclose(result.as_numpy("scores"), wanted[version], atol=1e-5):
                        failures.append(f"wrong scores of {version}")
                    with lock:
                        answered[version] += 1

        threads = [
            threading.Thread(target=ask, args=(tritonclient.grpc, serving.grpc_port)),
            threading.Thread(target=ask, args=(tritonclient.http, serving.http_port)),
        ]
        for thread in threads:
            thread.start()
        for turn in range(10):
            before = sum(answered.values())
            admin(layout, ActivateRequest(slot="b" if turn % 2 == 0 else "a"))
            while sum(answered.values()) < before + 5 and not failures:
                pass
        done.set()
        for thread in threads:
            thread.join(30)
        assert failures == []
        assert min(answered.values()) > 0
        assert serving.status()["requests"] == sum(answered.values())
        assert serving.status()["errors"] == 0
        assert serving.stop() == 0
    rows = dict.fromkeys(answered, 0)
    for message in outbox(layout).pending(1000):
        rows[message.drift.release_id] += message.drift.rows
    assert rows == answered


def test_a_corrupt_candidate_is_refused_and_the_old_release_answers(layout: AgentLayout) -> None:
    install(layout, ONE, "a")
    content = install(layout, TWO, "b", activate=False)
    data = bytearray((content.folder / "infer.onnx").read_bytes())
    data[100] ^= 1
    (content.folder / "infer.onnx").write_bytes(data)
    with ServingProcess(layout) as serving:
        code, reason = refused(layout, "b")
        assert code == AdminReply.CODE_FAILED_PRECONDITION
        assert "not the file that was signed" in reason
        reply = serving.post(INFER, REQUEST)
        assert (reply.status, reply.document["model_version"]) == (200, "release-one")


def test_fallback_at_start_is_in_the_status(layout: AgentLayout) -> None:
    install(layout, ONE, "a")
    content = install(layout, TWO, "b")
    (content.folder / "infer.onnx").unlink()
    write_pointer(layout, Pointer("b", "release-two", True, previous_slot="a", previous_release="release-one"))
    with ServingProcess(layout) as serving:
        assert serving.post(INFER, REQUEST).document["model_version"] == "release-one"
        status = admin(layout)
        assert status.slot == "a"
        assert "slot b refused" in status.detail


def test_killed_and_started_again_it_answers_and_stop_drains(
    layout: AgentLayout, wait_until: Callable[..., None]
) -> None:
    install(layout, ONE)
    serving = ServingProcess(layout)
    serving.start()
    assert serving.post(INFER, REQUEST).status == 200
    serving.kill()
    assert layout.serving_file.exists()  # nobody could remove it
    with serving:
        for _ in range(50):
            assert serving.post(INFER, REQUEST).status == 200
        assert serving.status()["requests"] == 50
        assert serving.stop() == 0
        assert not layout.serving_file.exists()
        assert not layout.serving_socket.exists()
    (message,) = outbox(layout).pending(10)
    assert message.drift.rows == 50
    with serving:
        assert serving.post(INFER, REQUEST).status == 200
        serving.stop()
    first, second = outbox(layout).pending(10)
    assert first.drift.boot_id != second.drift.boot_id


def test_sigterm_lets_a_request_under_way_finish(layout: AgentLayout, wait_until: Callable[..., None]) -> None:
    install(layout, ONE)
    body = json.dumps(REQUEST).encode()
    with ServingProcess(layout) as serving:
        with socket.create_connection(("127.0.0.1", serving.http_port), timeout=20) as connection:
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body[:10])
            serving.process.terminate()
            wait_until(lambda: "stopping" in serving.log(), what="the signal to arrive")
            connection.sendall(body[10:])
            reply = connection.recv(65536)
        assert reply.startswith(b"HTTP/1.1 200")
        assert serving.process.wait(20) == 0


def test_files_and_libraries_of_the_process(layout: AgentLayout) -> None:
    install(layout, ONE)
    with ServingProcess(layout) as serving:
        assert stat.S_IMODE(layout.serving_socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(layout.run.stat().st_mode) == 0o700
        files = mapped_files(serving.process.pid)
        assert not [name for name in files if name.startswith(("libtorch", "libc10"))]
        assert [name for name in files if name.startswith("onnxruntime_pybind11_state")]
        status = serving.status()
        assert 20 << 20 < status["rss_bytes"] < 130 << 20


def run_to_its_end(layout: AgentLayout) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "skerry_agent.serving", str(layout.root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("door", ["http_port", "grpc_port"])
def test_a_busy_port_is_named(tmp_path: Path, door: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        layout = enrol(tmp_path / "d", **{door: port})
        code, message = run_to_its_end(layout)
    assert code == 1
    assert str(port) in message
    assert door in message
    assert not layout.serving_file.exists()


def test_a_second_process_on_the_same_device_is_refused(layout: AgentLayout) -> None:
    with ServingProcess(layout) as serving:
        code, message = run_to_its_end(layout)
        assert code == 1
        assert "another serving process" in message
        assert serving.request("GET", "/v2/health/live").status == 200
        assert layout.serving_file.exists()


def test_without_enrolment_it_says_what_to_do(tmp_path: Path) -> None:
    code, message = run_to_its_end(AgentLayout(tmp_path))
    assert code == 1
    assert "skerry-agent enroll" in message
    assert "Traceback" not in message


class Answers:
    """Keeps the answer to an activation, which comes once."""

    def __init__(self, client: ServingClient) -> None:
        self._client = client
        self.last: ActivationResult | None = None

    def come(self) -> bool:
        self.last = self.last or self._client.activation()
        return self.last is not None


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    layout = enrol(tmp_path / ("long-" * 20))
    install(layout, ONE, activate=False)
    with ServingProcess(layout) as serving, closing(ServingClient(layout)) as client:
        client.activate("a", "release-one")
        answers = Answers(client)
        wait_until(answers.come, what="the activation")
        assert answers.last is not None
        assert answers.last.activated, answers.last.detail
        assert serving.request("GET", "/v2/health/ready").status == 200
        assert stat.S_IMODE(layout.serving_socket.stat().st_mode) == 0o600
    assert not layout.serving_socket.exists()


def test_a_broken_outbox_and_store_do_not_stop_answers(layout: AgentLayout) -> None:
    install(layout, ONE)
    layout.outbox.mkdir()
    layout.labelled.mkdir()
    with ServingProcess(layout) as serving:
        reply = serving.post(INFER, {**REQUEST, "id": "r1"})
        assert reply.status == 200
        labels = serving.post("/v2/models/tiny/labels", {"labels": [{"id": "r1", "label": "low"}]})
        assert labels.status == 503
        assert "labelled store" in labels.document["error"]
        assert serving.post(INFER, REQUEST).status == 200
