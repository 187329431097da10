"""What was typed becomes a configuration: options, the file below them, and the records of earlier runs."""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from hyperalign.config import place_words

if TYPE_CHECKING:
    from hyperalign.request import SearchConfig

__all__ = ["NOT_CONFIG", "configured", "from_record", "given", "own_words", "own_zoos", "refuse_beside"]

NOT_CONFIG = {  # options that say how, not what
    *("cache_dir", "out", "config", "resume", "add", "run", "json", "dry_run", "seeds", "grid"),
    *("over", "trials", "objective", "sampler", "pruner", "looks", "space", "patience", "target", "timeout", "jobs"),
    *("storage", "name", "best", "warm_start"),
    *(
        "poster",
        "curve",
        "coordinates",
        "finalists",
        "sweep",
        "collapse",
        "intervals",
        "adoption",
        "promotion",
        "index",
        "proposals",
        "hyperclip",
        "overhead",
        "scale",
    ),
}


def configured(ctx: typer.Context) -> "SearchConfig":
    """What the command line and the configuration file ask for; the rest is left to the defaults."""
    words = {name: value for name, value in given(ctx).items() if name not in NOT_CONFIG}
    placed = place_words({**ctx.meta.get("tables", {}), **words})
    if "data" in placed:
        placed = {**placed, "data": own_words(placed["data"])}
    zoos: dict[str, Any] = {name: own_zoos(placed[name]) for name in ("zoo", "ceiling") if name in placed}
    return from_record({**placed, **zoos})


def own_words(source: Any) -> Any:
    """A word as its user wrote it here, which may name a command, an address or code."""
    from hyperalign.embed.consent import Written

    return Written(source) if isinstance(source, str) else source


def own_zoos(names: Iterable[str] | None) -> tuple[str, ...]:
    """Zoos as their user named them here, whose factories may be run."""
    return tuple(map(own_words, names or ()))


def given(ctx: typer.Context) -> dict[str, Any]:
    """Every option that has a value; one that may be repeated and never was has none."""
    return {name: value for name, value in ctx.params.items() if value is not None and value not in ([], ())}


def refuse_beside(ctx: typer.Context, allowed: Collection[str], rule: str, advice: str) -> None:
    """Refuse options that mean nothing beside those that are allowed.

    Args:
        ctx: With all options of a command.
        allowed: Names of those that may be given.
        rule: Why others may not, the first half of the sentence.
        advice: What to do, its end.
    """
    other = [name for name in given(ctx) if name not in allowed]
    if other:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        raise ValueError(f"{rule}, got {words}; {advice}")


def from_record(record: Mapping[str, Any]) -> "SearchConfig":
    """The configuration of a record; what is heavy is imported here."""
    from hyperalign.request import from_record

    return from_record(record)
