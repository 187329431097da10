"""What a search would cost, before anything is computed: operations, seconds, bytes on disk and in memory.

Operations come from the same functions as the ledger. Seconds are estimates: remembered rows a second where an
encoder has run on this machine, else operations over a measured matrix product times a share that was seen to be
reached (`_REACHED`); half or twice as long is no surprise. Memory is private memory (see `footprint`): what this
process holds now, with the data open, and what each part of the search adds. It leaves out what an encoder holds while
it computes. Disk is what the cache and the folder of the run will hold; a search that is running has its finished
stages beside, all connectors of each.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperalign.align.grid import Grid
from hyperalign.board import training_free_flops
from hyperalign.embed.pictures import Blocks
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.footprint import dearest, heights
from hyperalign.forecast import Forecast, Hollow, forecast, forecast_polishing, hollow_grid
from hyperalign.grids import LabelGrid
from hyperalign.ladder import encoders_of
from hyperalign.ledger import Line, adamw_flops, search_flops, total_flops
from hyperalign.machine import available_bytes, give_back, measure_matmul, n_cores, peak_bytes, private_bytes
from hyperalign.pipeline import Asked, ask, n_first
from hyperalign.prepare import Job, count_missing, recall_rate
from hyperalign.promote import count_items, draw_samples, find_prices, is_worthwhile, most_flops
from hyperalign.request import SearchConfig
from hyperalign.scoring import scoring_flops, watch_flops, zero_shot_flops, zero_shot_parts
from hyperalign.solve import Method, pairs_in_words

__all__ = ["Plan", "Step", "estimate_seconds", "plan"]

Progress = Callable[[str, int, int], None]

# Shares of the best matrix product, on 12 × 4 encoders of 64 to 1024 numbers and 3,000 pictures with five captions,
# one thread: set-up 0.48 and 0.39, validation 0.5, training 0.3 to 0.5 without the optimiser; embedding on the small
# encoders of the embedded zoo 0.2 (mobile networks) to 0.65 (residual networks).
_REACHED = {
    "embedding": 0.5,
    "set-up": 0.4,
    "training": 0.35,
    "polishing": 0.35,
    "validation": 0.5,
    "test evaluation": 0.3,
}
_SECONDS_PER_UPDATE = 1.3e-8  # of one parameter by AdamW, with its gradient written and read
_SECONDS_PER_FILE = 4e-3  # reading, decoding and resizing a photograph on one core
_SECONDS_PER_ROW = 2e-4  # whatever else a row needs
_SHARD_ROWS = 8192  # rows of an embedding held before they are written
_RECORD_BYTES = 1_515_000  # of a run whatever it holds: the page with what draws it, what was asked, the log
_ENCODER_BYTES, _PAIR_BYTES = 700, 700  # of them for each encoder and each row of the table
_SHARD_BYTES = 600  # of a shard besides its rows: header, record, its place in the manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One part of a search.

    Attributes:
        stage: Of the ledger's stages.
        method: Whose; empty where all share it.
        what: What will be done, in words.
        flops: From shapes.
        seconds: Estimate; 0 where nothing is left to do or where another step's time has it; None where unknown.
        disk_bytes: Written.
        memory_bytes: Largest private memory of the process meanwhile, about; 0 where another step's has it.
        cached: Whether nothing is left to do.
    """

    stage: str
    method: str
    what: str
    flops: int
    seconds: float | None
    disk_bytes: int = 0
    memory_bytes: int = 0
    cached: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All of a search, and what it is compared with.

    Attributes:
        counts: What the limits let through, in words.
        steps: In the order in which they run.
        search_flops: Set-up, training and validation of the method that answers.
        all_flops: Everything; what is shared counts once.
        grid_flops: The baseline's text-sided grid, whether it is asked for or not.
        seconds: Of all steps whose time is known.
        disk_bytes: Of all steps.
        memory_bytes: Of the largest.
        held_bytes: What the process holds now, libraries and the opened data; part of `memory_bytes`.
        available_bytes: Memory that is free now, a container's limit counted; None where the system does not tell.
        flops_per_second: The matrix product that seconds were estimated with.
    """

    counts: tuple[str, ...]
    steps: tuple[Step, ...]
    search_flops: int
    all_flops: int
    grid_flops: int
    seconds: float
    disk_bytes: int
    memory_bytes: int
    held_bytes: int
    available_bytes: int | None
    flops_per_second: float


def plan(config: SearchConfig, *, cache_dir: Path, progress: Progress) -> Plan:
    """Say what `search` would do with a configuration.

    Zoos and data are opened and looked at as the search would do it, so a user's mistakes come to light here too.
    """
    asked = ask(config, cache_dir=cache_dir, progress=progress, dry=True)
    drawing = _Drawing(config, asked, cache_dir)
    steps = [*drawing.embedding(), *drawing.methods(), *drawing.closer(), *drawing.testing()]
    lines = [Line(step.stage, step.method, step.what, step.flops, step.seconds or 0.0) for step in steps]
    return Plan(
        counts=asked.candidates.counts,
        steps=tuple(steps),
        search_flops=search_flops(lines, config.answering().label),
        all_flops=total_flops(lines),
        grid_flops=drawing.grid_flops(),
        seconds=sum(step.seconds or 0.0 for step in steps),
        disk_bytes=sum(step.disk_bytes for step in steps),
        memory_bytes=max(drawing.opened, *(step.memory_bytes for step in steps)),
        held_bytes=drawing.base,
        available_bytes=available_bytes(),
        flops_per_second=drawing.rate,
    )


def estimate_seconds(stage: str, flops: int, flops_per_second: float) -> float:
    """Seconds that operations of a stage take, about.

    Args:
        stage: Of the ledger's stages.
        flops: From shapes.
        flops_per_second: Of this machine's best matrix product; updates do not depend on it.
    """
    if stage == "optimiser":
        return flops / adamw_flops(1) * _SECONDS_PER_UPDATE
    return flops / (flops_per_second * _REACHED[stage])


class _Drawing:
    """The shapes of a search, and what its parts will cost."""

    def __init__(self, config: SearchConfig, asked: Asked, cache_dir: Path) -> None:
        """Measure the matrix product; nothing else is computed."""
        self.config, self.asked, self.cache_dir = config, asked, cache_dir
        self.opened = private_bytes() or peak_bytes()  # what opening the data has taken at its height
        give_back()
        self.base = private_bytes() or peak_bytes()
        self.rate = measure_matmul(size=1024)
        self.pairs, self.recipe = asked.candidates.pair_indices(), config.recipe()
        self.train, self.val, self.test = (self._grid(name) for name in ("train", "val", "test"))
        self.labels = self._label_grid()
        given = asked.candidates, asked.dataset, asked.jobs
        wanted = config.exhaustive is False or is_worthwhile(*given, cache_dir=cache_dir)
        self.promotes = config.may_promote() and wanted
        self.made = [(method, self._forecast(method)) for method in config.plan_methods()]
        by_cost = dearest(self.train, self.pairs)
        self.tried, self.polished = by_cost[: config.n_verified()], by_cost[: config.polish]
        self.looked_at = list(self._look_closer())
        grids = self.train, self.val, self.test
        self.heights = heights(self.made, *grids, self.recipe, self.tried, self.polished)

    def embedding(self) -> list[Step]:
        """One step for each encoder, or one in all where it is not known yet who is embedded whole."""
        specs = dict.fromkeys(job.spec for job in self.asked.jobs)
        steps = [self._embedding(spec, [job for job in self.asked.jobs if job.spec == spec]) for spec in specs]
        return [self._promotion(steps)] if self.promotes else steps

    def methods(self) -> list[Step]:
        """Set-up, training and validation of each method; a set-up that several share takes its time once."""
        steps: list[Step] = []
        for method, cost in self.made:
            if cost.setup_flops:
                first = all(step.stage != "set-up" for step in steps)
                what = "moments, eigendecompositions, cross-products" if first else "shared, made once"
                seconds = self._seconds("set-up", cost.setup_flops) if first else 0.0
                steps.append(self._step("set-up", method.label, what, cost.setup_flops, seconds))
            steps += self._training("training", method, cost)
            steps.append(self._validation(method, cost))
        return steps

    def closer(self) -> list[Step]:
        """The first pairs by themselves; which they are is not known yet, so the dearest ones are taken."""
        steps = []
        for stage, method, cost in self.looked_at:
            training, *updates = self._training(stage, method, cost)
            look = self._validation(method, cost)
            seconds = (training.seconds or 0.0) + (look.seconds or 0.0)
            steps += [replace(training, flops=training.flops + look.flops, seconds=seconds), *updates]
        return steps

    def _look_closer(self) -> Iterator[tuple[str, Method, Forecast]]:
        seed = self.config.seed
        if self.tried:
            method = Method("ape", "text", seed)
            yield "verification", method, self._forecast(method, self.tried)
        if self.polished:
            cost = forecast_polishing(self.train, self.polished, self.recipe, after=self.config.answering())
            made = cost._replace(train_flops=cost.setup_flops + cost.train_flops)
            yield "polishing", Method("polished", "both", seed), made

    def testing(self) -> list[Step]:
        """All methods on the test items, and the training-free scores."""
        steps = []
        if self.config.scores:
            flops, stage = training_free_flops(self.train), "test evaluation"
            steps.append(self._step(stage, "", "training-free scores", flops, self._seconds(stage, flops)))
        records = _RECORD_BYTES + 8 * self.test.n_captions + _ENCODER_BYTES * sum(self.train.shape)
        for method, cost in [*self.made, *(one[1:] for one in self.looked_at)]:
            flops = scoring_flops(cost.solution, self.test)
            if self.labels is not None:
                flops += zero_shot_flops(cost.solution, self.labels, zero_shot_parts(self.labels)[1])
            seconds = self._seconds("test evaluation", flops)
            disk = records + self._written(method, cost)
            what = pairs_in_words(len(cost.solution.pairs))
            steps.append(self._step("test evaluation", method.label, what, flops, seconds, disk=disk))
            records = 0
        return steps

    def _written(self, method: Method, cost: Forecast) -> int:
        """What stays of a method in the folder of the run: rows of the table, hits, connectors of its first pairs."""
        solution, n_queries = cost.solution, self.test.n_captions + self.test.n_images
        sizes = sorted((4 * (weight.numel() + len(weight)) for weight in solution.weights), reverse=True)
        sides = [side for side in (*solution.images, *solution.texts) if side is not None]
        used = [4 * side.projection.numel() + 12 * len(side.mean) for side in sides]
        roots = [4 * len(side.mean) ** 2 + 12 * len(side.mean) for side in sides] if method.name == "hypernet" else []
        hits = len(solution.pairs) * (n_queries + _PAIR_BYTES)
        return hits + sum(sizes[: n_first(solution)]) + sum(used) + sum(roots)

    def grid_flops(self) -> int:
        """The baseline's text-sided grid: training, and one look at validation."""
        cost = self._forecast(Method("ape", "text", self.config.seed))
        return cost.train_flops + scoring_flops(cost.solution, self.val)

    def _grid(self, name: str) -> Grid:
        split, candidates = self.asked.dataset.splits[name], self.asked.candidates
        images, texts = ([spec.embed_dim or 0 for spec in specs] for specs in (candidates.images, candidates.texts))
        return hollow_grid(images, texts, split.owner)

    def _label_grid(self) -> LabelGrid | None:
        labels = self.asked.labels
        if labels is None:
            return None
        grid, n_prompts = self.train, len(labels.prompts())
        return LabelGrid(
            name=labels.name,
            images=tuple(Hollow((len(labels.labels), rows.shape[1])) for rows in grid.images),
            texts=tuple(Hollow((n_prompts, rows.shape[1])) for rows in grid.texts),
            labels=labels.labels,
            n_classes=len(labels.class_names),
        )

    def _forecast(self, method: Method, pairs: Sequence[tuple[int, int]] | None = None) -> Forecast:
        return forecast(method, self.train, self.pairs if pairs is None else pairs, self.recipe)

    def _embedding(self, spec: EncoderSpec, jobs: Sequence[Job]) -> Step:
        ready = spec.loader == "rows"
        missing = sum(count_missing(job, self.cache_dir) for job in jobs)
        flops, width = round((spec.gflops or 0.0) * 1e9) * missing, spec.embed_dim or 0
        rate = recall_rate(spec, self.cache_dir)
        seconds: float | None = missing / rate if rate else None
        if seconds is None and (spec.gflops is not None or not missing):
            files = spec.modality == "image" and not isinstance(jobs[0].items, Blocks)
            per_row = _SECONDS_PER_ROW + (_SECONDS_PER_FILE / n_cores() if files else 0.0)
            seconds = self._seconds("embedding", flops) + per_row * missing
        cached = sum(len(job.items) for job in jobs) - missing
        what = f"{spec.name}: " + ("ready rows" if ready else f"{missing:,} rows to embed, {cached:,} in the cache")
        disk = 2 * missing * width + _SHARD_BYTES * -(-missing // _SHARD_ROWS)
        memory = 0 if not missing else self.base + 4 * (spec.n_params or 0) + 6 * width * min(missing, _SHARD_ROWS)
        step = self._step("embedding", "", what, flops, seconds, disk=disk, cached=not missing)
        return replace(step, memory_bytes=memory)

    def _promotion(self, steps: Sequence[Step]) -> Step:
        """Samples for everyone, everything for those who stay: at most about so much of what everything would cost."""
        splits, candidates = self.asked.dataset.splits, self.asked.candidates
        samples = draw_samples(splits["train"].owner, splits["val"].owner, seed=self.config.seed)
        whole = count_items(splits.values())
        every = find_prices(candidates).flops(encoders_of(candidates.pair_indices()), whole)
        share = most_flops(candidates, samples, whole) / every if every else 1.0
        missing = sum(step.flops for step in steps)
        sizes = ", ".join(f"{items.n_train:,} + {items.n_val:,}" for items in samples.items)
        what = f"promotion: samples of {sizes} pictures, then everything for who stays, at most; "
        what += f"everything with everyone: {missing / 1e12:.3g} TFLOP"
        return Step(
            stage="embedding",
            method="",
            what=what,
            flops=round(share * missing),
            seconds=share * sum(step.seconds or 0.0 for step in steps),
            disk_bytes=round(share * sum(step.disk_bytes for step in steps)),
            memory_bytes=max(step.memory_bytes for step in steps),
        )

    def _training(self, stage: str, method: Method, cost: Forecast) -> list[Step]:
        if not cost.train_flops:
            return []
        what = pairs_in_words(len(cost.solution.pairs))
        what += f", {cost.n_steps:,} steps" if cost.n_steps else ", emission alone"
        what += ", at most" if stage in ("verification", "polishing") else ""
        seconds = self._seconds("training", cost.train_flops) + self._seconds("optimiser", cost.optimiser_flops)
        steps = [self._step(stage, method.label, what, cost.train_flops, seconds)]
        if cost.n_steps:
            what = f"AdamW, timed with the {stage}"
            steps.append(self._step("optimiser", method.label, what, cost.optimiser_flops, 0.0))
        return steps

    def _validation(self, method: Method, cost: Forecast) -> Step:
        if self.config.task == "zero-shot" and self.labels is not None:
            flops = zero_shot_flops(cost.solution, self.labels, zero_shot_parts(self.labels)[0])
        else:
            flops = scoring_flops(cost.solution, self.val)
        what = "all captions once"
        if cost.n_looks:
            flops += cost.n_looks * watch_flops(cost.solution, self.val)
            what += f", and {cost.n_looks} looks with one each"
        seconds = self._seconds("validation", flops)
        return self._step("validation", method.label, what, flops, seconds)

    def _seconds(self, stage: str, flops: int) -> float:
        return estimate_seconds(stage, flops, self.rate)

    def _step(  # noqa: PLR0913 - the columns of the table
        self,
        stage: str,
        method: str,
        what: str,
        flops: int,
        seconds: float | None,
        *,
        disk: int = 0,
        cached: bool = False,
    ) -> Step:
        height = self.heights.get((stage, method), 0)
        return Step(
            stage=stage,
            method=method,
            what=what,
            flops=flops,
            seconds=seconds,
            disk_bytes=disk,
            memory_bytes=self.base + height if height else 0,
            cached=cached,
        )
