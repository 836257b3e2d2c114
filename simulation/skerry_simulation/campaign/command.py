"""``skerry-sim run``: run a scenario, show rounds as they come, write the report."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from skerry_server.federation.rounds.journal import RoundRecord
from skerry_server.federation.rounds.round_loop import RoundFailedError
from skerry_simulation.campaign.report import write_report
from skerry_simulation.campaign.run import SimulationResult, run_scenario
from skerry_simulation.errors import StepError
from skerry_simulation.scenario import Scenario


def run_simulation(scenario: Scenario, *, report: Path | None, json_file: Path | None) -> SimulationResult:
    """Run ``scenario`` and tell what came of it.

    Raises:
        SimulationError: A round failed, or the scenario asks for what is not there.
    """
    console = Console(stderr=True, highlight=False)
    clients, engine = scenario.population.clients, scenario.engine.name
    console.print(f"[bold]{scenario.task}[/bold] with {clients} clients, {engine} engine")

    def show(record: RoundRecord) -> None:
        console.print(
            f"round {record.number:>3}  accuracy {record.accuracy:.4f}  loss {record.loss:.4f}  "
            f"{record.accepted} devices  {record.seconds:.2f} s"
        )

    with tempfile.TemporaryDirectory(prefix="skerry-sim-") as folder:
        try:
            result = run_scenario(scenario, Path(folder), on_round=show)
        except RoundFailedError as error:
            raise StepError("a simulated round", str(error)) from error
    table = Table(show_header=False)
    for what, figure in (
        ("holdout before, after", f"{result.accuracy['initial']:.1%}, {result.accuracy['final']:.1%}"),
        ("unseen data", f"{result.accuracy['unseen']:.1%}"),
        ("seconds until the first round, in all", f"{result.start_seconds:.1f}, {result.seconds:.1f}"),
    ):
        table.add_row(what, figure)
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(result.document(), indent=2))
    if report is not None:
        write_report(result, report / "index.html")
        console.print(f"report: {report / 'index.html'}")
    return result
