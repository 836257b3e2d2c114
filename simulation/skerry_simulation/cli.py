"""``skerry-sim``: simulations, virtual fleets and the demo, on a workstation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from skerry_simulation.errors import ScenarioError, SimulationError

#: Exit codes: what happened, for scripts.
FAILED, USAGE, PLATFORM = 1, 2, 3

app = typer.Typer(
    name="skerry-sim",
    help="Federated simulations and virtual fleets with the task, strategy and agent code of production.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def demo(
    task: Annotated[str, typer.Option(help="Task to run: digits needs no download, har needs its data.")] = "digits",
    devices: Annotated[int, typer.Option(help="Agents to start, 2 to 12.")] = 5,
    rounds: Annotated[int, typer.Option(help="Federated rounds of a campaign; 0 takes the task's default.")] = 0,
    folder: Annotated[Path, typer.Option(help="Where data, logs and bundles of the run go.")] = Path("demo-out"),
    report: Annotated[Path | None, typer.Option(help="Folder of the HTML report; FOLDER/report if not given.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON here too.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end.")] = False,
    chaos: Annotated[int | None, typer.Option(help="Kill a random process in each phase, chosen by this seed.")] = None,
) -> None:
    """Run the whole loop on this machine, in real processes.

    A control plane and DEVICES agents are started, each with its own data: train, quantise, gate, sign, deliver,
    verify, answer offline, federated rounds, a drift on 40 % of the devices, detection, recovery.

    Example: skerry-sim demo --task digits --json result.json
    """
    from skerry_simulation.demo.command import run_demo
    from skerry_simulation.demo.settings import DemoSettings

    settings = DemoSettings(
        task=task,
        devices=devices,
        folder=folder.resolve(),
        report=(report or folder / "report").resolve(),
        keep=keep,
        federated_rounds=rounds,
    )
    run_demo(settings, json_file=json_file, chaos_seed=chaos)


@app.command("run")
def run_command(
    scenario: Annotated[Path, typer.Argument(help="TOML file; see simulation/scenarios/.")],
    engine: Annotated[str, typer.Option(help="sequential or ray; overrides the file.")] = "",
    report: Annotated[Path | None, typer.Option(help="Folder of the HTML report.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON here.")] = None,
) -> None:
    """Run a federated simulation with the task, strategy and device code of production.

    Example: skerry-sim run simulation/scenarios/digits.toml --engine ray --report out
    """
    from skerry_simulation.campaign.command import run_simulation
    from skerry_simulation.engines import ENGINES
    from skerry_simulation.scenario import read_scenario

    wanted = read_scenario(scenario)
    if engine:
        if engine not in ENGINES:
            raise ScenarioError("--engine", expected=f"one of {', '.join(ENGINES)}", got=engine)
        chosen = wanted.engine.model_copy(update={"name": engine})
        wanted = wanted.model_copy(update={"engine": chosen})
    run_simulation(wanted, report=report, json_file=json_file)


@app.command()
def stop(
    folder: Annotated[Path, typer.Option(help="Folder of a demo that was left running.")] = Path("demo-out"),
) -> None:
    """Stop what `skerry-sim demo --keep` left running."""
    from skerry_simulation.demo.stop import stop_demo

    count = stop_demo(folder.resolve())
    typer.echo(f"stopped {count} processes")


def run() -> None:
    """Entry point: errors of ours are one clear line and an exit code, never a traceback."""
    from skerry_models.errors import ModelsError
    from skerry_server.errors import InvalidRequestError, PlatformError, SkerryError

    try:
        app()
    except ScenarioError as error:
        typer.echo(f"skerry-sim: {error}", err=True)
        sys.exit(USAGE)
    except PlatformError as error:
        typer.echo(f"skerry-sim: {error}", err=True)
        sys.exit(PLATFORM)
    except InvalidRequestError as error:
        typer.echo(f"skerry-sim: {error}", err=True)
        sys.exit(USAGE)
    except (SimulationError, ModelsError, SkerryError) as error:
        typer.echo(f"skerry-sim: {error}", err=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        typer.echo("skerry-sim: interrupted; everything was stopped", err=True)
        sys.exit(130)


if __name__ == "__main__":
    run()
