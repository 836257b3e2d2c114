"""How a command line of ours ends: an exit status, and one line for an error that is expected."""

from __future__ import annotations

import typer
from click import ClickException

from skerry_agent.errors import AgentError, InputError


def run_command(app: typer.Typer, program: str, arguments: list[str] | None) -> int:
    """Run one command.

    Args:
        app: The commands.
        program: Stands before an error.
        arguments: Those of the process by default.

    Returns:
        0 done, 2 wrong arguments or a refused request, 3 this machine or the network cannot do it, 130 interrupted, or
        what the command itself ends with.
    """
    try:
        result = app(args=arguments, standalone_mode=False)
    except ClickException as error:
        error.show()
        return error.exit_code
    except AgentError as error:
        typer.echo(f"{program}: {error}", err=True)
        return 2 if isinstance(error, InputError) else 3
    except (typer.Abort, KeyboardInterrupt):
        typer.echo(f"{program}: interrupted", err=True)
        return 130
    return result if isinstance(result, int) else 0
