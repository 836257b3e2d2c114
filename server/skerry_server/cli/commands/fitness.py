"""``skerry fitness``: which form of a release is fastest on which devices."""

from __future__ import annotations

from typing import Annotated

import typer

from skerry_server.cli.command import Limit, Shell, command, given, group
from skerry_server.cli.output import Document, Fields, age

fitness = group("fitness", help="Fitness: which form of a release is fastest on which devices.")

TaskFilter = Annotated[str, typer.Option("--task", help="Only of this task.")]
ReleaseFilter = Annotated[str, typer.Option("--release", help="Only of this release.")]
DeviceFilter = Annotated[str, typer.Option("--device", help="Only of this device.")]

_CERTIFICATE: Fields = {
    "device": lambda row: row["device_id"],
    "release": lambda row: row["release_id"],
    "processor": lambda row: _processor(row),
    "serves": lambda row: "; ".join(_form(form) for form in row["forms"] if form["chosen"]),
    "fp32": lambda row: _reference(row),
    "forms": lambda row: f"{sum(form['correct'] for form in row['forms'])} of {len(row['forms'])} correct",
    "measured": lambda row: age(row["measured_ms"]),
}
_LESSON: Fields = {
    "release": lambda row: row["release_id"],
    "kind": lambda row: row["profile_sha256"][:12],
    "processor": lambda row: _processor(row),
    "rung": lambda row: row["rung"],
    "form": lambda row: row["variant"],
    "p50 us": lambda row: f"{row['p50_us']:.0f}",
    "fp32 us": lambda row: f"{row['reference_p50_us']:.0f}" if row["reference_p50_us"] else "",
    "devices": lambda row: f"{row['devices']}, {row['share']:.0%} chose it",
    "downloads": lambda row: "this form only" if row["recommended"] else f"every form: {row['why']}",
}


def _processor(row: Document) -> str:
    profile = row["profile"]
    others = ", ".join(profile["accelerators"])
    return f"{profile['cores']} x {profile['cpu'] or profile['device_class']}{' + ' + others if others else ''}"


def _form(form: Document) -> str:
    return f"{form['variant']} on {form['backend']}, {form['p50_us']:.0f}/{form['p99_us']:.0f} us"


def _reference(row: Document) -> str:
    measured = [form["p50_us"] for form in row["forms"] if form["variant"] == "fp32" and form["p50_us"] > 0]
    return f"{min(measured):.0f} us" if measured else ""


@command(fitness, "list", example="skerry fitness list --task digits")
def list_fitness(
    shell: Shell,
    task: TaskFilter = "",
    release: ReleaseFilter = "",
    device: DeviceFilter = "",
    limit: Limit = 100,
) -> None:
    """List what each device measured, newest first."""
    rows = shell.api.items("fitness", limit=limit, **given(task=task, release=release, device=device))
    shell.out.rows(rows, _CERTIFICATE, empty="no device has reported a fitness certificate")


@command(fitness, "lessons", example="skerry fitness lessons --release digits-7")
def list_lessons(shell: Shell, task: TaskFilter = "", release: ReleaseFilter = "") -> None:
    """List what kinds of devices taught: the form that the next device of its kind downloads."""
    rows = shell.api.get("fitness", "lessons", **given(task=task, release=release))["items"]
    shell.out.rows(rows, _LESSON, empty="nothing was learned yet")
