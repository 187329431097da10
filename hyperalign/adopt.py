"""One more encoder for a finished run: its rows, its pairs, and a run that has both.

The newcomer is embedded and paired with every encoder of the other side that the run's limits let it stand beside. A
pair of it that comes among the first is polished, as a search would have done. `joined` makes one run of both, whose
ledger is what the adoption cost.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hyperalign.account import describe_encoders
from hyperalign.align.solution import Kept
from hyperalign.candidates import Candidates, recall_latency, remember_latency
from hyperalign.embed.identity import settle
from hyperalign.embed.locks import make_room
from hyperalign.embed.zoo import EncoderSpec, find_encoder, load_zoo, load_zoos, pairs_within, within
from hyperalign.grids import Prepared
from hyperalign.joined import Earlier, longer_hits, of_side, placed, table_together, told_together, write_together
from hyperalign.kept import undamaged
from hyperalign.packing import unpack_kept
from hyperalign.pipeline import Asked, digest_inputs, open_asked_data, prepare_rows, score_on_test, with_latencies
from hyperalign.prepare import embedding_jobs
from hyperalign.record import embedded_whole
from hyperalign.request import SearchConfig
from hyperalign.run import (
    create_run,
    finish_run,
    load_run,
    load_tensors,
    log_event,
    read_log,
)
from hyperalign.solve import Solved, Workbench, pairs_in_words, polish, solve_newcomer

__all__ = ["adopt"]

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]

_SHIPPED = ("embedded", "hub")  # where a name is looked for that the run's own zoos do not have


def adopt(  # noqa: PLR0913 - what is adopted into what, and where things lie
    name: str,
    run: Path,
    config: SearchConfig,
    *,
    zoo: Sequence[str] = (),
    cache_dir: Path,
    out: Path,
    progress: Progress,
    say: Say,
) -> Path:
    """Add an encoder to a finished run and write both as a new run.

    Args:
        name: The encoder, of the run's zoos, of those given, or of one that ships.
        run: Folder of a finished run that the hypernetwork has answered.
        config: What that run was asked for.
        zoo: More zoos to find the encoder in.
        cache_dir: Where embeddings are kept.
        out: Where runs are kept.
        progress: Told `(stage, done, total)`.
        say: Told sentences meanwhile.

    Returns:
        Folder of the new run.

    Raises:
        KeyError: If no zoo has the encoder; near names are offered.
        ValueError: If it is in the run already or beyond its limits, if the run is not finished or of another method,
            or if its encoders or data have changed.
        FileNotFoundError: If the folder is no run or lacks a file.
    """
    begin = time.perf_counter()
    earlier, spec, added = _open_earlier(run, name, config, zoo, cache_dir)
    beside = _beside(earlier, spec, config, cache_dir)
    asked, digest = _ask(earlier, spec, beside, config, cache_dir, progress)
    make_room(out, "--out")
    for sentence in asked.candidates.counts:
        say(sentence)
    prepared, embedding = prepare_rows(asked, config, cache_dir, progress)
    _check_items(earlier, prepared)
    folder = create_run(
        out, label=f"{Path(config.data).stem} with {name}", configuration=earlier.run.result["configuration"]
    )
    log_event(folder, "adopting", name=name, into=str(run))
    bench = Workbench(
        prepared,
        beside.pair_indices(),
        config.recipe(),
        run=folder,
        task=config.task,
        progress=progress,
        should_stop=lambda: False,
    )
    method = next(one for one in config.plan_methods() if one.name == "hypernet")
    partners = _of_partners(earlier, beside, spec)
    solved = solve_newcomer(method, bench, spec.modality, partners)
    made = [solved, *_polished(earlier, solved, spec.modality, config.polish, bench)]
    beside = with_latencies(beside, cache_dir)
    tested, tests = score_on_test(made, prepared, beside, config, progress)
    own = [line for one in made for line in one.lines]
    lines = [*(line for line in embedding if line.flops or line.seconds), *own, *tests]
    pairs = np.concatenate([earlier.pairs, placed(earlier, beside, spec)])
    hits = {**earlier.hits, **longer_hits(earlier.hits, tested)}
    names = write_together(folder, earlier, beside, spec, made, pairs, hits)
    table = table_together(earlier, tested, names, hits, config)
    record = describe_encoders(beside, asked.jobs)[0 if spec.modality == "image" else -1]
    result = told_together(earlier, spec, tested, lines, table, record, added)
    result["notes"] += [note for note in prepared.notes if note not in result["notes"]]
    result["wall_seconds"] = round(time.perf_counter() - begin, 1)
    log_event(folder, "inputs", digest=digest)  # last: no search of the same may take an adoption for its own
    return finish_run(folder, result, leaderboard=table, ledger=lines).path


def _open_earlier(
    path: Path, name: str, config: SearchConfig, zoo: Sequence[str], cache_dir: Path
) -> tuple[Earlier, EncoderSpec, list[str]]:
    """The finished run, the newcomer, and the zoos that declare it beside the run's own."""
    run = load_run(path)
    method, encoders = run.result["method"], run.result["encoders"]
    if method != "hypernet":
        raise ValueError(
            f"an encoder is adopted by the hypernetwork, and {path} was answered by {method}; "
            "search with --method hypernet first"
        )
    whole = embedded_whole(run.result)
    if name in whole:
        raise ValueError(f"encoder {name!r} is in {path} already; its pairs are in the table")
    if name in {record["name"] for record in encoders}:
        raise ValueError(
            f"encoder {name!r} left {path} on a sample of the data; to compare it whole, search with --exhaustive"
        )
    before = [source for record in run.result.get("adopted", []) for source in record["zoo"]]
    given = {source: source for source in zoo}  # one of the run's that is given too is of the user's own words
    own = [given.get(source, source) for source in dict.fromkeys([*config.zoo, *before])]
    added = [source for source in zoo if source not in own]
    known = load_zoos([*own, *added])
    if not added and name not in {one.name for one in known}:
        added = [source for source in _SHIPPED if source not in own and _declares(source, name)]
        known = load_zoos([*own, *added])
    spec = settle(find_encoder(known, name), memory=cache_dir)
    everyone = tuple(settle(find_encoder(known, record["name"]), memory=cache_dir) for record in encoders)
    images, texts = (of_side(side, [one for one in everyone if one.name in whole]) for side in ("image", "text"))
    with undamaged(path):
        tensors = load_tensors(path / "kept.safetensors")
        pairs, kept = tensors.pop("pairs"), unpack_kept(tensors)
    if (len(kept.images), len(kept.texts)) != (len(images), len(texts)):
        raise ValueError(f"{path} is damaged: it has kept nothing of some of its encoders; search anew")
    earlier = Earlier(run, everyone, images, texts, kept, pairs, load_tensors(path / "hits.safetensors"))
    return earlier, spec, added


def _declares(source: str, name: str) -> bool:
    return name in {spec.name for spec in load_zoo(source)}


def _beside(earlier: Earlier, spec: EncoderSpec, config: SearchConfig, cache_dir: Path) -> Candidates:
    """The newcomer with the encoders of the other side that the run's limits let it stand beside.

    Raises:
        ValueError: If the limits leave it out.
    """
    image = spec.modality == "image"
    known = {one.name: ms for one in earlier.images if (ms := recall_latency(one, cache_dir)) is not None}
    if image and config.limits.latency_ms is not None and spec.loader != "rows":
        known[spec.name] = remember_latency(spec, cache_dir)
    every = (*earlier.images, *earlier.texts, spec)
    if spec not in within(every, config.limits, latencies=known):
        raise ValueError(f"encoder {spec.name!r} is beyond the limits of {earlier.run.path}; search anew with others")
    images, texts = ((spec,), earlier.texts) if image else (earlier.images, (spec,))
    pairs = pairs_within(images, texts, config.limits)
    return Candidates(
        images=tuple(one for one in images if any(pair.image is one for pair in pairs)),
        texts=tuple(one for one in texts if any(pair.text is one for pair in pairs)),
        pairs=tuple(pairs),
        latencies={},
        counts=(f"{spec.name}: {pairs_in_words(len(pairs))} with encoders of the run",),
    )


def _ask(
    earlier: Earlier, spec: EncoderSpec, beside: Candidates, config: SearchConfig, cache_dir: Path, progress: Progress
) -> tuple[Asked, str]:
    """What must be embedded, and the digest of all that the new run looks at.

    Raises:
        ValueError: If the encoders or the data are not those of the run.
    """
    dataset, labels = open_asked_data(config, cache_dir, progress)

    def jobs(*newcomer: EncoderSpec) -> list[Any]:
        images, texts = (of_side(side, (*earlier.encoders, *newcomer)) for side in ("image", "text"))
        every = replace(beside, images=images, texts=texts)
        return embedding_jobs(every, dataset, labels, cache_dir=cache_dir, autocast=config.autocast)

    path = earlier.run.path
    known = [line["digest"] for line in read_log(path) if line.get("event") == "inputs"]
    if known[:1] != [digest_inputs(jobs())]:
        raise ValueError(f"the encoders or the data of {path} have changed since it was made; search anew")
    wanted = embedding_jobs(beside, dataset, labels, cache_dir=cache_dir, autocast=config.autocast)
    return Asked(beside, dataset, labels, wanted), digest_inputs(jobs(spec))


def _check_items(earlier: Earlier, prepared: Prepared) -> None:
    """Hold the items that the newcomer can read against those of the run.

    Raises:
        ValueError: If pictures could be read then and not now, or the other way round.
    """
    for name, grid in (("train", prepared.train), ("val", prepared.val), ("test", prepared.test)):
        n_images = earlier.run.result["data"]["splits"][name]["n_images"]
        if grid.n_images != n_images:
            raise ValueError(
                f"{name} had {n_images:,} readable pictures in {earlier.run.path} and has {grid.n_images:,} now; "
                "mend the data or search anew"
            )


def _of_partners(earlier: Earlier, beside: Candidates, spec: EncoderSpec) -> Kept:
    """What the run has kept, of the newcomer's partners alone on their side."""
    if spec.modality == "image":
        return earlier.kept._replace(texts=[earlier.kept.texts[earlier.texts.index(one)] for one in beside.texts])
    return earlier.kept._replace(images=[earlier.kept.images[earlier.images.index(one)] for one in beside.images])


def _polished(earlier: Earlier, solved: Solved, side: str, n_first: int, bench: Workbench) -> list[Solved]:
    """The newcomer's pairs that are among the first of all by validation, as good as they get; a search does the same.

    Args:
        earlier: The run.
        solved: The newcomer's pairs.
        side: The newcomer's.
        n_first: How many of all pairs are polished.
        bench: Rows of the newcomer, alone on its side, and of its partners.
    """
    board, method = earlier.run.leaderboard, solved.method
    mine = (board["method"] == method.name) & (board["seed"] == method.seed) & board["score"].notna()
    before = board.loc[mine, "validation_score"].fillna(-np.inf).to_numpy()
    first = np.argsort(-np.concatenate([before, solved.validation]), kind="stable")[:n_first] - len(before)
    wanted = [solved.solution.pairs[n] for n in sorted(first[first >= 0].tolist())]
    if not wanted:
        return []
    assert solved.solution.kept is not None, "a newcomer leaves what it was given"
    met = replace(solved.solution, kept=solved.solution.kept.of_last(side))
    return [polish(wanted, bench, replace(solved, solution=met))]
