"""`search`, `rerun`, `embed` and `report`: a configuration in, a run on disk and its table out."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperalign.cli.asking import NOT_CONFIG, configured, from_record, given, own_words, own_zoos, refuse_beside
from hyperalign.cli.manners import print_json, refuse_launch, say, show_progress, stdout
from hyperalign.cli.options import (
    BASELINE,
    TRAINING,
    Autocast,
    Budget,
    CacheDir,
    Config,
    Data,
    Decoder,
    Dim,
    Exhaustive,
    Json,
    Labels,
    License,
    Limit,
    MaxGflops,
    MaxLatency,
    Minutes,
    Out,
    PairBudget,
    PeakRate,
    RunPath,
    Seed,
    Steps,
    Strict,
    Task,
    Text,
    TextBudget,
    TrustCode,
    Zoo,
)

if TYPE_CHECKING:
    from hyperalign.embed.zoo import Limits
    from hyperalign.pipeline import SearchConfig
    from hyperalign.processes import Crew
    from hyperalign.run import Run

__all__ = ["embed", "report", "rerun", "search"]


def search(  # noqa: PLR0913 – the signature is the list of options
    ctx: typer.Context,
    zoo: Zoo = None,
    data: Data = None,
    budget: Budget = None,
    text_budget: TextBudget = None,
    pair_budget: PairBudget = None,
    max_gflops: MaxGflops = None,
    max_latency: MaxLatency = None,
    dim: Dim = None,
    license: License = None,
    method: Annotated[Text, typer.Option(help="ape, closed-form, hypernet; several with commas between.")] = None,
    decoder: Decoder = None,
    sides: Annotated[Text, typer.Option(help="Sides that ape trains: text, both, or text,both.")] = None,
    task: Task = None,
    labels: Labels = None,
    verify: Annotated[int | None, typer.Option(min=0, help="Train so many of the first pairs by ape too.")] = None,
    polish: Annotated[
        int | None,
        typer.Option(min=0, help="Make so many of the first pairs as good as they get; choose among them."),
    ] = None,
    scores: Annotated[bool | None, typer.Option("--scores/--no-scores", help="Training-free scores beside.")] = None,
    seed: Seed = None,
    limit: Limit = None,
    max_minutes: Minutes = None,
    strict: Strict = None,
    exhaustive: Exhaustive = None,
    autocast: Autocast = None,
    ceiling: Annotated[
        list[str] | None,
        typer.Option(metavar="ZOO", help="Two encoders that were trained together, beside the pairs; repeatable."),
    ] = None,
    steps: Steps = None,
    epochs: Annotated[
        float | None, typer.Option(help="Or: passes over the captions.", rich_help_panel=TRAINING)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Items per step.", rich_help_panel=TRAINING)] = None,
    pairs_per_step: Annotated[int | None, typer.Option(help="Pairs per step.", rich_help_panel=TRAINING)] = None,
    learning_rate: PeakRate = None,
    baseline_seeds: Annotated[int | None, typer.Option(help="Seeds of its grid.", rich_help_panel=BASELINE)] = None,
    baseline_epochs: Annotated[float | None, typer.Option(help="Passes.", rich_help_panel=BASELINE)] = None,
    baseline_batch_size: Annotated[int | None, typer.Option(help="Items per step.", rich_help_panel=BASELINE)] = None,
    baseline_learning_rate: Annotated[float | None, typer.Option(help="Peak rate.", rich_help_panel=BASELINE)] = None,
    config: Config = None,
    cache_dir: CacheDir = Path("cache"),
    out: Out = Path("reports"),
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that was cut short.")] = None,
    add: Annotated[
        Text, typer.Option(metavar="NAME", help="Adopt one more encoder into a finished run; it may be of a --zoo.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="The run that --add is for; the newest that is finished.")
    ] = None,
    trust_code: TrustCode = False,
    json: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would cost, and compute nothing.")] = False,
) -> None:
    """Rank every pair of encoders under the limits, and verify the winner."""
    if add is not None or run is not None:
        refuse_launch("search --add")
        _run_adoption(ctx, add, run)
        return
    wanted = configured(ctx) if resume is None else _recorded(ctx, resume)
    if dry_run:
        refuse_launch("search --dry-run")
        _print_plan(wanted, cache_dir, json=json)
    else:
        _run_search(wanted, cache_dir=cache_dir, out=out, resume=resume, json=json)


def rerun(
    run: RunPath,
    cache_dir: CacheDir = Path("cache"),
    out: Out = Path("reports"),
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Repeat a run from its own record, and say whether the table is the same."""
    from hyperalign.run import read_result, same_table

    result = read_result(run)
    for one in result.get("adopted", [])[-1:]:
        raise ValueError(
            f"{run} was made by adopting {one['encoder']} into {one['run']}; "
            f"`hyperalign search --add {one['encoder']} --run {one['run']}`, with its --zoo if it had one, repeats it"
        )
    wanted = from_record(result["configuration"])
    again = _run_search(wanted, cache_dir=cache_dir, out=out, resume=None, json=json, fresh=True)
    if (run / "leaderboard.csv").is_file():
        say(f"the table is {'the same as' if same_table(run, again.path) else 'not'} that of {run}")


def embed(  # noqa: PLR0913 – the signature is the list of options
    ctx: typer.Context,
    zoo: Zoo = None,
    data: Data = None,
    budget: Budget = None,
    text_budget: TextBudget = None,
    pair_budget: PairBudget = None,
    max_gflops: MaxGflops = None,
    max_latency: MaxLatency = None,
    dim: Dim = None,
    license: License = None,
    labels: Labels = None,
    seed: Seed = None,
    limit: Limit = None,
    strict: Strict = None,
    autocast: Autocast = None,
    config: Config = None,
    cache_dir: CacheDir = Path("cache"),
) -> None:
    """Fill the cache, and nothing more."""
    from hyperalign import pipeline as engine
    from hyperalign.cli.stores import print_cache

    wanted = configured(ctx)
    with _shared(wanted, cache_dir) as crew, show_progress() as display:
        engine.embed(wanted, cache_dir=cache_dir, progress=display.progress, say=display.say, crew=crew)
    print_cache(cache_dir, json=False)


def report(  # noqa: PLR0913 – the signature is the list of options
    ctx: typer.Context,
    run: RunPath,
    others: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN2]...", help="Runs that it is held against.")
    ] = None,
    budget: Budget = None,
    text_budget: TextBudget = None,
    pair_budget: PairBudget = None,
    max_gflops: MaxGflops = None,
    max_latency: MaxLatency = None,
    dim: Dim = None,
    license: License = None,
    open: Annotated[bool, typer.Option("--open", help="Open the page in a browser, at the limits given.")] = False,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Add what the first pairs retrieve for a few test captions.")
    ] = False,
    cache_dir: CacheDir = Path("cache"),
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Draw the page of a finished run or of a study again, or print a run's order under other limits.

    Nothing is trained again. Several runs: the first is held against the others, in a page of its own.
    """
    from hyperalign.run import load_run

    if not (run / "result.json").exists() and (run / "study.json").is_file():
        _draw_study(run, given(ctx))
        return
    finished, beside = load_run(run), [load_run(other) for other in others or ()]
    not_limits = ("run", "others", "open", "pictures", "cache_dir", "json")
    words = {name: value for name, value in given(ctx).items() if name not in not_limits}
    if json:
        if beside or open or pictures:
            too = "a second run" if beside else "--open" if open else "--pictures"
            raise ValueError(f"--json prints one run and draws no page, got {too} too; leave one of them out")
        print_json((_under(finished, words) if words else finished).document())
        return
    if words:
        from hyperalign.show.table import render_order

        console = stdout()
        console.print(render_order(_under(finished, words), width=console.width))
    if pictures:
        _retrieve_pictures(finished, cache_dir)
    if open or beside or pictures or not words:
        _draw_page(finished, beside, words, show=open)


def _retrieve_pictures(run: "Run", cache_dir: Path) -> None:
    from hyperalign.glimpse import take_glimpse

    with show_progress() as display:
        take_glimpse(run, from_record(run.result["configuration"]), cache_dir=cache_dir, progress=display.progress)


def _draw_study(folder: Path, words: Mapping[str, Any]) -> None:
    """The page of a study that belongs to no run."""
    from hyperalign.show.study_page import write_study_page

    other = [name for name, value in words.items() if name not in ("run", "cache_dir", "open") and value]
    if other:
        word = other[0].replace("_", "-")
        raise ValueError(
            f"{folder} is a study and no run, so it has one page and no order, got {word} too; leave it out"
        )
    _hand_over(write_study_page(folder), "", show=words["open"])


def _draw_page(run: "Run", others: "list[Run]", words: Mapping[str, Any], *, show: bool) -> None:
    """Write the page of a run, at the limits that were typed."""
    from hyperalign.show.address import address_of
    from hyperalign.show.page import write_page

    with show_progress() as display:
        page = write_page(run, others, progress=display.progress)
    _hand_over(page, address_of(_limits(words)) if show else "", show=show)


def _hand_over(page: Path, address: str, *, show: bool) -> None:
    """Say where a page is, and open it where that is wanted."""
    typer.echo(page)
    if show:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri() + address):
            say(f"no browser could be opened here; open {page} yourself")


def _under(run: "Run", words: Mapping[str, Any]) -> "Run":
    """A finished run under the limits that were typed."""
    from hyperalign.relimit import open_run

    return open_run(run).as_run(_limits(words))


def _limits(words: Mapping[str, Any]) -> "Limits":
    """The limits that were typed."""
    from hyperalign.config import place_words

    return from_record(place_words(words)).limits


def _run_search(
    wanted: "SearchConfig", *, cache_dir: Path, out: Path, resume: Path | None, json: bool, fresh: bool = False
) -> "Run":
    """Search, draw the page and print what was found."""
    from hyperalign import pipeline as engine

    with _shared(wanted, cache_dir) as crew, _resumable(out), show_progress() as display:
        path = engine.search(
            wanted,
            cache_dir=cache_dir,
            out=out,
            resume=resume,
            fresh=fresh,
            progress=display.progress,
            say=display.say,
            crew=crew,
        )
    return _print_run(path, json=json)


@contextmanager
def _shared(wanted: "SearchConfig", cache_dir: Path) -> Iterator["Crew"]:
    """The processes of this launch; all but the first do here what that one asks for, and end."""
    from hyperalign.processes import crew

    with crew() as together:
        if together.rank:
            from hyperalign.assist import assist

            assist(wanted, together, cache_dir=cache_dir)
            raise typer.Exit
        try:
            yield together
        finally:
            together.dismiss()


def _run_adoption(ctx: typer.Context, name: str | None, run: Path | None) -> None:
    """Adopt an encoder into a finished run; that run's configuration rules."""
    from hyperalign.adopt import adopt
    from hyperalign.run import find_finished, read_result

    options = given(ctx)
    other = [one for one in options if one not in {"add", "run", "zoo", "cache_dir", "out", "json", "dry_run"}]
    if name is None:
        raise ValueError(f"--run says into which run an encoder is adopted, got {run} alone; give --add NAME too")
    if other or options["dry_run"]:
        words = ", ".join(f"--{one.replace('_', '-')}" for one in other) or "--dry-run"
        raise ValueError(f"an adopted encoder is searched as its run was, got {words} too; give --zoo alone beside")
    folder = run or find_finished(options["out"], say=say)
    with show_progress() as display:
        path = adopt(
            name,
            folder,
            from_record(read_result(folder)["configuration"]),
            zoo=own_zoos(options.get("zoo")),
            cache_dir=options["cache_dir"],
            out=options["out"],
            progress=display.progress,
            say=display.say,
        )
    _print_run(path, json=options["json"])


def _print_run(path: Path, *, json: bool) -> "Run":
    """Draw the page of a finished run and print it."""
    from hyperalign.run import load_run
    from hyperalign.show.page import write_page
    from hyperalign.show.table import render_run

    run = load_run(path)
    with show_progress() as display:
        page = write_page(run, progress=display.progress)
    if json:
        print_json(run.document())
    else:
        console = stdout()
        console.print(render_run(run, width=console.width))
        typer.echo(f"\nThe run is in {path}, its page is {page}")
    return run


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Say how to go on with a search that is stopped in the middle."""
    try:
        yield
    except KeyboardInterrupt as stop:
        from hyperalign.run import find_unfinished, finished_stages

        run, stopped = find_unfinished(out, pid=os.getpid()), f"stopped: {stop}" if str(stop) else "stopped"
        if run is None:
            say(f"{stopped}; what is embedded stays in the cache, and the same command goes on from there")
        else:
            stages = ", ".join(finished_stages(run)) or "no stage yet"
            say(f"{stopped}; finished: {stages}, and embeddings stay in the cache")
            say(f"go on with `hyperalign search --resume {run}`")
        raise typer.Exit(130) from None


def _recorded(ctx: typer.Context, run: Path) -> "SearchConfig":
    """What an unfinished run was asked for; only the time it may take can be changed."""
    from hyperalign.run import read_result

    rule, advice = "a resumed run keeps its own configuration", "leave out --resume to start anew"
    refuse_beside(ctx, {*NOT_CONFIG, "max_minutes", "data"}, rule, advice)
    record = dict(read_result(run)["configuration"])
    if ctx.params.get("data") == record.get("data"):  # a command must be written anew to be run
        record["data"] = own_words(record["data"])
    else:
        refuse_beside(ctx, {*NOT_CONFIG, "max_minutes"}, rule, advice)
    if ctx.params.get("max_minutes") is not None:
        record["max_minutes"] = ctx.params["max_minutes"]
    return from_record(record)


def _print_plan(wanted: "SearchConfig", cache_dir: Path, *, json: bool) -> None:
    from hyperalign.plan import plan
    from hyperalign.show.planned import plan_table

    with show_progress() as display:
        planned = plan(wanted, cache_dir=cache_dir, progress=display.progress)
    if json:
        print_json(planned)
    else:
        console = stdout()
        console.print(plan_table(planned, width=console.width))
