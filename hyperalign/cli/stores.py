"""`zoo` and `cache`: look at the encoders and at the embeddings that are kept."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperalign.cli.asking import own_zoos
from hyperalign.cli.examples import examples_of
from hyperalign.cli.manners import Worded, print_json, say, show_progress, stdout
from hyperalign.cli.options import CacheDir, Config, Json, Seed, Zoo, Zoos

if TYPE_CHECKING:
    from hyperalign.embed.zoo import EncoderSpec

__all__ = ["cache_app", "print_cache", "zoo_app"]

zoo_app = typer.Typer(
    no_args_is_help=True, help="Look at the encoders that can be searched.", epilog=examples_of("zoo")
)
cache_app = typer.Typer(no_args_is_help=True, help="Look after the embeddings on disk.", epilog=examples_of("cache"))


@zoo_app.command("list", cls=Worded, epilog=examples_of("zoo list"))
def _zoo_list(zoos: Zoos = None, config: Config = None, json: Json = False) -> None:
    """List the encoders of some zoos, the embedded one unless others are named."""
    from hyperalign.embed.zoo import load_zoos
    from hyperalign.show.lists import encoders_table

    specs = load_zoos(zoos or ["embedded"])
    if json:
        print_json([_declared(spec) for spec in specs])
    else:
        stdout().print(encoders_table(specs))


@zoo_app.command("show", cls=Worded, epilog=examples_of("zoo show"))
def _zoo_show(
    name: Annotated[str, typer.Argument(help="Name of the encoder.")],
    zoo: Zoo = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Show one encoder as a zoo file declares it; it is looked for in all shipped zoos unless one is named."""
    from hyperalign.embed.declaring import declare
    from hyperalign.embed.zoo import find_encoder, load_zoo, zoo_folder
    from hyperalign.show.words import clean

    zoos = zoo or sorted(path.stem for path in zoo_folder().glob("*.toml"))
    found = find_encoder([spec for one in zoos for spec in load_zoo(one)], name)
    if json:
        print_json(_declared(found))
        return
    for line in declare(found).splitlines():
        typer.echo(clean(line))


@zoo_app.command("check", cls=Worded, epilog=examples_of("zoo check"))
def _zoo_check(zoos: Zoos = None, config: Config = None, json: Json = False) -> None:
    """Build every encoder and hold what it is against what is declared; status 1 where they differ."""
    from hyperalign.embed.check import check_zoo, find_twins
    from hyperalign.embed.zoo import load_zoos
    from hyperalign.show.lists import checks_table

    specs = load_zoos(own_zoos(zoos) or ["embedded"])
    with show_progress() as display:
        results = check_zoo(specs, progress=display.progress)
    for twins in find_twins(specs):
        say(f"note: {' and '.join(twins)} have identical weights")
    if json:
        print_json(results)
    else:
        stdout().print(checks_table(results))
    raise typer.Exit(0 if all(result.ok for result in results) else 1)


@zoo_app.command("build", cls=Worded, epilog=examples_of("zoo build"))
def _zoo_build(
    name: Annotated[str, typer.Argument(help="The zoo that the project makes itself: embedded.")],
    to: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("zoo"),
    only: Annotated[list[str] | None, typer.Option(help="Name of an encoder to build again; repeatable.")] = None,
    seed: Seed = None,
    config: Config = None,
) -> None:
    """Train the encoders of the embedded zoo again."""
    if name != "embedded":
        raise ValueError(f"only the zoo 'embedded' is made here, got {name!r}; the weights of others are downloaded")
    from hyperalign.embed.build import build_zoo

    given: dict[str, Any] = {"only": only, "seed": seed}
    given = {key: value for key, value in given.items() if value is not None}
    with show_progress() as display:
        path = build_zoo(to, progress=display.progress, log=display.say, **given)
    typer.echo(path)


@cache_app.command("ls", cls=Worded, epilog=examples_of("cache ls"))
def _cache_ls(config: Config = None, cache_dir: CacheDir = Path("cache"), json: Json = False) -> None:
    """List what is kept, with shape, size and last use."""
    print_cache(cache_dir, json=json)


@cache_app.command("verify", cls=Worded, epilog=examples_of("cache verify"))
def _cache_verify(config: Config = None, cache_dir: CacheDir = Path("cache"), json: Json = False) -> None:
    """Read every byte; status 1 where something is damaged or unfinished."""
    from hyperalign.embed.cache import verify

    with show_progress() as display:
        faults = verify(cache_dir, progress=display.progress)
    if json:
        print_json({str(folder): problems for folder, problems in faults.items()})
    else:
        for folder, problems in faults.items():
            typer.echo(f"{folder}: {'; '.join(problems)}")
        typer.echo("" if faults else f"everything in {cache_dir} is whole")
    raise typer.Exit(1 if faults else 0)


@cache_app.command("prune", cls=Worded, epilog=examples_of("cache prune"))
def _cache_prune(
    max_bytes: Annotated[str, typer.Option("--max-bytes", "--max-size", help="What may stay, as in 10G.")],
    config: Config = None,
    cache_dir: CacheDir = Path("cache"),
) -> None:
    """Remove what was not used for longest until the rest is small enough; what a running search reads stays."""
    from hyperalign.embed.cache import find_entries, prune
    from hyperalign.embed.zoo import parse_count

    most = parse_count(max_bytes)
    for folder in prune(cache_dir, most):
        typer.echo(f"removed {folder}")
    left = sum(entry.n_bytes for entry in find_entries(cache_dir))
    if left > most:
        say(f"note: {left:,} bytes are left, more than {most:,}: other processes are writing or reading the rest")


@cache_app.command("rm", cls=Worded, epilog=examples_of("cache rm"))
def _cache_rm(
    pattern: Annotated[str, typer.Argument(help="Entries, ENCODER--DATASET--SPLIT--*, with * and ? as in a shell.")],
    config: Config = None,
    cache_dir: CacheDir = Path("cache"),
) -> None:
    """Remove the entries whose names match."""
    from hyperalign.embed.cache import remove

    for folder in remove(cache_dir, pattern):
        typer.echo(f"removed {folder}")


@cache_app.command("export", cls=Worded, epilog=examples_of("cache export"))
def _cache_export(
    entry: Annotated[str, typer.Argument(help="One entry, ENCODER--DATASET--SPLIT--*, with * and ? as in a shell.")],
    to: Annotated[Path, typer.Option(help="File to write.")],
    config: Config = None,
    cache_dir: CacheDir = Path("cache"),
) -> None:
    """Write the rows of one entry as a Faiss index of unit vectors."""
    from hyperalign.embed.cache import find_entries, open_folder
    from hyperalign.use.index import export_index

    found = [one for one in find_entries(cache_dir) if one.shape is not None and one.fits(entry)]
    if len(found) != 1:
        names = ", ".join(one.name for one in found[:5]) or "none; `hyperalign cache ls` lists them"
        raise ValueError(f"export takes one finished entry, and {entry!r} fits {len(found)}: {names}")
    n_bad = export_index(open_folder(found[0].folder).rows, to)
    if n_bad:
        say(f"note: {n_bad} rows are NaN, Inf or zeros and stand as zeros")
    typer.echo(to)


def print_cache(cache_dir: Path, *, json: bool) -> None:
    """List the entries of a cache."""
    from hyperalign.embed.cache import find_entries
    from hyperalign.show.lists import entries_table

    entries = find_entries(cache_dir)
    if json:
        print_json([entry._asdict() for entry in entries])
    else:
        stdout().print(entries_table(entries))


def _declared(spec: "EncoderSpec") -> dict[str, Any]:
    """What a zoo file says of an encoder."""
    values = {field.name: getattr(spec, field.name) for field in fields(spec) if field.name != "folder"}
    return {name: value for name, value in values.items() if value is not None and value != {}}
