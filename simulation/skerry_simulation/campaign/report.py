"""The HTML report of a simulation."""

from __future__ import annotations

from pathlib import Path

from skerry_simulation import page
from skerry_simulation.campaign.run import SimulationResult


def write_report(result: SimulationResult, target: Path) -> None:
    """Write the page."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render(result))


def render(result: SimulationResult) -> str:
    """The page as text."""
    scenario = result.scenario
    numbers = [row["number"] for row in result.rounds]
    drawings = []
    for title, key, label in (
        ("Accuracy on the server's holdout", "accuracy", "accuracy"),
        ("Training loss on the devices", "loss", "cross entropy, nats"),
        ("Time of each round", "seconds", "seconds"),
    ):
        figure, plane = page.axes()
        plane.plot(numbers, [row[key] for row in result.rounds], marker="o", color="#0b6e99")
        plane.set(title=title, xlabel="round", ylabel=label)
        drawings.append(page.svg(figure))
    settings = [("task", scenario.task), ("seed", scenario.seed), ("engine", scenario.engine.name)]
    settings += [("clients", scenario.population.clients), *scenario.campaign.items()]
    rounds = [
        (
            f"{r['number']:.0f}",
            f"{r['accepted']:.0f}",
            f"{r['accuracy']:.4f}",
            f"{r['loss']:.4f}",
            f"{r['seconds']:.3f}",
        )
        for r in result.rounds
    ]
    body = "\n".join(
        [
            page.cards(
                [
                    ("holdout, before", f"{result.accuracy['initial']:.1%}"),
                    ("holdout, after", f"{result.accuracy['final']:.1%}"),
                    ("unseen data, after", f"{result.accuracy['unseen']:.1%}"),
                    ("until the first round", f"{result.start_seconds:.1f} s"),
                ]
            ),
            "<h2>Rounds</h2>",
            page.plots(drawings),
            page.table(("round", "devices", "accuracy", "loss", "s"), rounds),
            "<h2>Scenario</h2>",
            page.table(("setting", "value"), settings),
        ]
    )
    lead = f"{len(result.rounds)} rounds with {scenario.population.clients} clients in {result.seconds:.1f} seconds."
    return page.document(f"{scenario.task}, {scenario.engine.name} engine", lead, body)
