"""``skerry-gateway``: enrol the gateway of a site, run it, look at it.

Exit status: 0 done, 2 wrong arguments or a refused request, 3 this machine or the network cannot do it.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from skerry_agent.command_line import run_command
from skerry_gateway.config import GatewayConfig, GatewayLayout, default_data_dir, load_gateway_config, save_config

app = typer.Typer(
    name="skerry-gateway",
    help="The gateway of one site: it sums the training of its devices and is one client to the control plane.",
    epilog="Exit status: 0 done, 2 wrong arguments or a refused request, 3 this machine or the network cannot do it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="The gateway's data; default: $SKERRY_GATEWAY_DIR or /var/lib/skerry-gateway."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _layout(data_dir: Path | None) -> GatewayLayout:
    return GatewayLayout((data_dir or default_data_dir()).absolute())


@app.command()
def enroll(
    server: Annotated[str, typer.Option(help="URL of the control plane's device API: https://host:port.")],
    token: Annotated[str, typer.Option(help="Single-use token, whole, from `skerry gateway token`.")],
    device_id: Annotated[str, typer.Option(help="Name of this gateway: a-z, 0-9 and -.")],
    listen: Annotated[
        str, typer.Option(help="host:port that the site's devices reach at the address named in the token.")
    ] = "0.0.0.0:9443",
    force: Annotated[bool, typer.Option(help="Replace an enrolment that is there.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Trade a token for this gateway's identity; its private keys are made here and stay here."""
    from skerry_agent import enroll as enrolment
    from skerry_agent.engine.device_class import detect_device_class
    from skerry_agent.errors import DeviceError

    layout, config = _layout(data_dir), GatewayConfig.parse(listen)
    try:
        written = enrolment.enroll(
            layout.agent,
            server=server,
            token=token,
            device_id=device_id,
            device_class=detect_device_class(),
            labels={},
            settings={},
            force=force,
        )
        save_config(layout, config)
    except OSError as error:
        raise DeviceError(f"{layout.root}: {error.strerror}", remedy="use a folder that can be written") from error
    if as_json:
        typer.echo(json.dumps({"gateway_id": written.device_id, "listen": listen, "data_dir": str(layout.root)}))
    else:
        typer.echo(f"enrolled as {written.device_id}; start it with: skerry-gateway run --data-dir {layout.root}")


@app.command("run")
def run_gateway(data_dir: DataDir = None) -> None:
    """Run the site's SuperLink and the gateway until SIGTERM or Ctrl-C."""
    from skerry_agent.config import load_config
    from skerry_agent.supervisor import supervise
    from skerry_gateway.children import gateway_children

    layout = _layout(data_dir)
    load_gateway_config(layout)
    load_config(layout.agent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    supervise(layout.agent, children=gateway_children)


@app.command()
def status(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Say what the gateway is doing; exit status 3 if it does not run."""
    from skerry_gateway.children import running_processes
    from skerry_gateway.status import read_state

    layout = _layout(data_dir)
    load_gateway_config(layout)
    found, processes = read_state(layout.status), running_processes(layout)
    if as_json:
        typer.echo(json.dumps({**found.document(), "running": bool(processes), "processes": processes}, indent=2))
    else:
        newest = found.round
        last = f"{newest.campaign_id} round {newest.round}: {newest.counted} of {newest.asked} devices"
        typer.echo(f"gateway    {found.gateway_id}{'' if processes else ' (not running)'}")
        typer.echo(f"site       {found.site or '-'} at {found.address or '-'}")
        typer.echo(f"processes  {', '.join(f'{name} {pid}' for name, pid in sorted(processes.items())) or 'none'}")
        typer.echo(f"devices    {found.connected} of {found.devices} connected")
        typer.echo(f"upstream   node {found.node_id}: {found.detail}")
        typer.echo(f"last       {last if newest.campaign_id else '-'}")
    if not processes:
        raise typer.Exit(3)


@app.command()
def version() -> None:
    """Print the version."""
    from skerry_agent.version import agent_version

    typer.echo(agent_version())


def run(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status and shows no traceback for an error that is expected."""
    return run_command(app, "skerry-gateway", arguments)


if __name__ == "__main__":
    sys.exit(run())
