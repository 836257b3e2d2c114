"""``skerry up``: the control plane, in the foreground, until it is told to stop."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from skerry_server import broker
from skerry_server.config import ServerConfig, ServerLayout, default_data_dir
from skerry_server.errors import PlatformError, RequestError
from skerry_server.first_start import Prepared, make_folders, prepare
from skerry_server.store.database import Database
from skerry_server.supervision import tree
from skerry_server.supervision.child import ChildSpec
from skerry_server.supervision.state_file import TreeState, read_state
from skerry_server.supervision.supervisor import Supervisor

#: Exit status for a command line that cannot be carried out.
USAGE = 2
#: Exit status for a machine that lacks something.
PLATFORM = 3
#: How long processes of a supervisor that was killed may take to be gone (seconds).
_LEFTOVER_S = 15.0


def up(
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is kept.", show_default=False)] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (first start: 127.0.0.1).")] = None,
    api_port: Annotated[int | None, typer.Option(min=1, max=65535, help="REST API and console.")] = None,
    grpc_port: Annotated[int | None, typer.Option(min=1, max=65535, help="gRPC API.")] = None,
    broker_port: Annotated[int | None, typer.Option(min=1, max=65535, help="MQTT broker, loopback.")] = None,
    broker_tls_port: Annotated[int | None, typer.Option(min=1, max=65535, help="MQTT, control of devices.")] = None,
    broker_data_port: Annotated[int | None, typer.Option(min=1, max=65535, help="MQTT, data of devices.")] = None,
    device_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Device API.")] = None,
    superlink_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Flower SuperLink.")] = None,
    public_name: Annotated[
        list[str] | None, typer.Option(help="Name or address by which devices reach this machine; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line when everything is ready.")] = False,
) -> None:
    """Start the control plane and keep it running until Ctrl-C or SIGTERM.

    The first start chooses free ports and makes keys, certificates, passwords and the administrator's token. Later
    starts on the same directory keep them; an option given again is written down and kept from then on.
    """
    wished: dict[str, Any] = {
        "host": host,
        "api_port": api_port,
        "grpc_port": grpc_port,
        "public_names": public_name or None,
        "broker_port": broker_port,
        "broker_tls_port": broker_tls_port,
        "broker_data_port": broker_data_port,
        "device_port": device_port,
        "superlink_port": superlink_port,
    }
    changes = {name: value for name, value in wished.items() if value is not None}
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        run((data_dir or default_data_dir()).expanduser().resolve(), changes, as_json=as_json)
    except PlatformError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {_plain(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(PLATFORM) from error
    except RequestError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {_plain(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(USAGE) from error


def run(
    data_dir: Path,
    changes: dict[str, Any],
    *,
    as_json: bool,
    children: Callable[[ServerConfig, ServerLayout], list[ChildSpec]] = tree.children,
) -> None:
    """Prepare the data directory and supervise the tree until a signal comes.

    Args:
        data_dir: Where everything is kept.
        changes: Settings of the command line.
        as_json: Whether to print one JSON line instead of a table when everything is ready.
        children: Which processes to run.

    Raises:
        PlatformError: Something is missing, busy, or does not start.
        RequestError: A setting is out of range.
    """
    layout = ServerLayout(data_dir)
    make_folders(layout)
    with locked(layout):
        wait_for_leftovers(layout)
        prepared = prepare(layout, changes)
        specs = children(prepared.config, layout)
        tree.check_ports(prepared.config)
        broker.write_configuration(prepared.config, layout)
        database = Database(layout.database_url(prepared.config))
        try:
            broker.publish_access(database, layout)
        finally:
            database.close()
        supervise(prepared, specs, as_json=as_json)


def supervise(prepared: Prepared, specs: list[ChildSpec], *, as_json: bool) -> None:
    """Run the children until SIGTERM, SIGINT or SIGHUP."""
    supervisor = Supervisor(prepared.layout, specs, tree.describe(prepared.config))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: supervisor.request_stop())

    def on_ready(state: TreeState) -> None:
        if as_json:
            document = asdict(state) | {
                "data_dir": str(prepared.layout.root),
                "admin_token_file": str(prepared.layout.admin_token),
                "first_start": bool(prepared.new_admin_token),
            }
            print(json.dumps(document), flush=True)
        else:
            _show(prepared, state)

    supervisor.run(on_ready)


@contextlib.contextmanager
def locked(layout: ServerLayout) -> Iterator[None]:
    """Hold the data directory. The kernel lets go of it when the process ends, however it ends.

    Raises:
        PlatformError: Another process holds it.
    """
    with (layout.run / "lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise PlatformError(
                f"{layout.root} is in use by a control plane that is running (process {holder})",
                remedy="stop it first, or choose another directory with --data-dir",
            ) from error
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


def wait_for_leftovers(layout: ServerLayout) -> None:
    """Let the processes of a supervisor that was killed end; the kernel has told them to.

    Raises:
        PlatformError: One of them does not.
    """
    state = read_state(layout)
    until = time.monotonic() + _LEFTOVER_S
    for process in state.processes if state is not None else ():
        if process.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        while process.alive():
            if time.monotonic() > until:
                raise PlatformError(
                    f"{process.name} (process {process.pid}) of the start before does not end", remedy="end it by hand"
                )
            time.sleep(0.05)


def _show(prepared: Prepared, state: TreeState) -> None:
    layout = prepared.layout
    rows = [
        ("console", state.url),
        ("gRPC", state.grpc),
        ("device API", state.device_api),
        ("MQTT", f"{state.broker_tls} for devices, with certificates"),
        ("", f"{state.broker} for user operator, password in {layout.operator_password}"),
        ("SuperLink", state.superlink),
        ("data", str(layout.root)),
        ("logs", str(layout.logs)),
        ("token", f"in {layout.admin_token}"),
    ]
    if prepared.new_admin_token:
        rows.append(("", f"{prepared.new_admin_token}  (the administrator's, made now)"))
    rows.append(("processes", ", ".join(f"{process.name} {process.pid}" for process in state.processes)))
    console = Console(soft_wrap=True, highlight=False)
    console.print("[bold green]skerry is up[/]")
    for name, value in rows:
        console.print(f"  [bold]{name:<10}[/] {_plain(value)}")
    console.print("[dim]Ctrl-C stops it.[/]")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
