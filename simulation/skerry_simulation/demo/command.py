"""``skerry-sim demo``: set the stage, run the story, say what came of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from skerry_models.task import load_task
from skerry_simulation.demo.chaos import Chaos
from skerry_simulation.demo.progress import Progress
from skerry_simulation.demo.report import write_report
from skerry_simulation.demo.result import DemoResult
from skerry_simulation.demo.settings import DemoSettings
from skerry_simulation.demo.story import Story
from skerry_simulation.errors import ScenarioError, SimulationError
from skerry_simulation.processes import DaemonGroup


def run_demo(settings: DemoSettings, *, json_file: Path | None, chaos_seed: int | None) -> DemoResult:
    """Run the whole loop.

    Args:
        settings: What to run.
        json_file: Where the result goes as JSON too.
        chaos_seed: Kill a random process of the run in each phase, chosen by this seed; None leaves all alive.

    Raises:
        SimulationError: A phase did not get where it should; the message says what was seen last.
    """
    task = load_task(settings.task)
    task.source("central")  # data that are missing are told before anything is started
    _prepare(settings.folder)
    progress = Progress()
    result = DemoResult(task=settings.task, devices=settings.devices)
    with DaemonGroup(keep=settings.keep) as group:
        signal.signal(signal.SIGTERM, _interrupt)
        chaos = Chaos(group, progress, seed=chaos_seed) if chaos_seed is not None else None
        try:
            if chaos is not None:
                chaos.start()
            Story(settings, task, group, progress, result, chaos=chaos).run()
        except (SimulationError, KeyboardInterrupt):
            group.keep = False
            raise
        finally:
            if chaos is not None:
                chaos.stop()
            result.timeline = progress.moments
        page = write_report(result, settings.report)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result.document(), indent=2))
    _print_summary(progress.console, result, page, settings)
    return result


def _prepare(folder: Path) -> None:
    """Start from an empty folder, but never delete one that the demo did not make."""
    marker = folder / ".skerry-demo"
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise ScenarioError("--folder", expected="an empty folder or one of an earlier demo", got=folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(f"{os.getpid()}\n")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _print_summary(console: Console, result: DemoResult, page: Path, settings: DemoSettings) -> None:
    table = Table(title=f"{result.task} on {result.devices} devices, {result.seconds:.0f} s", title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    accuracy = result.accuracy
    for what, figure in (
        ("accuracy on unseen data, first model", f"{accuracy['v1']:.1%}"),
        ("accuracy on unseen data, federated", f"{accuracy['federated']:.1%}"),
        ("int8 minus fp32", f"{accuracy['int8_minus_fp32'] * 100:+.2f} points"),
        ("drifted devices: before, after the drift", f"{accuracy['before_drift']:.1%}, {accuracy['drifted']:.1%}"),
        ("drifted devices: recovered", f"{accuracy['recovered']:.1%}"),
        ("windows to detect; incidents", f"{result.drift['windows_to_detect']}; {result.drift['incidents_after']}"),
        ("one request through gRPC, p50 / p99",
         f"{result.inference['p50_us'] / 1000:.2f} / {result.inference['p99_us'] / 1000:.2f} ms"),
        ("answered offline; errors",
         f"{result.inference['offline_requests']:,.0f}; {result.inference['offline_errors']:.0f}"),
        ("fp32, int8 artifact", f"{result.artifact['fp32_bytes']:,}, {result.artifact['int8_bytes']:,} bytes"),
        ("federated rounds, seconds a round",
         f"{result.campaign['rounds']:.0f}, {result.campaign['seconds_per_round']:.2f}"),
    ):  # fmt: skip
        table.add_row(what, figure)
    console.print(table)
    console.print(f"report: {page}")
    if settings.keep:
        console.print(f"Everything is still running, with its data in {settings.folder}.")
        console.print(f"Stop it with: skerry-sim stop --folder {settings.folder}")
