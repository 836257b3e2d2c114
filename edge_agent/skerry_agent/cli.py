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

from skerry_agent.command_line import run_command
from skerry_agent.config import AgentLayout, default_data_dir, load_config
from skerry_agent.errors import InputError

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
        typer.echo(f"personal   {found.personal or '-'}")
        typer.echo(f"doors      HTTP {found.http_port or '-'}, gRPC {found.grpc_port or '-'}")
        typer.echo(f"isolation  {'; '.join(found.isolation) or '-'}")
        typer.echo(f"flower     node {found.flower_node_id}")
        typer.echo(f"identity   certificate until {found.certificate_until or '- (enrol the device again)'}")
    if not found.running:
        raise typer.Exit(3)


@app.command()
def probe(
    data_dir: DataDir = None,
    release: Annotated[
        bool, typer.Option("--release", help="Measure the active release now; nothing is kept.")
    ] = False,
    onnx: Annotated[Path | None, typer.Option("--onnx", help="Time this ONNX file on every runtime instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the hardware, the inference runtimes, and which form of the model is served here and why."""
    from skerry_agent.probe import probe as look
    from skerry_agent.probe import show

    found = look(_layout(data_dir), measure=release, onnx=onnx)
    typer.echo(json.dumps(found, indent=2) if as_json else show(found))


@app.command()
def score(
    source: Annotated[Path, typer.Option("--input", help="Rows: .parquet, .csv, .npz or .npy.")],
    output: Annotated[Path, typer.Option("--output", help="Answers: .parquet, .csv or .npz.")],
    fail_on_bad_row: Annotated[
        bool, typer.Option("--fail-on-bad-row", help="End at the first row that the model refuses.")
    ] = False,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score a file of rows with the release of this device; rows that it refuses get their error.

    The rows are a column or array named as the model's input, or columns input_0, input_1, ...; all other columns are
    kept. The output appears when all rows are done.
    """
    from skerry_agent.batch.job import run_batch

    shown = sys.stderr.isatty() and not as_json

    def progress(done: int, rows: int) -> None:
        if shown:
            typer.echo(f"\r{done:,} of {rows:,} rows ({done / max(1, rows):.0%})", nl=done == rows, err=True)

    found = run_batch(_layout(data_dir), source, output, keep_bad=not fail_on_bad_row, on_rows=progress)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"{found['rows']:,} rows in {found['seconds']:.1f} s ({found['rows_per_second']:,.0f} a second)")
    for label, count in sorted(found["labels"].items(), key=lambda entry: -entry[1]):
        typer.echo(f"  {label:<24} {count:>10,}")
    if found["refused"]:
        typer.echo(f"  {'refused':<24} {found['refused']:>10,}   first: {found['first_error']}")
    typer.echo(f"written to {found['output']}")


@app.command()
def stream(
    source: Annotated[
        str,
        typer.Option("--from", help="mqtt[s]://[user@]host[:port]/topic, sensor:NAME[:ARGUMENT], replay:FILE or -."),
    ],
    sink: Annotated[str, typer.Option("--to", help="mqtt[s]://[user@]host[:port]/topic, or - for lines of JSON.")],
    take: Annotated[str, typer.Option(help="What the messages of a topic hold: rows or samples.")] = "rows",
    hop: Annotated[int, typer.Option(help="Samples from window to window; 0: side by side.")] = 0,
    rate: Annotated[float | None, typer.Option(help="Samples a second; default: what the sensor says.")] = None,
    gap_ms: Annotated[
        float | None, typer.Option(help="A sample so far from its time begins a new window; default: 2.5 periods.")
    ] = None,
    speed: Annotated[float, typer.Option(help="Of a replay, in its own time; 0: as fast as possible.")] = 1.0,
    deadline_ms: Annotated[float | None, typer.Option(help="A row that waited longer is told to be late.")] = None,
    keep: Annotated[
        str, typer.Option(help="Rows that stay when the queue is full: newest, oldest, all; default: by the source.")
    ] = "",
    queue: Annotated[int, typer.Option(help="Rows that may wait.")] = 64,
    qos: Annotated[int, typer.Option(help="MQTT quality of service, 0 or 1.")] = 1,
    password_file: Annotated[Path | None, typer.Option(help="Password of the user at the broker.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Authority of the broker (mqtts); default: the system's.")] = None,
    cert: Annotated[Path | None, typer.Option(help="Certificate for the broker (mqtts).")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object at the end.")] = False,
) -> None:
    """Answer a stream of rows or samples until it ends, or SIGTERM; the running agent answers.

    A message is {"values": [...], "id": "...", "at_ms": ...} or bare little-endian float32. Errors go to TOPIC/errors,
    or between the lines of -.
    """
    from skerry_agent.stream.job import StreamSettings, run_stream

    if take not in ("rows", "samples"):
        raise InputError("--take", expected="rows or samples", got=take)
    settings = StreamSettings(
        source=source,
        sink=sink,
        samples=take == "samples",
        hop=hop,
        rate_hz=rate,
        gap_ms=gap_ms,
        speed=speed,
        deadline_ms=deadline_ms,
        keep=keep,
        queue=queue,
        qos=qos,
        password_file=password_file,
        ca=ca,
        certificate=cert,
        key=key,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    found = run_stream(_layout(data_dir), settings)
    if as_json:
        typer.echo(json.dumps(found))
        return
    shown = ("rows", "answered", "refused", "late", "failed", "dropped", "undelivered")
    typer.echo(f"{found['seconds']:.1f} s: {', '.join(f'{name} {found[name]:,}' for name in shown)}", err=True)


@app.command()
def version() -> None:
    """Print the version."""
    from skerry_agent.version import agent_version

    typer.echo(agent_version())


def run(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status and shows no traceback for an error that is expected."""
    return run_command(app, "skerry-agent", arguments)


if __name__ == "__main__":
    sys.exit(run())
