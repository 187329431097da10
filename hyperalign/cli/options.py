"""The options that commands share, and the configuration file that can stand in for them.

No default of the library is repeated here: what is not given is left out of the call.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "BASELINE",
    "TRAINING",
    "Autocast",
    "Budget",
    "CacheDir",
    "Config",
    "Data",
    "Decoder",
    "Dim",
    "Exhaustive",
    "Json",
    "Labels",
    "License",
    "Limit",
    "MaxGflops",
    "MaxLatency",
    "Minutes",
    "NewFolder",
    "Out",
    "PairBudget",
    "PeakRate",
    "RunPath",
    "Seed",
    "Steps",
    "Strict",
    "Task",
    "Text",
    "TextBudget",
    "TrustCode",
    "Zoo",
    "Zoos",
]

_TABLES = ("train", "baseline", "baseline_both", "canonical")


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Put the words of a configuration file below those of the command line."""
    if path is None:
        return None
    from hyperalign.config import read_words

    options = {str(param.name): param for param in ctx.command.params if param.name not in {"config", "help", "resume"}}
    tables = (*_TABLES, "space") if "space" in options else _TABLES if {"steps", "curve"} & {*options} else ()
    words = read_words(path, options, tables=tables)
    ctx.meta["tables"] = {name: words.pop(name) for name in tables if name in words}
    ctx.default_map = {name: _as_typed(value, repeats=options[name].multiple) for name, value in words.items()}
    return path


def _as_typed(value: Any, *, repeats: bool) -> Any:
    """A value of a configuration file as it would be typed; options that repeat want a list."""
    if repeats:
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return ",".join(str(item) for item in value) if isinstance(value, list) else value


def _trust(ctx: typer.Context, wanted: bool) -> bool:
    """Trust what records name, until the command ends."""
    if wanted:
        from hyperalign.embed.consent import trusting

        ctx.with_resource(trusting())
    return wanted


TRAINING = "Training"
BASELINE = "Training of the baseline"

Text = str | None
Zoo = Annotated[list[str] | None, typer.Option("--zoo", help="embedded, hub, hyperclip or a .toml file; repeatable.")]
Data = Annotated[Text, typer.Option(help="scenes, a table of paths and captions, tar shards or hf:NAME.")]
Budget = Annotated[Text, typer.Option(help="Parameters of the image encoder: 30M, 30M:120M, :30M, 120M:.")]
TextBudget = Annotated[Text, typer.Option(help="Parameters of the text encoder.")]
PairBudget = Annotated[Text, typer.Option(help="Parameters of both encoders together.")]
MaxGflops = Annotated[Text, typer.Option(help="GFLOP for one picture, a multiply-add being two.")]
MaxLatency = Annotated[Text, typer.Option(help="Milliseconds for one picture, measured here.")]
Dim = Annotated[Text, typer.Option(help="Width of the image embedding: 384, or 384:768.")]
License = Annotated[Text, typer.Option(help="Licences that are allowed, with commas between.")]
Decoder = Annotated[Text, typer.Option(help="Of the hypernetwork: residual or sliced.")]
Task = Annotated[Text, typer.Option(help="What is scored: retrieval or zero-shot.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps.", rich_help_panel=TRAINING)]
PeakRate = Annotated[float | None, typer.Option(help="Peak rate.", rich_help_panel=TRAINING)]
Labels = Annotated[Text, typer.Option(help="Label set for zero-shot: a name, a folder or a tar of class/picture.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything that is drawn.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many pictures of each split.")]
Strict = Annotated[bool | None, typer.Option("--strict", help="Stop at the first picture that cannot be read.")]
Exhaustive = Annotated[
    bool | None,
    typer.Option("--exhaustive/--promote", help="Embed everything with everyone, or samples first."),
]
Autocast = Annotated[bool | None, typer.Option("--autocast", help="Embed in bfloat16.")]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config", callback=_read_config, is_eager=True, help="TOML file with the same words as these options."
    ),
]
CacheDir = Annotated[Path, typer.Option(envvar="HYPERALIGN_CACHE", help="Where embeddings are kept.")]
Out = Annotated[Path, typer.Option(envvar="HYPERALIGN_REPORTS", help="Where runs are kept.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else there.")]
Minutes = Annotated[float | None, typer.Option(min=0, help="Stop training after so many minutes, whole stages only.")]
Zoos = Annotated[list[str] | None, typer.Argument(metavar="ZOO", help="embedded, hub, hyperclip or a .toml file.")]
NewFolder = Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; it must not hold anything.")]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        callback=_trust,
        expose_value=False,
        help="Run Python code that a run or a model names and you did not; read it first.",
    ),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
