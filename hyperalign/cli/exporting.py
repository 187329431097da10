"""`export` and `import`: a pair as a folder that runs by itself, and what others have made as encoders or a pair."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from hyperalign.cli.asking import own_zoos
from hyperalign.cli.manners import print_json, show_progress
from hyperalign.cli.options import Config, Json, NewFolder, RunPath, Text, TrustCode, Zoo

__all__ = ["export", "import_"]


def export(  # noqa: PLR0913 – the signature is the list of options
    run: RunPath,
    to: NewFolder,
    pair: Annotated[
        Text, typer.Option(metavar="NAME|RANK", help="IMAGE+TEXT, or its position in the table; the first.")
    ] = None,
    method: Annotated[Text, typer.Option(help="Whose connector; the one that validates best.")] = None,
    with_weights: Annotated[
        bool, typer.Option("--with-weights", help="Copy both encoders' weights into the folder.")
    ] = False,
    format: Annotated[
        Text, typer.Option(help="hyperalign, sentence-transformers or onnx: for which program it is.")
    ] = None,
    zoo: Zoo = None,
    trust_code: TrustCode = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Write a pair of a finished run as a folder of its own: connector, encoders, model card."""
    from hyperalign.use.export import export as write

    words: dict[str, Any] = {"format": format} if format is not None else {}
    typed = shlex.join(["hyperalign", *sys.argv[1:]])
    with show_progress() as display:
        folder = write(
            run,
            to,
            pair,
            method=method,
            with_weights=with_weights,
            zoo=own_zoos(zoo),
            command=typed if sys.argv[1:2] == ["export"] else None,
            progress=display.progress,
            **words,
        )
    if json:
        print_json({"folder": str(folder)})
    else:
        typer.echo(folder)


def import_(  # noqa: PLR0913 – the signature is the list of options
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Embeddings (.npy, .pt, a folder), or a connector (.pt).")
    ],
    to: NewFolder,
    modality: Annotated[Text, typer.Option(help="What was embedded: image or text.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="Pictures and captions, row i for row i of the embeddings.")
    ] = None,
    params: Annotated[Text, typer.Option(help="Parameters of each encoder: 22M; those of a shipped zoo.")] = None,
    image: Annotated[Text, typer.Option(help="A connector's image encoder.")] = None,
    text: Annotated[Text, typer.Option(help="A connector's text encoder.")] = None,
    zoo: Zoo = None,
    config: Config = None,
) -> None:
    """Make encoders of embeddings that exist, or a pair of a connector that was trained elsewhere."""
    from hyperalign.embed.zoo import parse_count
    from hyperalign.use.importers import import_connector, import_rows

    if (image is None) != (text is None):
        raise ValueError(f"a connector joins two encoders, got {image or text} alone; give --image and --text")
    if modality not in (None, "image", "text"):
        raise ValueError(f"--modality is image or text, got {modality!r}")
    if image is not None and text is not None:
        typer.echo(import_connector(source, to, image=image, text=text, zoo=own_zoos(zoo) or ("hub",)))
        return
    with show_progress() as display:
        folder = import_rows(
            source,
            to,
            modality=cast("Literal['image', 'text'] | None", modality),
            table=data,
            n_params=None if params is None else parse_count(params),
            progress=display.progress,
        )
    typer.echo(f"{folder}: hyperalign search --zoo {folder / 'zoo.toml'} --data {folder / 'pairs.jsonl'}")
