"""The MLflow adapter on a real store, read back with MLflow's own client."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from skerry_server.errors import PlatformError
from skerry_server.registry.mlflow_registry import KEY_TAG, MlflowRegistry, model_name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def registry(root: Path) -> MlflowRegistry:
    return MlflowRegistry(f"sqlite:///{root}/mlflow.sqlite", artifacts=root / "artifacts")


@pytest.fixture
def client(root: Path, registry: MlflowRegistry) -> Any:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{root}/mlflow.sqlite"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_a_run_is_found_again_and_what_is_logged_twice_is_stored_once(
    registry: MlflowRegistry, client: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    (root / "elsewhere").mkdir()
    monkeypatch.chdir(root / "elsewhere")
    run_id = registry.ensure_run("digits", key="job-1", name="train job-1", tags={"skerry.origin": "central"})
    for _ in range(2):
        assert registry.ensure_run("digits", key="job-1", name="train job-1") == run_id
        registry.log_params(run_id, {f"p{index}": index for index in range(130)})
        registry.log_metrics(run_id, {"loss": 0.5}, step=1, at_ms=1_000)
        registry.log_metrics(run_id, {"loss": 0.25}, step=2, at_ms=2_000)
        registry.log_figure(run_id, Figure(), "plots/empty.png")
        registry.log_text(run_id, "text", "note.txt")
        registry.log_json(run_id, {"a": 1}, "note.json")
        registry.finish_run(run_id)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["skerry.origin"], run.data.tags[KEY_TAG]) == ("FINISHED", "central", "job-1")
    assert run.data.params == {f"p{index}": str(index) for index in range(130)}
    assert [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run_id, "loss")] == [
        (1, 0.5, 1_000),
        (2, 0.25, 2_000),
    ]
    assert sorted(item.path for item in client.list_artifacts(run_id)) == ["note.json", "note.txt", "plots"]
    assert registry.ensure_run("digits", key="job-2", name="another") != run_id
    registry.finish_run(run_id, failed=True)
    assert client.get_run(run_id).info.status == "FAILED"
    assert list((root / "elsewhere").iterdir()) == []


def test_a_bundle_becomes_one_version_also_after_a_registration_that_broke_off(
    registry: MlflowRegistry, client: Any, root: Path
) -> None:
    folder = root / "bundle"
    (folder / "sub").mkdir(parents=True)
    (folder / "infer.onnx").write_bytes(b"graph")
    (folder / "sub" / "card.md").write_text("# card")
    run_id = registry.ensure_run("digits", key="job-3", name="train")
    # What a process leaves that died right after it had made the logged model.
    experiment = client.get_experiment_by_name("skerry/digits").experiment_id
    client.create_logged_model(experiment, name="digits", source_run_id=run_id, tags={KEY_TAG: "candidate-1"})
    arguments: dict[str, Any] = {
        "key": "candidate-1",
        "run_id": run_id,
        "tags": {"skerry.bundle_sha256": "ab" * 32},
        "params": {"parent_release": "digits-r1"},
        "metrics": {"accuracy": 0.9},
    }
    assert registry.register_bundle("digits", folder, **arguments) == "1"
    assert registry.register_bundle("digits", folder, **arguments) == "1"
    models = client.search_logged_models([experiment], filter_string=f"tags.`{KEY_TAG}` = 'candidate-1'")
    assert [str(model.status) for model in models] == ["READY"]
    assert {metric.key: metric.value for metric in models[0].metrics} == {"accuracy": 0.9}
    version = client.get_model_version(model_name("digits"), "1")
    assert version.source == f"models:/{models[0].model_id}"
    assert version.tags["skerry.bundle_sha256"] == "ab" * 32
    assert sorted(item.path for item in client.list_logged_model_artifacts(models[0].model_id)) == ["infer.onnx", "sub"]
    other = registry.register_bundle("digits", folder, **{**arguments, "key": "candidate-2"})
    assert other == "2"
    assert registry.version_by_key("digits", "candidate-2") == "2"
    registry.set_alias("digits", "champion", "1")
    assert client.get_model_version_by_alias(model_name("digits"), "champion").version == 1
    registry.set_alias("digits", "champion", "2")
    assert registry.version_by_alias("digits", "champion") == "2"
    registry.set_version_tags("digits", "2", {"skerry.release": "digits-r2"})
    assert client.get_model_version(model_name("digits"), "2").tags["skerry.release"] == "digits-r2"


def test_what_is_not_there_is_empty(registry: MlflowRegistry) -> None:
    assert registry.version_by_alias("weather", "champion") == ""
    assert registry.version_by_alias("digits", "nobody") == ""
    assert registry.version_by_key("weather", "candidate-1") == ""


def test_a_store_that_cannot_be_opened_is_told() -> None:
    with pytest.raises(PlatformError, match="mlflow_uri"):
        MlflowRegistry("nowhere://mlflow", artifacts=None)


def test_a_store_whose_making_was_killed_is_made_anew(tmp_path: Path, root: Path, registry: MlflowRegistry) -> None:
    """MLflow alone refuses such a file for ever: its migrations are no transaction."""
    path = tmp_path / "mlflow.sqlite"
    with closing(sqlite3.connect(root / "mlflow.sqlite")) as whole, closing(sqlite3.connect(path)) as half:
        tables = whole.execute(
            "SELECT sql FROM sqlite_master WHERE name IN ('experiments', 'trace_metrics')"
        ).fetchall()
        for (statement,) in tables:
            half.execute(statement)
    assert len(tables) == 2

    opened = MlflowRegistry(f"sqlite:///{path}", artifacts=tmp_path / "artifacts")
    run_id = opened.ensure_run("digits", key="job-1", name="train job-1")
    assert MlflowRegistry(f"sqlite:///{path}", artifacts=None).ensure_run("digits", key="job-1", name="") == run_id
