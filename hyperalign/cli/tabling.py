"""`adapt --table`: what was typed becomes the paper's four tables."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import typer

from hyperalign.cli.asking import given, refuse_beside
from hyperalign.cli.manners import print_json, say, show_progress, stdout

__all__ = ["TABLE_OPTIONS", "print_tables", "recorded"]

TABLE_OPTIONS: Final = ("only", "seeds", "batch_sizes", "train_share", "overhead_batch")

_HOW = ("cache_dir", "out", "config", "resume", "json", "table")


def print_tables(ctx: typer.Context, configured: Callable[[typer.Context], Any], *, table: bool, json: bool) -> None:
    """Make the tables, or go on with some, and print them.

    Args:
        ctx: With all options of `adapt`.
        configured: Reads an adaptation's configuration out of it.
        table: Whether `--table` was given; the options of tables mean nothing without it.
        json: Print JSON alone.
    """
    from hyperalign.hyperclip.paper import TablesConfig, make_tables, read_tables
    from hyperalign.show.papered import papered_tables

    words = given(ctx)
    if not table:
        option = next(name for name in TABLE_OPTIONS if name in words).replace("_", "-")
        raise ValueError(f"--{option} belongs to the paper's tables; give --table too")
    resume = words.get("resume")
    wanted = _asked(ctx, configured) if resume is None else recorded(ctx, resume, read_tables, TablesConfig)
    with show_progress() as display:
        folder = make_tables(
            wanted,
            cache_dir=words["cache_dir"],
            out=words["out"],
            resume=resume,
            progress=display.progress,
            say=display.say,
        )
    record = read_tables(folder)
    if json:
        print_json({"folder": str(folder), **record})
    else:
        console = stdout()
        console.print(papered_tables(record["sheets"], width=console.width))
        say(f"kept in {folder}, the norms over training beside")


def _asked(ctx: typer.Context, configured: Callable[[typer.Context], Any]) -> Any:
    """What the tables are made of."""
    from hyperalign.hyperclip.architectures import NAMES
    from hyperalign.hyperclip.paper import TablesConfig

    words, base = given(ctx), configured(ctx)
    archs: tuple[str, ...] = ()
    if base.arch is not None:
        archs = NAMES if base.arch == "all" else tuple(word.strip() for word in base.arch.split(",") if word.strip())
        if not archs:
            raise ValueError(f"--arch names architectures with commas between, or all; got {base.arch!r}")
        base = replace(base, arch=archs[0])
    changes: dict[str, Any] = {}
    if "only" in words:
        changes["sheets"] = tuple(word.strip() for word in words["only"].split(","))
    if "batch_sizes" in words:
        changes["batch_sizes"] = _numbers(words["batch_sizes"])
    for option, name in (("seeds", "n_seeds"), ("train_share", "train_share"), ("overhead_batch", "overhead_batch")):
        if option in words:
            changes[name] = words[option]
    return TablesConfig(base=base, archs=archs, **changes)


def _numbers(words: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words.split(","))
    except ValueError:
        raise ValueError(
            f"--batch-sizes takes whole numbers with commas between, such as 64,128, got {words!r}"
        ) from None


def recorded(ctx: typer.Context, folder: Path, read: Callable[[Path], Any], configuration: type[Any]) -> Any:
    """What was asked for when that was begun which is gone on with now.

    Args:
        ctx: With all options of `adapt`.
        folder: Of what was begun.
        read: Reads its record.
        configuration: What it is the configuration of.
    """
    from hyperalign.config import build

    anew = "leave out --resume to start anew"
    refuse_beside(ctx, _HOW, "what is resumed keeps its own configuration", anew)
    record = read(folder)
    if record["status"] == "finished":
        raise ValueError(f"{folder} is finished, there is nothing to go on with; {anew}")
    return build(configuration, record["configuration"])
