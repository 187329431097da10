"""`export`: a pair of a finished run as a folder that runs by itself."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from hyperalign.cli.manners import print_json, show_progress
from hyperalign.cli.options import Config, Json, RunPath, Text, Zoo

__all__ = ["export"]


def export(  # noqa: PLR0913 – the signature is the list of options
    run: RunPath,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; it must not hold anything.")],
    pair: Annotated[
        Text, typer.Option(metavar="NAME|RANK", help="IMAGE+TEXT, or its position in the table; the first.")
    ] = None,
    method: Annotated[Text, typer.Option(help="Whose connector; that of the method that answers.")] = None,
    with_weights: Annotated[
        bool, typer.Option("--with-weights", help="Copy both encoders' weights into the folder.")
    ] = False,
    format: Annotated[
        Text, typer.Option(help="hyperalign, sentence-transformers or onnx: for which program it is.")
    ] = None,
    zoo: Zoo = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Write a pair of a finished run as a folder of its own: connector, encoders, model card.

    hyperalign export reports/RUN --to winner

    hyperalign export reports/RUN --pair 2 --to second --with-weights

    hyperalign export reports/RUN --to winner-onnx --format onnx
    """
    from hyperalign.use.export import export as write

    words = {"format": format} if format is not None else {}
    typed = shlex.join(["hyperalign", *sys.argv[1:]])
    with show_progress() as display:
        folder = write(
            run,
            to,
            pair,
            method=method,
            with_weights=with_weights,
            zoo=tuple(zoo or ()),
            command=typed if sys.argv[1:2] == ["export"] else None,
            progress=display.progress,
            **words,
        )
    if json:
        print_json({"folder": str(folder)})
    else:
        typer.echo(folder)
