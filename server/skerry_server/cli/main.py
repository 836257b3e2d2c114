"""``skerry``: puts the commands together and turns errors into one line and an exit code.

Exit codes: 0 done, 1 what was asked for failed, 2 the command line or a field is wrong, 3 the machine or the control
plane lacks something, 4 there is no such thing, 5 it is in a state in which this cannot be done, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

import click
import typer
from typer.core import TyperGroup

from skerry_server.api.access import ForbiddenError, UnauthenticatedError
from skerry_server.cli.commands import campaigns, fitness, fleet, governance, learning, releases
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError, PlatformError, SkerryError

EXIT_FAILED, EXIT_USAGE, EXIT_PLATFORM, EXIT_NOT_FOUND, EXIT_CONFLICT, EXIT_INTERRUPTED = 1, 2, 3, 4, 5, 130

#: The first family that an error belongs to decides.
_EXIT_CODES: tuple[tuple[type[SkerryError], int], ...] = (
    (NotFoundError, EXIT_NOT_FOUND),
    (ConflictError, EXIT_CONFLICT),
    (InvalidRequestError, EXIT_USAGE),
    (UnauthenticatedError, EXIT_USAGE),
    (ForbiddenError, EXIT_USAGE),
    (PlatformError, EXIT_PLATFORM),
)

#: Commands that work on a data directory: imported when they are asked for, so that the others start fast.
_HEAVY: Mapping[str, str] = {
    "up": "skerry_server.cli.up:up",
    "status": "skerry_server.cli.status:status",
    "supernode": "skerry_server.cli.supernode:supernode",
    "keys": "skerry_server.cli.keys:keys",
}


class _Commands(TyperGroup):
    """The commands of :data:`_HEAVY`, then the groups in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_HEAVY, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _HEAVY:
            return super().get_command(ctx, cmd_name)
        module, _, name = _HEAVY[cmd_name].partition(":")
        found = getattr(importlib.import_module(module), name)
        if isinstance(found, typer.Typer):
            return typer.main.get_command(found)
        alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        alone.command(cmd_name)(found)
        return typer.main.get_command(alone)


app = typer.Typer(
    cls=_Commands,
    name="skerry",
    help="Skerry: federated learning and serving for fleets of devices that keep working when the network does not.",
    epilog=(
        "`skerry up` starts a control plane; every other command talks to one. Which one: `--url` and `--token`, or "
        "SKERRY_URL and SKERRY_TOKEN, or `--data-dir` (also SKERRY_SERVER_DIR). Exit codes: 1 failed, 2 usage, "
        "3 platform, 4 not found, 5 conflict."
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _group in (
    fleet.device,
    fleet.gateway,
    fleet.cohort,
    learning.task,
    learning.train,
    learning.job,
    releases.candidate,
    releases.release,
    releases.rollout,
    fitness.fitness,
    campaigns.campaign,
    governance.incident,
    governance.policy,
    releases.champion,
    governance.audit,
    fleet.token,
):
    app.add_typer(_group)


def run(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; ends the process."""
    sys.exit(main(sys.argv[1:] if arguments is None else arguments))


def main(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit code and never raises for what the user or the machine did."""
    try:
        result = app(args=list(arguments), prog_name="skerry", standalone_mode=False)
    except SkerryError as error:
        return _tell(str(error), _exit_code(error))
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "skerry"
        return _tell(f"{error.format_message()} (see `{where} --help`)", EXIT_USAGE)
    except click.ClickException as error:
        return _tell(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _tell("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read us has gone: nobody is left to be told, not even by Python at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return result if isinstance(result, int) else 0


def _exit_code(error: SkerryError) -> int:
    return next((code for family, code in _EXIT_CODES if isinstance(error, family)), EXIT_FAILED)


def _tell(message: str, code: int) -> int:
    line = " ".join(message.split())
    visible = "".join(char if char.isprintable() else "�" for char in line)
    print(f"skerry: {visible}", file=sys.stderr)
    return code
