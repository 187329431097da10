"""Words for the command line, read as the program reads them, and not run."""

from collections.abc import Sequence
from typing import Any

import typer

from hyperalign.cli import app

__all__ = ["parse"]


def parse(words: Sequence[str]) -> Any:
    """What a command would be given; whatever is wrong with the words is raised.

    Args:
        words: As they are typed behind the program's name.
    """
    command = typer.main.get_command(app)
    context = command.make_context("hyperalign", list(words), resilient_parsing=False)
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, list(rest), parent=context)
    assert context.command is command
    return context
