"""``skerry-agent``: enrol a device, run its agent, look at it.

Exit status: 0 done, 2 wrong arguments or a refused request, 3 this machine or the network cannot do it.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from click import ClickException

from skerry_agent.config import AgentLayout, default_data_dir, load_config
from skerry_agent.errors import AgentError, InputError

app = typer.Typer(
    name="skerry-agent",
    help="The agent of one device: it answers offline, takes signed releases, trains where its data is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="The device's data; default: $SKERRY_AGENT_DIR or /var/lib/skerry-agent."),
]


def _layout(data_dir: Path | None) -> AgentLayout:
    return AgentLayout((data_dir or default_data_dir()).absolute())


@app.command()
def enroll(
    server: Annotated[str, typer.Option(help="URL of the control plane's device API: https://host:port.")],
    token: Annotated[str, typer.Option(help="Single-use enrolment token, whole, from `skerry device token`.")],
    device_id: Annotated[str, typer.Option(help="Name of this device: a-z, 0-9 and -.")],
    label: Annotated[list[str] | None, typer.Option(help="key=value, for cohorts; may be repeated.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="field=value of agent.json, for example health_seconds=5.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an enrolment that is there.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Trade a token for this device's identity; its private key is made here and stays here."""
    from skerry_agent import enroll as enrolment
    from skerry_agent.engine.device_class import detect_device_class

    layout = _layout(data_dir)
    config = enrolment.enroll(
        layout,
        server=server,
        token=token,
        device_id=device_id,
        device_class=detect_device_class(),
        labels=enrolment.parse_pairs(label or [], field="--label"),
        settings=enrolment.parse_pairs(setting or [], field="--set"),
        force=force,
    )
    typer.echo(f"enrolled as {config.device_id}; start it with: skerry-agent run --data-dir {layout.root}")


@app.command("run")
def run_agent(data_dir: DataDir = None) -> None:
    """Run control, serving and training until SIGTERM or Ctrl-C."""
    from skerry_agent.supervisor import supervise

    layout = _layout(data_dir)
    load_config(layout)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    supervise(layout)


@app.command()
def status(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what the agent is doing; exit status 3 if it does not run."""
    from skerry_agent.status import read_status

    found = read_status(_layout(data_dir))
    if as_json:
        typer.echo(json.dumps(found.document(), indent=2))
    else:
        names = ", ".join(f"{name} {pid}" for name, pid in sorted(found.processes.items())) or "none"
        release = f"{found.release_id} (slot {found.slot}{'' if found.committed else ', on probation'})"
        typer.echo(f"device     {found.device_id}{'' if found.running else ' (not running)'}")
        typer.echo(f"processes  {names}")
        typer.echo(f"release    {release if found.release_id else 'none'}")
        typer.echo(f"update     {found.update_state}{f': {found.update_detail}' if found.update_detail else ''}")
        typer.echo(f"doors      HTTP {found.http_port or '-'}, gRPC {found.grpc_port or '-'}")
        typer.echo(f"flower     node {found.flower_node_id}")
        typer.echo(f"identity   certificate until {found.certificate_until or '- (enrol the device again)'}")
    if not found.running:
        raise typer.Exit(3)


@app.command()
def version() -> None:
    """Print the version."""
    from skerry_agent.version import agent_version

    typer.echo(agent_version())


def run(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status and shows no traceback for an error that is expected."""
    try:
        result = app(args=arguments, standalone_mode=False)
    except ClickException as error:
        error.show()
        return error.exit_code
    except (InputError, AgentError) as error:
        typer.echo(f"skerry-agent: {error}", err=True)
        return 2 if isinstance(error, InputError) else 3
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("skerry-agent: interrupted", err=True)
        return 130
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(run())
