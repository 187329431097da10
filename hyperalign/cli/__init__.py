"""The command line: words in, one library call, words out.

    manners    what is said where, and what a user's mistake looks like
    options    the options that commands share, and configuration files
    examples   what stands below the help of each command
    searching  search, rerun, embed, report
    using      classify, index, retrieve, evaluate
    studying   study
    benching   bench
    adapting   adapt, specialise
    tabling    adapt --table
    filtering  filter
    exporting  export, import
    stores     zoo list|show|check|build, cache ls|verify|prune|rm

What is heavy is imported inside the command that needs it, so that help is instant.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from hyperalign.cli import adapting, benching, exporting, filtering, searching, stores, studying, using
from hyperalign.cli.examples import examples_of
from hyperalign.cli.manners import (
    Polite,
    Worded,
    print_json,
    refuse_launch,
    show_progress,
    stdout,
    warn_of_lone_launch,
)
from hyperalign.cli.options import CacheDir, Config, Json

__all__ = ["app", "main"]

_COMMANDS: dict[str, Callable[..., None]] = {
    "search": searching.search,
    "embed": searching.embed,
    "rerun": searching.rerun,
    "report": searching.report,
    "classify": using.classify,
    "evaluate": using.evaluate,
    "index": using.index,
    "retrieve": using.retrieve,
    "study": studying.study,
    "bench": benching.bench,
    "adapt": adapting.adapt,
    "specialise": adapting.specialise,
    "filter": filtering.filter_command,
    "export": exporting.export,
    "import": exporting.import_,
}

app = typer.Typer(cls=Polite, no_args_is_help=True, pretty_exceptions_enable=False, epilog=examples_of(""))
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=Worded, epilog=examples_of(_name))(_command)
app.add_typer(stores.zoo_app, name="zoo")
app.add_typer(stores.cache_app, name="cache")


def main(words: Sequence[str] | None = None) -> None:
    """Run one command. `--debug` is understood wherever it stands."""
    given = list(sys.argv[1:] if words is None else words)
    debug = ["--debug"] if "--debug" in given else []
    app(args=debug + [word for word in given if word != "--debug"], prog_name="hyperalign")


def _print_version(wanted: bool) -> None:
    if wanted:
        import hyperalign

        typer.echo(hyperalign.__version__)
        raise typer.Exit


_LAUNCHED = ("adapt", "embed", "rerun", "search")  # what several processes can do together


@app.callback()
def _root(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Find the best pair of frozen image and text encoders under a budget."""
    if ctx.invoked_subcommand not in _LAUNCHED:
        refuse_launch(str(ctx.invoked_subcommand))
    warn_of_lone_launch()


@app.command("doctor", cls=Worded, epilog=examples_of("doctor"))
def _doctor(
    config: Config = None,
    cache_dir: CacheDir = Path("cache"),
    json: Json = False,
) -> None:
    """Say what is installed, how fast this machine is, and what is wrong; status 1 if something is."""
    from hyperalign.doctor import examine
    from hyperalign.show.lists import facts_table

    with show_progress() as display:
        found = examine(cache_dir=cache_dir, say=display.say)
    if json:
        print_json(found._asdict())
    else:
        stdout().print(facts_table(found.facts))
        for problem in found.problems:
            typer.echo(f"problem: {problem}")
        typer.echo("" if found.problems else "Nothing is wrong.")
    raise typer.Exit(1 if found.problems else 0)
