"""``skerry keys``: the keys that say what devices may install. Works on the data directory, not through the API.

Exit codes: 0 done, 1 something has expired or a private key is gone (``status``), 2 the command line is wrong, 3 keys
or files are missing, 5 there are keys already (``init``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from skerry_server.cli.command import group
from skerry_server.cli.output import Fields, Output, moment
from skerry_server.config import ServerLayout, TrustSettings, default_data_dir, load_config
from skerry_server.trust import service
from skerry_server.trust.service import TrustStatus

#: Exit status of ``status`` when devices refuse the metadata, or the control plane cannot sign them.
BROKEN = 1

keys = group(
    "keys",
    help=(
        "The keys that say what devices may install (The Update Framework). The root keys are the fleet owner's: keep "
        "them on disks that are plugged in only for `rotate` and `renew`. The others sign every day and lie in the "
        "data directory. `skerry up` makes all of them at its first start if `init` has not."
    ),
)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Which control plane [SKERRY_SERVER_DIR].", show_default=False)
]
Offline = Annotated[
    list[Path] | None,
    typer.Option(
        "--offline", metavar="DIR", help="Folder of root keys, on a removable disk; repeatable.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

_ROLE: Fields = {
    "role": lambda row: row["role"],
    "keys": lambda row: " ".join(key_id[:16] for key_id in row["key_ids"]),
    "must sign": lambda row: f"{row['threshold']} of {len(row['key_ids'])}",
    "private here": lambda row: row["private_keys_here"],
    "version": lambda row: row["version"] or "",
    "expires": lambda row: moment(row["expires_ms"]),
}


@keys.command("init", epilog="Example: `skerry keys init --offline /media/root-keys --threshold 2 --of 3`")
def init(
    data_dir: DataDir = None,
    offline: Offline = None,
    threshold: Annotated[int, typer.Option("--threshold", help="How many root keys must sign.")] = (
        service.ROOT_THRESHOLD
    ),
    of: Annotated[int, typer.Option("--of", help="How many root keys there are.")] = service.ROOT_KEYS,
    as_json: Json = False,
) -> None:
    """Make every key and the first signed metadata, before the first `skerry up`.

    With --offline the root keys never touch the control plane's disk; name several disks, and they are dealt out to
    them, so that no single disk or person can speak for the fleet's owner.
    """
    layout = _layout(data_dir)
    status = service.initialise(layout, _settings(layout), offline=offline or (), threshold=threshold, of=of)
    _show(status, as_json=as_json)


@keys.command("rotate", epilog="Example: `skerry keys rotate root --offline /media/root-keys`")
def rotate(
    role: Annotated[
        str,
        typer.Argument(help="root, targets, snapshot, timestamp, model-TASK, or instructions (signs what devices do)."),
    ],
    data_dir: DataDir = None,
    offline: Offline = None,
    threshold: Annotated[
        int, typer.Option("--threshold", help="With root: how many keys must sign from now on.", show_default=False)
    ] = 0,
    of: Annotated[
        int, typer.Option("--of", help="With root: how many keys there are from now on.", show_default=False)
    ] = 0,
    as_json: Json = False,
) -> None:
    """Replace the keys of a role by new ones; devices follow by themselves.

    root, targets, snapshot and timestamp need a threshold of the root keys. A control plane that runs notices within
    a second; one that does not does so when it starts. Old key files are left for you to delete.
    """
    layout = _layout(data_dir)
    status = service.rotate(layout, _settings(layout), role, offline=offline or (), threshold=threshold, of=of)
    _show(status, as_json=as_json)


@keys.command("renew", epilog="Example: `skerry keys renew --offline /media/root-keys`")
def renew(data_dir: DataDir = None, offline: Offline = None, as_json: Json = False) -> None:
    """Sign the root keys for another life, before the root expires. Every other role renews itself."""
    layout = _layout(data_dir)
    _show(service.renew_root(layout, _settings(layout), offline=offline or ()), as_json=as_json)


@keys.command("status", epilog="Example: `skerry keys status --json`")
def status(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show every role, its keys, and until when its metadata hold.

    Exit code 1: something has expired, or a private key is gone.
    """
    layout = _layout(data_dir)
    found = service.status(layout, _settings(layout))
    _show(found, as_json=as_json)
    if found.broken:
        raise typer.Exit(BROKEN)


def _layout(data_dir: Path | None) -> ServerLayout:
    return ServerLayout((data_dir or default_data_dir()).expanduser().resolve())


def _settings(layout: ServerLayout) -> TrustSettings:
    """Those of the control plane; the usual ones before its first start."""
    return load_config(layout).trust if layout.config.exists() else TrustSettings()


def _show(found: TrustStatus, *, as_json: bool) -> None:
    out = Output(as_json=as_json)
    document: dict[str, Any] = found.as_dict()
    if as_json:
        out.document(document)
        return
    out.rows(document["roles"], _ROLE, empty="no keys")
    for warning in found.warnings:
        out.say(f"! {warning}")
