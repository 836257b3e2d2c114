"""``skerry-gateway``: exit codes, one line per error, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skerry_gateway.cli import run
from skerry_gateway.config import GatewayConfig, GatewayLayout, load_gateway_config, save_config
from skerry_gateway.status import GatewayStatus
from skerry_gateway.superlink import command
from skerry_gateway.worker import RoundFigures


def test_a_gateway_that_is_not_enrolled_is_told_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run", "status"):
        assert run([name, "--data-dir", str(tmp_path)]) == 3
        assert "skerry-gateway enroll" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("listen", ["9443", "0.0.0.0:0", "0.0.0.0:70000", "a b:1", ""])
def test_a_bad_place_to_listen_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], listen: str
) -> None:
    arguments = ["enroll", "--server", "https://127.0.0.1:1", "--token", "t", "--device-id", "gw", "--listen", listen]
    assert run([*arguments, "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("skerry-gateway: --listen: expected host:port")
    assert list(tmp_path.iterdir()) == []


def test_status_says_what_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = GatewayLayout(tmp_path)
    save_config(layout, GatewayConfig("0.0.0.0", 9443))
    status = GatewayStatus(layout.status, "gw")
    status.change(
        site="plant", address="gw:9443", devices=3, connected=2, node_id="5", round=RoundFigures("c", 4, 3, 2)
    )
    assert run(["status", "--json", "--data-dir", str(tmp_path)]) == 3  # it does not run
    document = json.loads(capsys.readouterr().out)
    assert (document["running"], document["connected"], document["round"]["counted"]) == (False, 2, 2)
    assert run(["status", "--data-dir", str(tmp_path)]) == 3
    assert "last       c round 4: 2 of 3 devices" in capsys.readouterr().out


def test_settings_come_back_or_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = GatewayLayout(tmp_path)
    save_config(layout, GatewayConfig("::", 9443))
    assert load_gateway_config(layout) == GatewayConfig("::", 9443)
    assert command(layout, load_gateway_config(layout))[-8:-4] == ["--host", "::", "--port", "9443"]
    layout.config.write_text('{"listen_host": "0.0.0.0", "listen_port": 1, "more": 2}')
    assert run(["status", "--data-dir", str(tmp_path)]) == 3
    assert "correct the file" in capsys.readouterr().err
