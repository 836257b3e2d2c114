"""``skerry candidate``, ``skerry release``, ``skerry rollout`` and ``skerry champion``."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from skerry_server.cli.command import (
    Limit,
    Reason,
    Shell,
    StateFilter,
    TaskFilter,
    Timeout,
    Wait,
    command,
    given,
    group,
)
from skerry_server.cli.output import Document, Fields, age, moment, number, percent
from skerry_server.cli.waiting import FailedError, wait_for

candidate = group("candidate", help="Candidates: parameters that may become a release.")
release = group("release", help="Releases: signed bundles.")
rollout = group("rollout", help="Rollouts: a release on its way to a cohort.")
champion = group("champion", help="Champions: which release stood for a task, from when, why.")

CandidateId = Annotated[str, typer.Argument(metavar="CANDIDATE", help="Identifier of the candidate.")]
ReleaseId = Annotated[str, typer.Argument(metavar="RELEASE", help="Identifier of the release.")]
RolloutId = Annotated[str, typer.Argument(metavar="ROLLOUT", help="Identifier of the rollout.")]


def _failed_gates(row: Document) -> str:
    return ", ".join(gate["name"] for gate in row["gates"] if not gate["passed"])


def _int8_accuracy(row: Document) -> float | None:
    """Of the worse of the INT8 forms."""
    values = [value for name, value in row["metrics"].items() if name.startswith("accuracy_int8")]
    return min((value for value in values if value is not None), default=None)


_CANDIDATE: Fields = {
    "candidate": lambda row: row["id"],
    "task": lambda row: row["task"],
    "origin": lambda row: row["origin"],
    "state": lambda row: row["state"],
    "fp32": lambda row: percent(row["metrics"].get("accuracy")),
    "int8": lambda row: percent(_int8_accuracy(row)),
    "failed gates": _failed_gates,
    "made": lambda row: age(row["created_ms"]),
}
CANDIDATE_DETAILS: Fields = {
    **_CANDIDATE,
    "gates": lambda row: "\n".join(_gate(gate) for gate in row["gates"]),
    "metrics": lambda row: "\n".join(f"{name} {number(value)}" for name, value in sorted(row["metrics"].items())),
    "parent": lambda row: row["parent_release"],
    "campaign": lambda row: row["campaign_id"],
    "incident": lambda row: row["incident_id"],
    "bundle": lambda row: row["bundle_sha256"],
}
_RELEASE: Fields = {
    "release": lambda row: row["id"],
    "task": lambda row: row["task"],
    "number": lambda row: row["sequence"],
    "origin": lambda row: row["origin"],
    "state": lambda row: "champion" if row["champion"] else row["state"],
    "int8": lambda row: percent(_int8_accuracy(row)),
    "made": lambda row: age(row["created_ms"]),
}
_RELEASE_DETAILS: Fields = {
    **_RELEASE,
    "metrics": lambda row: "\n".join(f"{name} {number(value)}" for name, value in sorted(row["metrics"].items())),
    "candidate": lambda row: row["candidate_id"],
    "parent": lambda row: row["parent_release"],
    "bundle": lambda row: row["bundle_sha256"],
}
_ROLLOUT: Fields = {
    "rollout": lambda row: row["id"],
    "release": lambda row: row["release_id"],
    "cohort": lambda row: row["cohort_id"],
    "state": lambda row: row["state"],
    "devices": lambda row: _tally(row),
    "started": lambda row: age(row["created_ms"]),
}
_ROLLOUT_DETAILS: Fields = {
    **_ROLLOUT,
    "detail": lambda row: row["detail"],
    "canary": lambda row: f"{row['canary_percent']} %, probation {row['probation_ms'] / 1000:g} s",
    "each": lambda row: "\n".join(
        f"{each['device_id']} ({each['stage']}): {each['state']} {each['detail']}".rstrip() for each in row["devices"]
    ),
    "incident": lambda row: row["incident_id"],
    "started by": lambda row: row["created_by"],
}
_CHAMPION: Fields = {
    "from": lambda row: moment(row["at_ms"]),
    "task": lambda row: row["task"],
    "release": lambda row: row["release_id"],
    "before": lambda row: row["previous_release"],
    "reason": lambda row: row["reason"],
}


def _gate(gate: Document) -> str:
    mark = "passed" if gate["passed"] else "FAILED"
    figures = "" if gate["value"] is None else f" {number(gate['value'])}"
    limit = "" if gate["limit"] is None else f" (limit {number(gate['limit'])})"
    return f"{mark} {gate['name']}{figures}{limit} {gate['detail']}".rstrip()


def _file(entry: Document) -> str:
    return f"{entry['sha256'][:16]} {entry['size']:>10} {entry['path']}"


def _tally(row: Document) -> str:
    counts = Counter(each["state"] for each in row["devices"])
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


@command(candidate, "list", example="skerry candidate list --state passed")
def list_candidates(shell: Shell, limit: Limit = 50, task: TaskFilter = "", state: StateFilter = "") -> None:
    """List candidates, newest first."""
    rows = shell.api.items("candidates", limit=limit, **given(task=task, state=state))
    shell.out.rows(rows, _CANDIDATE, empty="no candidates; make one with `skerry train start`")


@command(candidate, "show", example="skerry candidate show candidate-77 --wait")
def show_candidate(shell: Shell, candidate_id: CandidateId, wait: Wait = False, timeout: Timeout = 900) -> None:
    """Show a candidate with its gates. With --wait they are waited for; exit code 1 when one failed."""
    document = wait_for_gates(shell, candidate_id, timeout) if wait else shell.api.get("candidates", candidate_id)
    shell.out.details(document, CANDIDATE_DETAILS)
    if wait and document["state"] == "rejected":
        raise FailedError(f"{candidate_id} did not pass: {_failed_gates(document)}")


@command(candidate, "publish", example="skerry candidate publish candidate-77 --wait")
def publish_candidate(shell: Shell, candidate_id: CandidateId, wait: Wait = False, timeout: Timeout = 900) -> None:
    """Sign a candidate as a release. With --wait its gates are waited for before."""
    if wait and wait_for_gates(shell, candidate_id, timeout)["state"] == "rejected":
        raise FailedError(f"{candidate_id} did not pass its gates; see `skerry candidate show {candidate_id}`")
    shell.out.details(shell.api.post("candidates", candidate_id, "publish"), _RELEASE_DETAILS)


@command(release, "list", example="skerry release list --task digits")
def list_releases(shell: Shell, limit: Limit = 50, task: TaskFilter = "", state: StateFilter = "") -> None:
    """List releases, newest first."""
    rows = shell.api.items("releases", limit=limit, **given(task=task, state=state))
    shell.out.rows(rows, _RELEASE, empty="no releases; publish a candidate with `skerry candidate publish`")


@command(release, "show", example="skerry release show digits-1")
def show_release(shell: Shell, release_id: ReleaseId) -> None:
    """Show a release."""
    shell.out.details(shell.api.get("releases", release_id), _RELEASE_DETAILS)


@command(release, "manifest", example="skerry release manifest digits-1 --json")
def show_manifest(shell: Shell, release_id: ReleaseId) -> None:
    """Show what was signed: files, variants, keys."""
    document = shell.api.get("releases", release_id, "manifest")
    shell.out.details(
        document,
        {
            "release": lambda row: row["release_id"],
            "bundle": lambda row: row["bundle_sha256"],
            "signed by": lambda row: ", ".join(row["signed_by"]),
            "made": lambda row: moment(row["created_ms"]),
            "installable until": lambda row: moment(row["expires_ms"]),
            "variants": lambda row: "\n".join(f"{each['name']}: {each['path']}" for each in row["variants"]),
            "files": lambda row: "\n".join(
                f"{each['sha256'][:16]} {each['size']:>10} {each['path']}" for each in row["files"]
            ),
        },
    )


@command(release, "withdraw", example="skerry release withdraw digits-1 --reason 'trained on broken labels'")
def withdraw_release(shell: Shell, release_id: ReleaseId, reason: Reason) -> None:
    """Let no rollout start with a release any more; devices that run it go on."""
    document = shell.api.post("releases", release_id, "withdraw", body={"reason": reason})
    shell.out.details(document, _RELEASE_DETAILS)


@command(rollout, "list", example="skerry rollout list")
def list_rollouts(shell: Shell, limit: Limit = 50, task: TaskFilter = "", state: StateFilter = "") -> None:
    """List rollouts, newest first."""
    rows = shell.api.items("rollouts", limit=limit, **given(task=task, state=state))
    shell.out.rows(rows, _ROLLOUT, empty="no rollouts")


@command(rollout, "show", example="skerry rollout show rollout-9a --wait")
def show_rollout(shell: Shell, rollout_id: RolloutId, wait: Wait = False, timeout: Timeout = 1800) -> None:
    """Show a rollout with the state of every device."""
    if wait:
        _finish_rollout(shell, rollout_id, timeout)
    else:
        shell.out.details(shell.api.get("rollouts", rollout_id), _ROLLOUT_DETAILS)


@command(rollout, "start", example="skerry rollout start digits-2 --cohort north --canary-percent 20 --wait")
def start_rollout(
    shell: Shell,
    release_id: ReleaseId,
    cohort: Annotated[str, typer.Option("--cohort", help="Where to, by name or identifier.")] = "all",
    canary_percent: Annotated[int, typer.Option("--canary-percent", min=1, max=100, help="Of the devices.")] = 10,
    probation: Annotated[float, typer.Option("--probation", min=0, help="Seconds on a device before it commits.")] = 30,
    wait: Wait = False,
    timeout: Timeout = 1800,
) -> None:
    """Bring a release to a cohort: canary first, then the rest; rolls back by itself when devices fail."""
    body = {
        "release_id": release_id,
        "cohort_id": cohort,
        "canary_percent": canary_percent,
        "probation_ms": round(probation * 1000),
    }
    document = shell.api.post("rollouts", body=body)
    if not wait:
        shell.out.details(document, _ROLLOUT_DETAILS)
        return
    shell.out.errors.print(f"{document['id']} started", markup=False)
    _finish_rollout(shell, document["id"], timeout)


@command(rollout, "abort", example="skerry rollout abort rollout-9a --reason 'canary too slow'")
def abort_rollout(shell: Shell, rollout_id: RolloutId, reason: Reason) -> None:
    """Stop a rollout; devices that have the release already go back."""
    document = shell.api.post("rollouts", rollout_id, "abort", body={"reason": reason})
    shell.out.details(document, _ROLLOUT_DETAILS)


@command(champion, "history", example="skerry champion history --task digits")
def champion_history(shell: Shell, limit: Limit = 100, task: TaskFilter = "") -> None:
    """Show which release was champion, newest first."""
    rows = shell.api.items("champions", limit=limit, **given(task=task))
    shell.out.rows(rows, _CHAMPION, empty="no champion yet: no rollout has finished")


def wait_for_gates(shell: Shell, candidate_id: str, timeout: float) -> Document:
    """The candidate once its gates have been judged."""
    return wait_for(
        lambda: shell.api.get("candidates", candidate_id),
        ended=lambda row: row["state"] != "built",
        describe=lambda row: f"{row['id']}: {'gates are being judged' if row['state'] == 'built' else row['state']}",
        what=f"the gates of {candidate_id}",
        timeout_s=timeout,
        out=shell.out,
    )


def _finish_rollout(shell: Shell, rollout_id: str, timeout: float) -> None:
    done = wait_for(
        lambda: shell.api.get("rollouts", rollout_id),
        ended=lambda row: bool(row["finished"]),
        describe=lambda row: f"{row['id']}: {row['state']}, {_tally(row)}",
        what=rollout_id,
        timeout_s=timeout,
        out=shell.out,
    )
    shell.out.details(done, _ROLLOUT_DETAILS)
    if not done["succeeded"]:
        raise FailedError(f"{rollout_id} is {done['state']}: {done['detail']}")
