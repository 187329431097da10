"""`classify`, `index`, `retrieve` and `evaluate`: a model and pictures in, JSON lines or a table out."""

import json as plain
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperalign.cli.manners import say, show_progress
from hyperalign.cli.options import Config

if TYPE_CHECKING:
    from hyperalign.use.update import Updated

__all__ = ["index", "retrieve"]

Model = Annotated[Path, typer.Argument(metavar="DIR", help="An exported pair, or a run.")]
Pair = Annotated[str | None, typer.Option(help="Of a run: IMAGE+TEXT, or its position; the first.")]
Trust = Annotated[bool, typer.Option("--trust-code", help="Run the Python code that an exported encoder is built by.")]
StrictPictures = Annotated[bool, typer.Option("--strict", help="Stop at the first picture that cannot be read.")]
_SHOWN = 3  # broken pictures that are named before the rest is counted


def index(  # noqa: PLR0913 – the signature is the list of options
    model: Model,
    pictures: Annotated[list[Path], typer.Argument(metavar="FOLDER…", help="Folders, tar shards or pictures.")],
    to: Annotated[Path | None, typer.Option(metavar="INDEX", help="Folder of the index; FOLDER.index here.")] = None,
    pair: Pair = None,
    strict: StrictPictures = False,
    trust_code: Trust = False,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="Print the record of the index to stdout.")] = False,
) -> None:
    """Embed pictures so that they can be searched; again, only what is new or has changed.

    hyperalign index model photos/ --to photos.index
    """
    from hyperalign.use.opened import made_by, open_model
    from hyperalign.use.update import update_gallery

    folder = to or Path(f"{pictures[0].resolve().name}.index")
    with show_progress() as display:
        made = update_gallery(
            open_model(model, pair, trust_code=trust_code),
            pictures,
            folder,
            made_by=made_by(model, pair),
            strict=strict,
            progress=display.progress,
        )
    _say_updated(made, folder)
    if json:
        typer.echo(plain.dumps({"index": str(folder), "n_new": made.n_new, "n_gone": made.n_gone, **made.manifest}))
    else:
        typer.echo(folder)


def retrieve(  # noqa: PLR0913 – the signature is the list of options
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="What `hyperalign index` made.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="WORDS…", help="What to look for; in quotes.")] = None,
    picture: Annotated[list[Path] | None, typer.Option(help="Look for pictures like this one; repeatable.")] = None,
    queries: Annotated[Path | None, typer.Option(help="A file with one caption a line; - is standard input.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many pictures for each query.")] = 10,
    model: Annotated[Path | None, typer.Option(help="Where the model lies now, if it was moved.")] = None,
    pair: Pair = None,
    trust_code: Trust = False,
    config: Config = None,
) -> None:
    """Find pictures by words or by a picture; one JSON line for each.

    hyperalign retrieve photos.index "a dog in the snow" -k 5
    """
    from hyperalign.use.gallery import open_gallery
    from hyperalign.use.opened import open_again, open_model
    from hyperalign.use.retrieve import retrieve as find

    gallery = open_gallery(index)
    captions = [*(words or []), *(_lines(queries) if queries else [])]
    opened = (
        open_again(gallery.about["made_by"], trust_code=trust_code)
        if model is None
        else open_model(model, pair, trust_code=trust_code)
    )
    found = list(find(gallery, opened, captions=captions, pictures=picture or [], k=k))
    _print_lines(found)
    for caption in sorted(set(captions) - {record["query"] for record in found}):
        say(f"note: {opened.text_name} knows no word of {caption!r}; nothing is found for it")


def _say_updated(made: "Updated", folder: Path) -> None:
    """What was done, and how well a search finds."""
    quality = made.manifest["quality"]
    _say_bad(made.bad, made.n_pictures + len(made.bad))
    gone = f", {made.n_gone:,} gone or changed" if made.n_gone else ""
    say(f"{folder}: {made.n_pictures:,} pictures, {made.n_new:,} embedded now{gone}")
    recalls = ", ".join(
        f"{share:.3f} for {quality['n_queries'][kind]} {kind}" for kind, share in quality["recall"].items()
    )
    say(
        f"{made.manifest['kind']} index: recall@10 against looking at every row {recalls}; "
        f"{1000 * quality['query_seconds']:.2g} ms a query"
    )
    if not quality["enough"]:
        say("note: the recall is less than it should be; every search still looks as far as this index can")


def _say_bad(bad: Iterable[tuple[str, str]], n_pictures: int) -> None:
    """Pictures that could not be decoded: how many, and the first by name."""
    found = list(bad)
    if found:
        say(f"note: {len(found):,} of {n_pictures:,} pictures cannot be read and are left out:")
    for name, reason in found[:_SHOWN]:
        say(f"  {name}: {reason}")
    if len(found) > _SHOWN:
        say(f"  and {len(found) - _SHOWN:,} more")


def _print_lines(records: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, in ASCII: names of files are untrusted, and may be no text at all."""
    for record in records:
        typer.echo(plain.dumps(record))


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty; `-` is standard input."""
    text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    return [line.strip() for line in text.splitlines() if line.strip()]
