"""`study`: Optuna over the settings of a training, or over pairs."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperalign.cli.asking import NOT_CONFIG, configured, given, own_words, refuse_beside
from hyperalign.cli.manners import print_json, say, show_progress, stdout
from hyperalign.cli.options import (
    Autocast,
    Budget,
    CacheDir,
    Config,
    Data,
    Decoder,
    Dim,
    Json,
    Labels,
    License,
    Limit,
    MaxGflops,
    MaxLatency,
    Out,
    PairBudget,
    Seed,
    Strict,
    Task,
    Text,
    TextBudget,
    TrustCode,
    Zoo,
)

if TYPE_CHECKING:
    from hyperalign.request import SearchConfig
    from hyperalign.study.asked import StudyConfig

__all__ = ["parse_seconds", "study"]

_ENDS = ("trials", "patience", "target")
_WHEN = "When it ends"
_WHERE = "Where it is kept"


def study(  # noqa: PLR0913 – the signature is the list of options
    ctx: typer.Context,
    over: Annotated[Text, typer.Option(help="What varies: training, or pairs of encoders.")] = None,
    objective: Annotated[Text, typer.Option(help="score, or score,flops for a Pareto front.")] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=SPACE", help="learning_rate=1e-4:1e-1:log or batch_size=128,256; repeatable."),
    ] = None,
    sampler: Annotated[Text, typer.Option(help="Who proposes: tpe, gp, random, nsga2.")] = None,
    pruner: Annotated[Text, typer.Option(help="Who ends trials early: median, hyperband, none.")] = None,
    looks: Annotated[int | None, typer.Option(help="Looks at validation of a training that can be ended.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of one setting, their scores averaged.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all.", rich_help_panel=_WHEN)] = None,
    timeout: Annotated[Text, typer.Option(help="No trial begins after 90s, 30m or 2h.", rich_help_panel=_WHEN)] = None,
    patience: Annotated[int | None, typer.Option(help="Trials without a better one.", rich_help_panel=_WHEN)] = None,
    target: Annotated[float | None, typer.Option(help="Score in per cent.", rich_help_panel=_WHEN)] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at once, each a process.")] = 1,
    storage: Annotated[
        Text,
        typer.Option(
            envvar="HYPERALIGN_STORAGE",
            help="sqlite or journal inside the run folder, a .db or .journal file, or the URL of a database.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    name: Annotated[
        Text, typer.Option(help="Of the study in its storage; several machines join one.", rich_help_panel=_WHERE)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a study.", rich_help_panel=_WHERE)
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Study the settings of a search, in its folder.", rich_help_panel=_WHERE),
    ] = None,
    warm_start: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Try the best trials of another study first.")
    ] = None,
    best: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Print the command that repeats a study's best trial.")
    ] = None,
    zoo: Zoo = None,
    data: Data = None,
    budget: Budget = None,
    text_budget: TextBudget = None,
    pair_budget: PairBudget = None,
    max_gflops: MaxGflops = None,
    max_latency: MaxLatency = None,
    dim: Dim = None,
    license: License = None,
    method: Annotated[Text, typer.Option(help="What is trained: hypernet, ape; over pairs closed-form too.")] = None,
    decoder: Decoder = None,
    sides: Annotated[Text, typer.Option(help="Sides that ape trains: text or both.")] = None,
    task: Task = None,
    labels: Labels = None,
    seed: Seed = None,
    limit: Limit = None,
    strict: Strict = None,
    autocast: Autocast = None,
    config: Config = None,
    cache_dir: CacheDir = Path("cache"),
    out: Out = Path("reports"),
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Tune the training, or search pairs where the grid is too large to embed; every choice is made on validation."""
    from hyperalign.study.conduct import Place, begin, go_on

    if best is not None:
        _print_best(best, storage, json=json)
        return
    with _resumable(out, resume), show_progress() as display:
        place = Place(
            cache_dir=cache_dir,
            out=out,
            storage=storage,
            name=name,
            jobs=jobs,
            timeout=None if timeout is None else parse_seconds(timeout),
            progress=display.progress,
            say=display.say,
        )
        if resume is not None:
            folder = go_on(resume, place, _ends_alone(ctx), data=None if data is None else own_words(data))
        else:
            wanted = configured(ctx) if run is None else _of_run(ctx, run)
            folder = begin(wanted, _asked(ctx, space), place, folder=run, warm=warm_start)
    _print_study(folder, json=json)


def parse_seconds(words: str) -> float:
    """Read `90`, `90s`, `30m` or `2h` as seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", words.strip())
    if not found:
        raise ValueError(f"--timeout takes seconds, or a time such as 90s, 30m or 2h, got {words!r}")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _asked(ctx: typer.Context, space: list[str] | None) -> "StudyConfig":
    """What the study is asked for; a space that is typed goes above that of the configuration file."""
    from hyperalign.config import build
    from hyperalign.study.asked import StudyConfig

    typed = given(ctx)
    names = ("over", "trials", "sampler", "pruner", "looks", "seeds", "patience", "target")
    record: dict[str, Any] = {name: typed[name] for name in names if name in typed}
    if "objective" in typed:
        record["objectives"] = tuple(word.strip() for word in typed["objective"].split(","))
    record["space"] = {**ctx.meta.get("tables", {}).pop("space", {}), **_pairs(space or [])}
    return build(StudyConfig, record)


def _pairs(words: list[str]) -> Mapping[str, str]:
    for word in words:
        if "=" not in word:
            raise ValueError(f"--space takes FIELD=SPACE such as learning_rate=1e-4:1e-1:log, got {word!r}")
    return {name.strip(): value.strip() for name, _, value in (word.partition("=") for word in words)}


def _ends_alone(ctx: typer.Context) -> dict[str, Any]:
    """When a resumed study ends; everything else is kept."""
    how = {"resume", "timeout", "jobs", "storage", "cache_dir", "out", "json", "config", "data", *_ENDS}
    refuse_beside(ctx, how, "a resumed study keeps what it was asked for", "leave out --resume to begin anew")
    return {name: value for name, value in given(ctx).items() if name in _ENDS}


def _of_run(ctx: typer.Context, run: Path) -> "SearchConfig":
    """The configuration of a finished search."""
    from hyperalign.cli.asking import from_record
    from hyperalign.run import load_run

    refuse_beside(ctx, NOT_CONFIG, "a study of a run has that run's configuration", "leave out --run")
    return from_record(load_run(run).result["configuration"])


def _print_best(folder: Path, storage: str | None, *, json: bool) -> None:
    from hyperalign.study.conduct import best_commands

    found = best_commands(folder, storage)
    if json:
        print_json([{"trial": words, "command": command} for words, command in found])
        return
    for words, command in found:
        say(words)
        typer.echo(command)


def _print_study(folder: Path, *, json: bool) -> None:
    from hyperalign.show.studied import studied_table
    from hyperalign.study.conduct import hint
    from hyperalign.study.kept import read_study

    record, page = read_study(folder), _draw(folder)
    if json:
        print_json(record)
        return
    console = stdout()
    console.print(studied_table(record, width=console.width))
    say(f"the study is in {folder}, its page is {page}")
    say(f"`hyperalign study --best {folder}` prints what repeats its best trial")
    say(f"`{hint(folder)}` shows it in a browser (pip install 'hyperalign[dashboard]')")


def _draw(folder: Path) -> Path:
    """Draw a study's page, or that of the run it was begun for."""
    if not (folder / "result.json").is_file():
        from hyperalign.show.study_page import write_study_page

        return write_study_page(folder)
    from hyperalign.run import load_run
    from hyperalign.show.page import write_page

    return write_page(load_run(folder))


@contextmanager
def _resumable(out: Path, resume: Path | None) -> Iterator[None]:
    """Say how to go on with a study that is stopped in the middle."""
    try:
        yield
    except KeyboardInterrupt:
        from hyperalign.study.conduct import find_study

        folder = resume or find_study(out, pid=os.getpid())
        if folder is None:
            say("stopped; what is embedded stays in the cache, and the same command goes on from there")
        else:
            say(f"stopped; finished trials are kept, go on with `hyperalign study --resume {folder}`")
        raise typer.Exit(130) from None
