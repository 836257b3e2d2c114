"""The whole loop in real processes: what the demo says must be true."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from integration.demo.demo_run import SIM, Finished, run_demo

pytestmark = [pytest.mark.demo, pytest.mark.timeout(1500)]
#: People whose phones take part in the activity loop: the short form here, eight in `make soak`.
PEOPLE = int(os.environ.get("SKERRY_DEMO_DEVICES", "4"))
#: Federated rounds of a campaign; 0 takes the task's own number.
ROUNDS = int(os.environ.get("SKERRY_DEMO_ROUNDS", "5"))


@pytest.fixture(scope="module")
def har(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """The activity task on several people's phones, left running."""
    finished = run_demo(
        tmp_path_factory.mktemp("har"), "--task", "har", "--devices", str(PEOPLE), "--rounds", str(ROUNDS), "--keep"
    )
    yield finished
    subprocess.run([*SIM, "stop", "--folder", str(finished.folder)], check=True, timeout=120)
    left = [p for p in psutil.process_iter(["cmdline"]) if str(finished.folder) in " ".join(p.info["cmdline"] or [])]
    assert not psutil.wait_procs(left, timeout=20)[1]


def test_the_activity_loop_meets_its_bars(har: Finished) -> None:
    result = har.result
    accuracy = result["accuracy"]
    assert accuracy["federated"] > accuracy["v1"]
    assert abs(accuracy["int8_minus_fp32"]) <= 0.01
    assert result["drift"]["incidents_before"] == 0
    assert result["drift"]["incidents_after"] == 1
    assert 1 <= result["drift"]["windows_to_detect"] <= 4
    cost = accuracy["before_drift"] - accuracy["drifted"]
    assert cost > 0
    assert accuracy["recovered"] - accuracy["drifted"] >= cost / 2
    assert result["inference"]["offline_requests"] == PEOPLE * 2000
    assert result["inference"]["offline_errors"] == 0
    assert [r["state"] for r in result["rollouts"]] == ["finished"] * 3
    assert all(len(r["canary_devices"]) == 1 for r in result["rollouts"])
    assert result["campaign"]["participants"] == PEOPLE


def test_released_bundles_are_kept_and_run(har: Finished) -> None:
    import onnxruntime

    for name in ("v1", "federated", "recovered"):
        folder = Path(har.result["bundles"]) / name
        for model in ("infer.onnx", "infer.int8-qdq.onnx", "infer.int8-x86.onnx"):
            session = onnxruntime.InferenceSession(folder / model, providers=["CPUExecutionProvider"])
            scores, features = session.run(None, {"input": np.zeros((2, 9, 128), np.float32)})
            assert scores.shape == (2, 6)
            assert np.isfinite(features).all()


def test_the_report_is_one_page_with_every_plot(har: Finished) -> None:
    page = Path(har.result["report"]).read_text()
    assert page.count("<svg") == 4
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!#|data:)\w+:""", page.replace("xlink:href", "href"))


def agents_of(folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder / "agents") in argument for argument in process.info["cmdline"] or [])
    ]


def test_no_agent_process_maps_torch(har: Finished) -> None:
    agents = agents_of(har.folder)
    assert len(agents) >= PEOPLE * 4
    for process in agents:
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in mapped, process.cmdline()


def doors(folder: Path, device: str = "har-01") -> dict[str, int]:
    document: dict[str, int] = json.loads((folder / "agents" / device / "run" / "serving.json").read_text())
    return document


def test_an_unmodified_triton_client_works(har: Finished) -> None:
    import tritonclient.grpc as triton_grpc
    import tritonclient.http as triton_http

    ports = doors(har.folder)
    rows = np.zeros((3, 9, 128), np.float32)
    for module, port in ((triton_grpc, ports["grpc_port"]), (triton_http, ports["http_port"])):
        client = module.InferenceServerClient(f"127.0.0.1:{port}")
        assert client.is_server_live()
        assert client.is_model_ready("har")
        tensor = module.InferInput("input", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows)
        assert client.infer("har", [tensor]).as_numpy("scores").shape == (3, 6)
        client.close()


def test_an_operator_reads_the_broker_with_a_password(har: Finished) -> None:
    state = json.loads((har.folder / "server" / "run" / "state.json").read_text())
    password = (har.folder / "server" / "keys" / "operator-mqtt-password").read_text().strip()
    host, port = str(state["broker"]).rsplit(":", 1)
    done = subprocess.run(
        [
            "mosquitto_sub", "-V", "5", "-h", host.split("//")[-1], "-p", port, "-u", "operator", "-P", password,
            "-t", "skerry/v1/d/+/presence", "-C", str(PEOPLE), "-W", "10", "-F", "%t",
        ],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == [f"skerry/v1/d/har-{i:02d}/presence" for i in range(1, PEOPLE + 1)]


def test_the_mlflow_store_shows_runs_and_versions(har: Finished) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{har.folder / 'server' / 'mlflow.sqlite'}")
    versions = client.search_model_versions("name = 'skerry-har'")
    assert len(versions) == 3
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) >= 3
    assert any(len(client.get_metric_history(run.info.run_id, key)) > 1 for run in runs for key in run.data.metrics)


def test_the_mlflow_ui_serves_the_store(har: Finished, wait_until: Callable[..., None]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = f"http://127.0.0.1:{port}"
    store = f"sqlite:///{har.folder / 'server' / 'mlflow.sqlite'}"
    command = [
        str(Path(sys.executable).with_name("mlflow")),
        "ui",
        "--backend-store-uri",
        store,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    ui = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=quiet, start_new_session=True
    )

    def found() -> bool:
        try:
            answer = httpx.get(
                f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/registered-models/get?name=skerry-har", timeout=5
            )
        except httpx.TransportError:
            return False
        return answer.status_code == 200 and answer.json()["registered_model"]["name"] == "skerry-har"

    try:
        wait_until(found, what="the registered model in MLflow's own server", seconds=120)
        assert "<title>MLflow</title>" in httpx.get(root, timeout=10).text
    finally:
        os.killpg(ui.pid, signal.SIGTERM)
        ui.wait(timeout=30)


@pytest.mark.browser
def test_a_browser_shows_the_fleet(har: Finished) -> None:
    from playwright.sync_api import sync_playwright

    state = json.loads((har.folder / "server" / "run" / "state.json").read_text())
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-sync",
                "--disable-background-networking",
                "--disable-component-update",
            ],
        )
        page = browser.new_page()
        page.goto(state["url"])
        page.fill("input[type=password]", (har.folder / "server" / "admin-token").read_text().strip())
        page.keyboard.press("Enter")
        for number in range(1, PEOPLE + 1):
            page.get_by_text(f"har-{number:02d}", exact=True).first.wait_for(timeout=20_000)
        page.get_by_text(f"{PEOPLE} of {PEOPLE} online").wait_for(timeout=20_000)
        browser.close()


def test_the_readme_s_code_runs_on_a_device(har: Finished) -> None:
    readme = (Path(__file__).resolve().parents[3] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 2
    code = "\n".join(blocks).replace("/var/lib/skerry-agent", str(har.folder / "agents" / "har-01"))
    code = code.replace("127.0.0.1:8000", f"127.0.0.1:{doors(har.folder)['http_port']}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "har-r3-" in done.stdout


def test_the_console_answers_and_the_api_wants_a_token(har: Finished) -> None:
    state = json.loads((har.folder / "server" / "run" / "state.json").read_text())
    assert httpx.get(state["url"], timeout=10).status_code == 200
    assert httpx.get(f"{state['url']}/v1/devices", timeout=10).status_code == 401
