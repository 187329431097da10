"""How commands speak: results to stdout, everything else to stderr, one sentence for a user's mistake.

Exit status: 0 done, 1 something was found wrong, 2 a user's mistake, 130 stopped by Ctrl-C.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hyperalign.processes import n_launched, rank

if TYPE_CHECKING:
    from rich.console import Console

    from hyperalign.show.progress import Display

__all__ = ["Polite", "Worded", "print_json", "refuse_launch", "say", "show_progress", "stdout", "warn_of_lone_launch"]


_LONGEST = 1000  # letters of a sentence; names and values in it may be of any length


class Polite(TyperGroup):
    """A group of commands in which a user's mistake ends with one sentence and not with a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command and turn what it raises into words and a status."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            if ctx.params.get("debug"):
                raise
            if rank():
                _say_for_itself(stop)
            say(f"stopped: {stop}." if str(stop) else "stopped.")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            _forget_stdout()
            raise typer.Exit(141) from None
        except (ValueError, KeyError, OSError, ImportError, MemoryError) as error:
            sentence = _sentence(error)
            if ctx.params.get("debug") or sentence is None:
                raise
            say(f"error: {sentence}")
            raise typer.Exit(2) from None


class Worded(TyperCommand):
    """A command that takes no empty word: a shell makes one of an unset variable, and as a path it is this folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words behind the command's name.

        Raises:
            ValueError: If one is empty.
        """
        typed, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for param in self.params:
            value = typed.get(param.name)
            if "" in (value if isinstance(value, list | tuple) else [value]):
                name = param.opts[0] if param.param_type_name == "option" else param.metavar or str(param.name).upper()
                wanted = str(getattr(param, "help", None)).rstrip(".")
                raise ValueError(f"{name} is an empty word; give it what its help says: {wanted}")
        rest: list[str] = super().parse_args(ctx, args)
        return rest


def print_json(value: object) -> None:
    """Print a value to stdout as JSON."""
    from hyperalign.record import to_json

    if rank():
        return
    typer.echo(to_json(value, indent=2))


def stdout() -> "Console":
    """Stdout as wide as the terminal, or wide enough for every column where it is a file."""
    from rich.console import Console

    console = Console(highlight=False, quiet=rank() > 0)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


def show_progress() -> "Display":
    """A display of progress on stderr, to be used as a context."""
    from hyperalign.show.progress import on_stderr

    return on_stderr(quiet=rank() > 0)


def say(message: str) -> None:
    """One line on stderr; names in it are untrusted. Of several processes the first alone speaks."""
    from hyperalign.show.words import clean

    if rank():
        return
    typer.echo(clean(message), err=True)


def refuse_launch(command: str) -> None:
    """Stop a command that several processes would only do several times.

    Raises:
        ValueError: If it was started as several processes.
    """
    if n_launched() > 1:
        raise ValueError(
            f"`{command}` is done by one process, got {n_launched()}; start it without `accelerate launch`"
        )


def warn_of_lone_launch() -> None:
    """Say what accelerate does not: without GPUs it starts one process, whatever number was asked for."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if launched and "RANK" not in os.environ:
        say(
            "accelerate has started one process only; on machines without GPUs give `accelerate launch --multi_gpu` too"
        )


def _say_for_itself(stop: KeyboardInterrupt) -> None:
    """The last words of a process that is not the first, where the launch has ended without it."""
    if str(stop):
        typer.echo(f"process {rank()} of {n_launched()} ends too: {stop}", err=True)


def _sentence(error: Exception) -> str | None:
    """What a user is told of an error; None where it is no user's mistake but our own slip."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}" if error.filename else error.strerror
    if isinstance(error, ImportError) and error.name is not None:
        return None
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    words = " ".join(text.split())
    words = words if len(words) <= _LONGEST else f"{words[: _LONGEST // 2]} … {words[-_LONGEST // 2 :]}"
    return words if " " in text else None


def _forget_stdout() -> None:
    """Whoever read our output has gone: let nothing be flushed to it when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
