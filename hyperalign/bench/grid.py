"""`--grid NxM`: a search over a synthetic grid with planted truth, through the code that every search goes through.

Smaller grids come first, so that cost and memory can be read against size. What the search chose is held against what
is true; the finished run is opened again and asked for other limits; and what devices would need is computed.
"""

import statistics
import tempfile
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

from hyperalign.account import compute_ratios, sum_up
from hyperalign.bench.devices import device_sheet
from hyperalign.bench.planted import Planted, plant
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.bench.watermark import set_back
from hyperalign.board import Tested, evaluate
from hyperalign.embed.zoo import EncoderSpec, Limits, Range
from hyperalign.forecast import forecast
from hyperalign.ledger import SEARCH_STAGES, Line
from hyperalign.machine import measure_matmul, peak_bytes
from hyperalign.rank.agreement import agreement
from hyperalign.rank.ranking import answer
from hyperalign.record import Result
from hyperalign.relimit import open_run
from hyperalign.request import SearchConfig
from hyperalign.run import create_run, finish_run, load_run, write_tensors
from hyperalign.scoring import scoring_flops
from hyperalign.solve import Method, Recipe, Solved, Workbench, pairs_in_words, solve

__all__ = ["measure"]

Shape = tuple[int, int]

RANK = 256  # white coordinates, R, where the configuration names no other
SIZES = (20_000, 1_000, 1_000)  # items to learn from, to choose by and to report on
SMALLER: tuple[Shape, ...] = ((12, 4), (30, 9), (60, 15))
_REPEATS = 5  # of each limit


def measure(asked: Asked) -> list[Sheet]:
    """Search grids of growing size up to the one asked for.

    `limit` of the configuration bounds the items of each split, `canonical` and `train` are heard as in a search.
    """
    assert asked.shape is not None, "the command line asks for a shape"
    n_images, n_texts = asked.shape
    shapes = [shape for shape in SMALLER if shape[0] * shape[1] < n_images * n_texts]
    searches = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            searches.append(_search(shape, asked, Path(folder)))
    asked.out.mkdir(parents=True, exist_ok=True)
    searches.append(_search(asked.shape, asked, asked.out))
    config, sizes = _settle(asked.config)
    return [
        _size_sheet(searches, sizes, config.recipe()),
        _stage_sheet(searches[-1]),
        _limit_sheet(searches[-1].path),
        device_sheet(plant(asked.shape, (2, *sizes[1:]), seed=config.seed).prepared, config.recipe(), _method(config)),
    ]


class _Searched(NamedTuple):
    """A search that is over.

    Attributes:
        shape: (N, M).
        path: Its run.
        lines: Its ledger.
        making: Seconds that making rows has taken, by stage; the times of the ledger hold them too.
        start_bytes: Resident before the set-up, the rows of the zoo not in it.
        truth: Spearman with the planted truth, and points of it lost by what was chosen.
        looks: Mean score on validation of the closed form and of the hypernetwork that was kept.
        ratio: FLOPs of the text-sided baseline's grid, from shapes, over those of the search.
        ratio_both: The same of the baseline between the search's own coordinates.
        matmul: FLOP/s of the best matrix product seen right before.
    """

    shape: Shape
    path: Path
    lines: list[Line]
    making: dict[str, float]
    start_bytes: int
    truth: tuple[float, float]
    looks: tuple[float, float]
    ratio: float
    ratio_both: float
    matmul: float

    def stage(self, name: str) -> tuple[int, float, int]:
        """FLOPs, seconds without the making of rows, and peak memory of a stage."""
        own = [line for line in self.lines if line.stage == name]
        seconds = sum(line.seconds for line in own) - self.making[name]
        return sum(line.flops for line in own), seconds, max(line.peak_bytes for line in own)


def _settle(config: SearchConfig) -> tuple[SearchConfig, tuple[int, int, int]]:
    """The configuration with this measurement's rank, and the items of each split."""
    n_train, n_val, n_test = (min(size, config.limit or size) for size in SIZES)
    return replace(config, canonical={"rank": RANK, **config.canonical}), (n_train, n_val, n_test)


def _method(config: SearchConfig) -> Method:
    return Method("hypernet", "both", config.seed)


def _search(shape: Shape, asked: Asked, out: Path) -> _Searched:
    """Set-up, training and validation as in every search, then the test items and the run on disk."""
    config, sizes = _settle(asked.config)
    asked.say(f"{shape[0]} image by {shape[1]} text encoders, {sizes[0]:,} items to learn from")
    planted = plant(shape, sizes, seed=config.seed)
    train, val, test = planted.makers
    run = create_run(out, label=f"grid {shape[0]}x{shape[1]}", configuration=asdict(config))
    pairs, matmul = planted.candidates.pair_indices(), measure_matmul(size=1024)
    bench = Workbench(
        planted.prepared,
        pairs,
        config.recipe(),
        run=run,
        task="retrieval",
        progress=asked.progress,
        should_stop=lambda: False,
    )
    start_bytes = set_back() or peak_bytes()
    setup_line = _set_up(bench, _method(config))
    making = {"set-up": train.seconds}
    solved = solve(_method(config), bench)
    solved = replace(solved, lines=[setup_line, *(line for line in solved.lines if line.stage != "set-up")])
    making |= {"training": train.seconds - making["set-up"], "validation": val.seconds}
    tested, line = _test(solved, planted, config.seed)
    making["test evaluation"] = test.seconds
    lines = [*solved.lines, line]
    ratio = compute_ratios(solved, lines, bench.recipe, bench.pairs, bench.prepared.train, bench.prepared.val)[0]
    path = _finish(run, solved, tested, planted, config, lines, bench)
    both = _both_flops(bench) / ratio["method_flops"]
    chosen = agreement(solved.validation, planted.truth)
    looks = solved.solution.fits[0].looks
    best = next(look for look in looks if look.step == solved.solution.fits[0].best_step)
    return _Searched(
        shape=shape,
        path=path,
        lines=lines,
        making=making,
        start_bytes=start_bytes,
        truth=(chosen.spearman, chosen.regret_at_1),
        looks=(looks[0].validation, best.validation),
        ratio=ratio["baseline_flops"] / ratio["method_flops"],
        ratio_both=both,
        matmul=matmul,
    )


def _both_flops(bench: Workbench) -> int:
    """What the baseline between the same coordinates would cost, set-up and one look at validation included."""
    prepared = bench.prepared
    cost = forecast(Method("ape", "both", 0), prepared.train, bench.pairs, bench.recipe)
    return cost.setup_flops + cost.train_flops + scoring_flops(cost.solution, prepared.val)


def _set_up(bench: Workbench, method: Method) -> Line:
    """Make what the search starts from, so that its peak of memory is seen before the training's."""
    flops = bench.canonical.flops
    return Line("set-up", method.label, "what every pair starts from", flops, bench.setup_seconds, peak_bytes())


def _test(solved: Solved, planted: Planted, seed: int) -> tuple[Tested, Line]:
    """The pairs on the test items: scores, intervals, ranks."""
    start = time.perf_counter()
    tested = evaluate(solved, planted.prepared, planted.candidates, task="retrieval", free=None, seed=seed)
    flops = scoring_flops(solved.solution, planted.prepared.test)
    what = pairs_in_words(len(solved.solution.pairs))
    seconds = time.perf_counter() - start
    return tested, Line("test evaluation", solved.method.label, what, flops, seconds, peak_bytes())


def _finish(  # noqa: PLR0913 - what a run is made of
    run: Path,
    solved: Solved,
    tested: Tested,
    planted: Planted,
    config: SearchConfig,
    lines: list[Line],
    bench: Workbench,
) -> Path:
    """Write the run as a search writes it; its connectors are of no use to anyone and stay away."""
    write_tensors(run / "hits.safetensors", {**tested.hits, "owner": planted.prepared.test.owner})
    specs = (*planted.candidates.images, *planted.candidates.texts)
    facts = [field.name for field in fields(EncoderSpec) if field.name != "folder"]
    lines = [line._replace(method=solved.method.label) for line in lines]
    result: Result = {
        "seeds": [config.seed],
        "wall_seconds": round(sum(line.seconds for line in lines), 1),
        "data": {"name": "planted", "splits": {}, "label_set": None},
        "encoders": [{name: getattr(spec, name) for name in facts} for spec in specs],
        "method": solved.method.name,
        "counts": [f"a synthetic grid of {pairs_in_words(len(bench.pairs))}"],
        "answer": [answer(tested.table)],
        "notes": ["encoders and items are made up; what is true of them is planted"],
        "agreement": [],
        "ratios": compute_ratios(solved, lines, bench.recipe, bench.pairs, bench.prepared.train, bench.prepared.val),
        "totals": sum_up(solved, lines),
    }
    return finish_run(run, result, leaderboard=tested.table, ledger=lines).path


def _size_sheet(searches: list[_Searched], sizes: tuple[int, int, int], recipe: Recipe) -> Sheet:
    rows = []
    for one in searches:
        flops, seconds, peaks = zip(*(one.stage(name) for name in SEARCH_STAGES), strict=True)
        making = sum(one.making[name] for name in SEARCH_STAGES)
        rows.append(
            {
                "grid": f"{one.shape[0]}x{one.shape[1]}",
                "pairs": one.shape[0] * one.shape[1],
                "search_flops": sum(flops),
                "search_seconds": sum(seconds) + making,
                "making_rows_seconds": making,
                "memory_bytes": max(peaks) - one.start_bytes,
                "ape_grid_ratio": one.ratio,
                "ape_both_grid_ratio": one.ratio_both,
                "spearman_with_truth": one.truth[0],
                "regret_score": one.truth[1],
                "closed_form_score": one.looks[0],
                "hypernet_score": one.looks[1],
            }
        )
    notes = [
        f"{sizes[0]:,} items to learn from, {sizes[1]:,} to choose by; a search is set-up, training and validation, "
        "and its time holds the making of rows, which a search over embedded rows has not",
        "memory is the growth of the process from before the set-up to its peak; ratios: FLOPs of the baseline's grid, "
        "computed, over those of the search as the run's ledger has them",
        f"ape: text-sided, matched batch {recipe.residual.batch_size}, {recipe.ape.length}; ape both: between the "
        f"{recipe.canonical.rank} coordinates of the search, batch {recipe.ape_both.batch_size}, "
        f"{recipe.ape_both.length}",
        "truth: recall@1 computed from what each pair's encoders were planted to know; regret in points of it. The two "
        "scores are means of recall@1 on validation over the pairs by which the training was watched",
    ]
    return Sheet("Cost of a search against the size of the grid", rows, notes)


def _stage_sheet(last: _Searched) -> Sheet:
    rows = []
    for name in (*SEARCH_STAGES, "test evaluation"):
        flops, seconds, peak = last.stage(name)
        rows.append(
            {
                "stage": name,
                "flops": flops,
                "seconds": seconds,
                "achieved_flops_per_second": flops / max(seconds, 1e-9),
                "of_matrix_product_share": flops / max(seconds, 1e-9) / last.matmul,
                "making_rows_seconds": last.making[name],
                "memory_so_far_bytes": peak - last.start_bytes,
            }
        )
    notes = ["seconds are without the making of rows; the share is of a float32 product of 1,024 taken just before"]
    return Sheet(f"{last.shape[0]}x{last.shape[1]} by stage", rows, notes)


def _limit_sheet(path: Path) -> Sheet:
    """Another limit on the finished run: ranks, P(best), the winner and the best for each size, found again."""
    start = time.perf_counter()
    run = load_run(path)
    read = time.perf_counter()
    opened = open_run(run)
    rows = [
        {"limit": "read the run", "pairs": len(opened.table), "seconds": read - start, "slowest_seconds": read - start},
        {
            "limit": "compare all pairs, once",
            "pairs": len(opened.table),
            "seconds": time.perf_counter() - read,
            "slowest_seconds": time.perf_counter() - read,
        },
    ]
    for words, limits in _limits(opened.specs):
        taken, left = [], 0
        for _ in range(_REPEATS):
            begin = time.perf_counter()
            left = len(opened.under(limits).table)
            taken.append(time.perf_counter() - begin)
        rows.append({"limit": words, "pairs": left, "seconds": statistics.median(taken), "slowest_seconds": max(taken)})
    notes = [f"median and slowest of {_REPEATS}, each with ranks, P(best), the winner and the best for each size"]
    return Sheet("Another limit on the finished run", rows, notes)


def _limits(specs: tuple[EncoderSpec, ...]) -> list[tuple[str, Limits]]:
    """Limits that let some through, whatever the zoo: at the sizes of its own encoders."""
    images, texts = (
        sorted(spec.n_params or 0 for spec in specs if spec.modality == side) for side in ("image", "text")
    )
    some: list[tuple[str, Limits]] = [("none", Limits())]
    for words, part in (("a quarter", 4), ("half", 2)):
        bound = Range(high=images[len(images) // part])
        some.append((f"{words} of the image encoders", Limits(image_params=bound)))
    bound = Range(high=texts[len(texts) // 2])
    some.append(("half of each side", Limits(image_params=some[-1][1].image_params, text_params=bound)))
    both = Range(high=images[len(images) // 2] + texts[len(texts) // 2])
    return [*some, ("parameters of a pair", Limits(pair_params=both))]
