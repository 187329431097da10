"""`bench`: one measurement taken, printed and kept as JSON."""

import re
from pathlib import Path
from typing import Annotated

import typer

from hyperalign.cli.asking import configured
from hyperalign.cli.manners import print_json, say, show_progress, stdout
from hyperalign.cli.options import CacheDir, Config, Data, Json, Limit, Out, Seed, Text, Zoo

__all__ = ["bench"]

_WHAT = "What to measure; without any of these, this machine"
_FLAGS = (
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
)


def bench(  # noqa: PLR0913 – the signature is the list of options
    ctx: typer.Context,
    grid: Annotated[
        Text, typer.Option(metavar="NxM", help="A synthetic grid with planted truth: 300x30.", rich_help_panel=_WHAT)
    ] = None,
    poster: Annotated[
        bool, typer.Option("--poster", help="Best score against FLOPs for growing zoos.", rich_help_panel=_WHAT)
    ] = False,
    curve: Annotated[
        bool, typer.Option("--curve", help="Score against FLOPs, every method.", rich_help_panel=_WHAT)
    ] = False,
    coordinates: Annotated[
        bool, typer.Option("--coordinates", help="Wider coordinates or longer training.", rich_help_panel=_WHAT)
    ] = False,
    finalists: Annotated[
        bool, typer.Option("--finalists", help="Choosing among polished pairs.", rich_help_panel=_WHAT)
    ] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Batch and epochs of the baseline.", rich_help_panel=_WHAT)
    ] = False,
    collapse: Annotated[
        bool, typer.Option("--collapse", help="Thirty trainings that ought to go wrong.", rich_help_panel=_WHAT)
    ] = False,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="How often intervals hold the truth.", rich_help_panel=_WHAT)
    ] = False,
    adoption: Annotated[
        bool, typer.Option("--adoption", help="Each encoder left out and adopted.", rich_help_panel=_WHAT)
    ] = False,
    promotion: Annotated[
        bool, typer.Option("--promotion", help="Samples embedded first, against all.", rich_help_panel=_WHAT)
    ] = False,
    index: Annotated[
        bool, typer.Option("--index", help="Indexes of 100,000 pictures, on one core.", rich_help_panel=_WHAT)
    ] = False,
    proposals: Annotated[
        bool, typer.Option("--proposals", help="A study over pairs, against promotion.", rich_help_panel=_WHAT)
    ] = False,
    scale: Annotated[
        Text,
        typer.Option(
            metavar="N", help="Compute what so many pictures cost, 10M; --grid 30x9 of --zoo.", rich_help_panel=_WHAT
        ),
    ] = None,
    hyperclip: Annotated[
        bool, typer.Option("--hyperclip", help="HyperCLIP on held-out class sets.", rich_help_panel=_WHAT)
    ] = False,
    overhead: Annotated[
        bool, typer.Option("--overhead", help="The hypernetwork's cost in training, timed.", rich_help_panel=_WHAT)
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    zoo: Zoo = None,
    data: Data = None,
    seed: Seed = None,
    limit: Limit = None,
    config: Config = None,
    cache_dir: CacheDir = Path("cache"),
    out: Out = Path("reports"),
    json: Json = False,
) -> None:
    """Measure a claim again, print it, and keep it in OUT/bench-NAME.json."""
    from hyperalign.bench.measures import take
    from hyperalign.bench.sheet import Asked
    from hyperalign.embed.zoo import parse_count
    from hyperalign.record import to_json
    from hyperalign.run import write_whole
    from hyperalign.show.benched import benched_table
    from hyperalign.show.drawn import DRAWN, draw

    wanted = [name for name in _FLAGS if ctx.params[name]] + (["scale"] if scale else ["grid"] if grid else [])
    if len(wanted) > 1:
        raise ValueError(f"measure one thing at a time, got --{' --'.join(wanted)}")
    name = wanted[0] if wanted else "speed"
    with show_progress() as display:
        asked = Asked(
            config=configured(ctx),
            cache_dir=cache_dir,
            out=out,
            n_seeds=seeds,
            shape=_shape(grid) if grid else None,
            n_items=parse_count(scale) if scale else None,
            progress=display.progress,
            say=display.say,
        )
        record = take(name, asked)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"bench-{'-'.join(word for word in (name, scale, grid) if word)}.json"
    write_whole(path, (to_json(record, indent=2) + "\n").encode())
    if name in DRAWN:
        draw(record, path.with_suffix(".svg"))
        say(f"drawn in {path.with_suffix('.svg')}")
    if json:
        print_json(record)
    else:
        console = stdout()
        console.print(benched_table(record, width=console.width))
        say(f"kept in {path}")


def _shape(words: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})x(\d{1,4})", words)
    if not found or "0" in (found[1], found[2]):
        raise ValueError(f"--grid takes image encoders by text encoders, such as 300x30, got {words!r}")
    return int(found[1]), int(found[2])
