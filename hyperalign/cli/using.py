"""`classify`, `index`, `retrieve` and `evaluate`: a model and pictures in, JSON lines or a table out."""

import json as plain
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperalign.cli.asking import own_words
from hyperalign.cli.manners import print_json, say, show_progress, stdout
from hyperalign.cli.options import CacheDir, Config, Json, Seed, Text

if TYPE_CHECKING:
    from hyperalign.use.update import Updated

__all__ = ["classify", "evaluate", "index", "retrieve"]

Model = Annotated[Path, typer.Argument(metavar="DIR", help="An exported pair, or a run.")]
Pair = Annotated[str | None, typer.Option(help="Of a run: IMAGE+TEXT, or its position; the first.")]
Trust = Annotated[
    bool,
    typer.Option("--trust-code", help="Run Python code that a run or a model names and you did not; read it first."),
]
StrictPictures = Annotated[bool, typer.Option("--strict", help="Stop at the first picture that cannot be read.")]
_SHOWN = 3  # broken pictures that are named before the rest is counted


def classify(  # noqa: PLR0913 – the signature is the list of options
    model: Model,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURES", help="Folders, tar shards or pictures.")],
    labels: Annotated[
        str, typer.Option(help="Names with commas between, a file with one a line, or a label set and its JSON.")
    ],
    template: Annotated[
        list[str] | None, typer.Option(help="A prompt with one gap, as in 'a photo of a {}.'; repeatable.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to say of each picture.")] = 5,
    logit_scale: Annotated[
        float | None, typer.Option(min=0.01, help="Inverse temperature of the probabilities; the model's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the lines here, going on after an interruption.")
    ] = None,
    pair: Pair = None,
    trust_code: Trust = False,
    config: Config = None,
) -> None:
    """Sort pictures into classes by their names alone; one JSON line for each picture."""
    from hyperalign.use.classes import read_classes
    from hyperalign.use.classify import LOGIT_SCALE, write_classified
    from hyperalign.use.classify import classify as sort
    from hyperalign.use.opened import open_model
    from hyperalign.use.sources import find_pictures

    classes = read_classes(labels, template or ())
    with _resumable(out is not None), show_progress() as display:
        sources = find_pictures(pictures, progress=display.progress)
        opened = open_model(model, pair, trust_code=trust_code)
        if logit_scale is None and opened.logit_scale is None:
            display.say(f"note: {opened.name} kept no logit scale; probabilities are at {LOGIT_SCALE:g}")
        how: dict[str, Any] = {"top": top, "logit_scale": logit_scale}
        if out is not None or not sys.stdout.isatty():  # else the lines themselves show how far it is
            how["progress"] = display.progress
        if out is not None:
            tally = write_classified(opened, sources, classes, out, **how)
            bad = tally.bad
            if tally.n_before:
                display.say(f"{tally.n_before:,} pictures were sorted before the interruption")
        else:
            bad = list(_print_lines(sort(opened, sources, classes, **how)))
    _say_bad(bad, len(sources))
    if out is not None:
        typer.echo(out)


def evaluate(  # noqa: PLR0913 – the signature is the list of options
    model: Annotated[Path, typer.Argument(metavar="DIR|RUN", help="An exported pair, or a run.")],
    on: Annotated[list[str], typer.Option(metavar="SET", help="A label set, or any form of --data; repeatable.")],
    split: Annotated[
        Text, typer.Option(help="train, val, test or all; test where the data names splits, else all.")
    ] = None,
    template: Annotated[list[str] | None, typer.Option(help="A prompt with one gap; repeatable.")] = None,
    metadata: Annotated[Path | None, typer.Option(help="A table of pictures, for groups.")] = None,
    group_by: Annotated[
        Text, typer.Option(help="Its columns that make groups, with commas; class is the class.")
    ] = None,
    seed: Seed = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at so many pictures at most.")] = None,
    pair: Pair = None,
    strict: StrictPictures = False,
    trust_code: Trust = False,
    config: Config = None,
    cache_dir: CacheDir = Path("cache"),
    json: Json = False,
) -> None:
    """Score a model on sets: zero-shot classification of label sets, retrieval of pictures with captions."""
    from hyperalign.show.evaluated import evaluated_table
    from hyperalign.use.evaluate import evaluate as score
    from hyperalign.use.opened import open_model, trained_on

    known, records = trained_on(model), []
    with show_progress() as display:
        opened = open_model(model, pair, trust_code=trust_code)
        for source in on:
            record = score(
                opened,
                own_words(source),
                split=split,
                templates=template or (),
                metadata=metadata,
                group_by=group_by.split(",") if group_by else (),
                strict=strict,
                seed=seed,
                known=known,
                limit=limit,
                memory=cache_dir,
                progress=display.progress,
            )
            records.append(record)
    for record in records:
        _say_bad(record["bad"], record["n_pictures"] + len(record["bad"]))
        for note in record["notes"]:
            say(f"note: {record['set']}: {note}")
    if json:
        print_json({"model": opened.name, "results": records})
    else:
        console = stdout()
        console.print(evaluated_table(opened.name, records, width=console.width))


def index(  # noqa: PLR0913 – the signature is the list of options
    model: Model,
    pictures: Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Folders, tar shards or pictures.")],
    to: Annotated[Path | None, typer.Option(metavar="INDEX", help="Folder of the index; FOLDER.index here.")] = None,
    pair: Pair = None,
    strict: StrictPictures = False,
    trust_code: Trust = False,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="Print the record of the index to stdout.")] = False,
) -> None:
    """Embed pictures so that they can be searched; again, only what is new or has changed."""
    from hyperalign.use.opened import made_by, open_model
    from hyperalign.use.update import update_gallery

    folder = to or Path(f"{pictures[0].resolve().name}.index")
    with _resumable(True), show_progress() as display:
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
    words: Annotated[list[str] | None, typer.Argument(metavar="WORDS", help="What to look for; in quotes.")] = None,
    picture: Annotated[list[Path] | None, typer.Option(help="Look for pictures like this one; repeatable.")] = None,
    queries: Annotated[Path | None, typer.Option(help="A file with one caption a line; - is standard input.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many pictures for each query.")] = 10,
    model: Annotated[Path | None, typer.Option(help="Where the model lies now, if it was moved.")] = None,
    pair: Pair = None,
    trust_code: Trust = False,
    config: Config = None,
) -> None:
    """Find pictures by words or by a picture; one JSON line for each."""
    from hyperalign.embed.samples import cut_short
    from hyperalign.use.gallery import open_gallery
    from hyperalign.use.opened import open_again, open_model
    from hyperalign.use.retrieve import retrieve as find

    gallery = open_gallery(index)
    captions = [*(words or []), *(_lines(queries) if queries else [])]
    for path in filter(_is_path, words or []):
        say(f"note: {cut_short(path)!r} is looked up as words; --picture looks for what is like a picture")
    opened = (
        open_again(gallery.about["made_by"], trust_code=trust_code)
        if model is None
        else open_model(model, pair, trust_code=trust_code)
    )
    found = list(find(gallery, opened, captions=captions, pictures=picture or [], k=k))
    for record in found:
        typer.echo(plain.dumps(record))
    for caption in sorted(set(captions) - {record["query"] for record in found}):
        say(f"note: {opened.text_name} knows no word of {cut_short(caption)!r}; nothing is found for it")


def _is_path(words: str) -> bool:
    """Whether words name a file, or would name a picture."""
    from hyperalign.embed.pictures import PICTURE_SUFFIXES

    if words.strip().lower().endswith(PICTURE_SUFFIXES):
        return True
    with suppress(OSError):  # more letters than a path may have
        return Path(words).is_file()
    return False


@contextmanager
def _resumable(keeps: bool) -> Iterator[None]:
    """Say, where what is finished is kept, that an interrupted command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped; what is finished is kept, and the same command goes on from there" if keeps else "stopped.")
        raise typer.Exit(130) from None


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


def _print_lines(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """One JSON object a line, in ASCII: names of files are untrusted, and may be no text at all; gives the broken."""
    for record in records:
        typer.echo(plain.dumps(record))
        if "error" in record:
            yield " ".join(filter(None, (record["path"], record.get("member")))), record["error"]


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty; `-` is standard input."""
    text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    return [line.strip() for line in text.splitlines() if line.strip()]
