"""``skerry status``: what runs, how it is doing. Reads files and the store; asks no process for its word."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import sqlalchemy as sa
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from skerry_server.clock import now_ms
from skerry_server.config import ServerConfig, ServerLayout, default_data_dir, load_config
from skerry_server.errors import PlatformError
from skerry_server.runtime.status_file import RuntimeStatus, read_runtime_status
from skerry_server.store.database import Database
from skerry_server.store.tables import Device
from skerry_server.supervision.state_file import TreeState, read_state

#: Exit status: everything runs and is well.
RUNNING = 0
#: Exit status: nothing runs.
NOT_RUNNING = 1
#: Exit status: it runs, or should, and something is wrong.
BROKEN = 3


@dataclass(frozen=True)
class Report:
    """What ``skerry status`` says.

    Attributes:
        data_dir: Which control plane.
        exit_code: 0 running, 1 not running, 3 broken.
        problems: What is wrong, a sentence each.
        tree: Processes and addresses; ``None`` when nothing runs.
        devices: Devices that are enrolled, and how many of them are online.
        runtime: Controllers, as their process said last; ``None`` if it has not.
    """

    data_dir: str
    exit_code: int
    problems: list[str]
    tree: TreeState | None = None
    devices: dict[str, int] = field(default_factory=dict)
    runtime: RuntimeStatus | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; each process also says whether it is alive."""
        document = asdict(self)
        if self.tree is not None:
            for entry, process in zip(document["tree"]["processes"], self.tree.processes, strict=True):
                entry["alive"] = process.alive()
        return document


def status(
    data_dir: Annotated[Path | None, typer.Option(help="Which control plane.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the processes, addresses, devices and controllers.

    Exit status: 0 running, 1 not running, 3 broken.
    """
    report = inspect(ServerLayout((data_dir or default_data_dir()).expanduser().resolve()))
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        _show(report)
    raise typer.Exit(report.exit_code)


def inspect(layout: ServerLayout) -> Report:
    """Look at a data directory; never raises for what it finds there."""
    if not layout.config.exists():
        return Report(str(layout.root), NOT_RUNNING, [f"{layout.root} has never been started with `skerry up`"])
    try:
        config = load_config(layout)
    except PlatformError as error:
        return Report(str(layout.root), BROKEN, [str(error)])
    tree = read_state(layout)
    if tree is None or not tree.alive():
        left = [process.name for process in tree.processes if process.alive()] if tree is not None else []
        if left:
            return Report(str(layout.root), BROKEN, [f"the supervisor is gone but these run: {', '.join(left)}"], tree)
        return Report(str(layout.root), NOT_RUNNING, [])
    runtime = read_runtime_status(layout)
    problems = [*_tree_problems(tree), *_runtime_problems(tree, runtime)]
    devices: dict[str, int] = {}
    try:
        devices = _count_devices(config, layout)
    except SQLAlchemyError as error:
        problems.append(f"the store cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}")
    return Report(str(layout.root), BROKEN if problems else RUNNING, problems, tree, devices, runtime)


def _tree_problems(tree: TreeState) -> list[str]:
    problems = [] if tree.ready else ["it is still starting"]
    for process in tree.processes:
        if not process.alive():
            how = f" (it ended with {process.last_exit})" if process.last_exit else ""
            problems.append(f"{process.name} does not run{how}")
        elif not process.ready:
            problems.append(f"{process.name} runs but is not ready")
    return problems


def _runtime_problems(tree: TreeState, runtime: RuntimeStatus | None) -> list[str]:
    if not any(process.name == "runtime" for process in tree.processes):
        return []
    moment = now_ms()
    if runtime is None or runtime.stale(moment):
        return ["the controllers have not said how they are doing"]
    problems = [] if runtime.broker_connected else [f"the controllers have no broker: {runtime.broker_error}"]
    for controller in runtime.controllers:
        if controller.last_error:
            count = controller.consecutive_failures
            problems.append(f"controller {controller.name} failed {count} times in a row: {controller.last_error}")
        elif controller.stuck(moment):
            problems.append(f"controller {controller.name} has been in one step since {controller.running_since_ms}")
    return problems


def _count_devices(config: ServerConfig, layout: ServerLayout) -> dict[str, int]:
    database = Database(layout.database_url(config))
    try:
        with database.reading() as session:
            enrolled = sa.select(sa.func.count()).select_from(Device).where(Device.revoked.is_(False))
            return {
                "enrolled": session.scalar(enrolled) or 0,
                "online": session.scalar(enrolled.where(Device.online.is_(True))) or 0,
            }
    finally:
        database.close()


def _show(report: Report) -> None:
    console = Console(soft_wrap=True)
    word = {RUNNING: "[green]running[/]", NOT_RUNNING: "[yellow]not running[/]", BROKEN: "[red]broken[/]"}
    console.print(f"{word[report.exit_code]}  {report.data_dir}", highlight=False)
    for problem in report.problems:
        console.print(f"  [red]![/] {problem.replace('[', chr(92) + '[')}", highlight=False)
    if report.tree is not None:
        table = Table(box=None, pad_edge=False)
        for title in ("process", "pid", "state", "restarts"):
            table.add_column(title)
        for process in report.tree.processes:
            state = ("ready" if process.ready else "starting") if process.alive() else "down"
            table.add_row(process.name, str(process.pid or "-"), state, str(process.restarts))
        console.print(table)
        tree = report.tree
        console.print(
            f"console {tree.url}  gRPC {tree.grpc}  MQTT {tree.broker}  SuperLink {tree.superlink}", highlight=False
        )
    if report.devices:
        console.print(f"devices: {report.devices['online']} of {report.devices['enrolled']} online", highlight=False)
    for wait in report.runtime.waits if report.runtime is not None else ():
        console.print(f"  [yellow]…[/] {wait.replace('[', chr(92) + '[')}", highlight=False)
    if report.runtime is not None and report.runtime.controllers:
        table = Table(box=None, pad_edge=False)
        for title in ("controller", "steps", "failures", "last step took"):
            table.add_column(title)
        for one in report.runtime.controllers:
            table.add_row(one.name, str(one.steps), str(one.failures), f"{one.last_duration_ms} ms")
        console.print(table)
