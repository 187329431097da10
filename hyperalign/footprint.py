"""Memory that the parts of a search take, from shapes alone.

What is counted is private memory (Linux calls it RssAnon): what no file stands behind. Rows that are read by memory map
are not in it, the system takes their pages back when it needs them. Each part is counted at its height, above what the
process held when the data was open; parts follow each other, so the search's height is that of the highest.

`_LIBRARIES` and `_ONCE` are measured: what torch, MKL and NumPy take for themselves when they are first used. Blocks
that are freed and not given back are why a set-up takes about a tenth more than its arrays.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.canonical_grid import SetupShapes, setup_shapes
from hyperalign.align.grid import BLOCK, KEEP_BYTES, Grid, PairIndex
from hyperalign.align.polish import alone
from hyperalign.align.solution import Solution
from hyperalign.align.train import TrainConfig
from hyperalign.forecast import Forecast, forecast, sliced_widths
from hyperalign.solve import Method, Recipe, polishing_recipe

__all__ = ["OPENING", "Heights", "SetUp", "ample_bytes", "dearest", "heights", "lacking", "setup_bytes"]

OPENING = "opening rows"
Heights = dict[tuple[str, str], int]  # by stage of the ledger, or `OPENING`, and method

_LIBRARIES = 40 * 10**6  # taken by the first set-up or training, and half of it stays
_ONCE = 15 * 10**6  # taken by each scoring
_FRAGMENTS = 1.1
_ITEM = 4  # bytes of a float32
_READ = 22  # bytes for each number of a block of rows: as stored, as float32, as unit vector, its features, centred
_SIMILARITIES = 64 * 2**20  # held at a time
_SAMPLE = 1000  # items of the training-free scores
_RESAMPLES, _WEIGHTS = 2_000, 2**22  # of the bootstrap, and numbers drawn at a time


_CHEAPER = {  # what to give, by what is too high
    "set-up": "`max_features` under [canonical] of --config, or --limit",
    "training": "a smaller --batch-size or --pairs-per-step, or --limit",
    "verification": "a smaller --baseline-batch-size, or --verify 0",
    "polishing": "--polish 0",
}


class SetUp(NamedTuple):
    """Memory of the set-up.

    Attributes:
        height: Its most.
        left: What stays until the last method has finished.
    """

    height: int
    left: int


def heights(  # noqa: PLR0913 - the parts of a search
    made: Sequence[tuple[Method, Forecast]],
    train: Grid,
    val: Grid,
    test: Grid,
    recipe: Recipe,
    tried: Sequence[PairIndex],
    polished: Sequence[PairIndex],
) -> Heights:
    """The height of every part of a search, above what the process holds when the data is open.

    Args:
        made: The methods, and what each will do.
        train: Rows to learn from; of this and the others nothing but shapes is looked at.
        val: Rows to choose by.
        test: Rows to report on.
        recipe: How each method is trained.
        tried: Pairs that the baseline may be asked to verify.
        polished: Pairs that are polished together; `dearest` where they are not known yet.
    """
    found: Heights = {(OPENING, ""): _opening_bytes((train, val, test))}
    held = 0
    for method, cost in made:
        if cost.setup_flops and not held:
            setup = setup_bytes(train, recipe.canonical)
            found["set-up", method.label], held = setup.height, setup.left
        found["training", method.label] = held + _trained_bytes(method, cost, train, recipe)
        found["validation", method.label] = held + _scoring_bytes(cost.solution, val, n_depths=1)
    held = max(held, _LIBRARIES // 2) + sum(_solution_bytes(cost.solution) for _, cost in made)
    if tried:
        found["verification", "ape · text"] = held + _tried_bytes(train, tried, recipe.ape)
    if polished:
        found["polishing", "polished · both"] = held + _polishing_bytes(train, polished, recipe)
    found["test evaluation", ""] = held + _free_bytes(train)
    for method, cost in made:
        found["test evaluation", method.label] = held + _testing_bytes(cost.solution, test)
        held += _ITEM * len(cost.solution.pairs) * (test.n_images + test.n_captions)
    return found


def dearest(grid: Grid, pairs: Sequence[PairIndex]) -> list[PairIndex]:
    """Pairs by the size of a connector between their rows, the largest first."""
    return sorted(pairs, key=lambda pair: -grid.images[pair[0]].shape[1] * grid.texts[pair[1]].shape[1])


def ample_bytes(train: Grid, test: Grid, recipe: Recipe, methods: Sequence[Method]) -> int:
    """Memory that no search over such rows needs, found without building a network as `heights` does.

    Args:
        train: Rows to learn from.
        test: The larger of the other splits.
        recipe: How each method is trained.
        methods: Which will run.
    """
    rows = sum(_ITEM * rows.shape[0] * rows.shape[1] for grid in (train, test) for rows in (*grid.images, *grid.texts))
    widest = max(rows.shape[1] for rows in train.images) * max(rows.shape[1] for rows in train.texts)
    connectors = 4 * _ITEM * len(train.images) * len(train.texts) * widest * len(methods)
    sliced = 5 * _ITEM * 512 * widest * any(method.name == "hypernet-sliced" for method in methods)
    return setup_bytes(train, recipe.canonical).height + rows + connectors + sliced + 10**9


def lacking(found: Heights, free: int | None) -> str:
    """Whether the highest part of a search needs more than is free, and what takes less, in one sentence.

    Args:
        found: As `heights` gives it.
        free: Bytes; None where it is not known.

    Returns:
        Nothing where it fits.
    """
    stage, method = max(found, key=lambda part: found[part])
    need = found[stage, method]
    if free is None or need <= free:
        return ""
    whose = f" of {method}" if method else ""
    return (
        f"this search would take about {need / 1e9:.1f} GB of memory for its {stage}{whose}, and {free / 1e9:.1f} GB "
        f"are free; {_CHEAPER.get(stage, '--limit')} takes less, and so do fewer encoders"
    )


def _trained_bytes(method: Method, cost: Forecast, grid: Grid, recipe: Recipe) -> int:
    """The training of one method, by what it keeps."""
    if method.name == "ape" and method.sides == "text":
        return _tried_bytes(grid, cost.solution.pairs, recipe.ape) + _solution_bytes(cost.solution)
    if method.name == "hypernet-sliced":
        tables = [_ITEM * rows.shape[0] * rows.shape[1] for rows in grid.images]
        texts = [_ITEM * rows.shape[0] * rows.shape[1] for rows in grid.texts]
        kept = sum(size for size in tables if size <= KEEP_BYTES // len(tables)) + 2 * max(texts)
        n_params = max(a * b for j in range(len(texts)) for a, b in [sliced_widths(grid, j)[-2:]])
        return kept + 5 * _ITEM * n_params + _solution_bytes(cost.solution) + _LIBRARIES
    config = {"hypernet": recipe.residual, "ape": recipe.ape_both}.get(method.name)
    if config is None:  # no step is taken
        return 3 * _solution_bytes(cost.solution) + _LIBRARIES
    return _training_bytes(grid, cost.solution, config, rank=setup_shapes(grid, recipe.canonical).rank)


def _opening_bytes(grids: Sequence[Grid]) -> int:
    """Looking once through all rows, a block of one table at a time, and a byte for each row."""
    n_flags = sum(grid.image_ok.size + grid.text_ok.size for grid in grids)
    return n_flags + max(_block_bytes(grid) for grid in grids)


def setup_bytes(grid: Grid, config: CanonicalConfig) -> SetUp:
    """Canonical coordinates and the connectors in closed form.

    Args:
        grid: Of the training split; its rows are not looked at.
        config: How coordinates are made.
    """
    shapes = setup_shapes(grid, config)
    features, coordinates = _kept_numbers(grid, shapes)
    every = [*shapes.image_features, *shapes.text_features]
    roots = sum(width**2 for width in every)
    cross = len(grid.images) * len(grid.texts) * shapes.rank**2
    rows, block = min(grid.n_images, BLOCK), _block_bytes(grid)
    targets, n_text = shapes.targets, sum(shapes.text_features)
    finding = 3 * rows * n_text + sum(shapes.image_features) * targets.n_text_targets
    if targets.mixes_texts:
        finding += 2 * sum(targets.sampled) * n_text
    reading = _ITEM * grid.n_images * max(every) if shapes.keeps else 0
    heights = (
        _ITEM * features + reading + block,
        _ITEM * (features + finding) + (0 if shapes.keeps else block),
        _ITEM * (features + coordinates + cross) + block,
    )
    left = _ITEM * (coordinates + cross + roots + shapes.rank * sum(every))  # directions last
    return SetUp(round(_FRAGMENTS * (max(heights) + _ITEM * roots)) + _LIBRARIES, left + _LIBRARIES // 2)


def _training_bytes(grid: Grid, solution: Solution, config: TrainConfig, *, rank: int) -> int:
    """Steps of a network over the grid, its connectors and the file they are kept in.

    Args:
        grid: Of the training split.
        solution: The connectors, without numbers.
        config: How it is trained.
        rank: Coordinates that a step works in.
    """
    batch, n_pairs = min(config.batch_size, grid.n_images), min(config.pairs_per_step, len(grid.images))
    logits = 3 * n_pairs * batch**2
    rows = 8 * (n_pairs + 1) * batch * rank
    weights = 12 * (len(grid.images) + len(grid.texts)) * rank**2
    return _ITEM * (logits + rows + weights) + 3 * _solution_bytes(solution) + _LIBRARIES


def _tried_bytes(grid: Grid, pairs: Sequence[PairIndex], config: TrainConfig) -> int:
    """The baseline on single pairs: both tables as float32 where they are small, a connector with its optimiser."""
    batch = min(config.batch_size, grid.n_images)
    most = 0
    for i, j in pairs:
        sizes = [_ITEM * rows.shape[0] * rows.shape[1] for rows in (grid.images[i], grid.texts[j])]
        small = [size for size in sizes if size <= KEEP_BYTES]
        widths = grid.images[i].shape[1], grid.texts[j].shape[1]
        step = 3 * batch**2 + 6 * batch * sum(widths) + 5 * widths[0] * widths[1]
        most = max(most, sum(small) + max(small, default=0) + _ITEM * step)
    return most + _LIBRARIES


def _polishing_bytes(grid: Grid, pairs: Sequence[PairIndex], recipe: Recipe) -> int:
    """Coordinates that the pairs share, and their training."""
    own, (part, among) = polishing_recipe(recipe), alone(grid, pairs)
    setup, cost = setup_bytes(part, own.canonical), forecast(Method("ape", "both", 0), part, among, own)
    rank = setup_shapes(part, own.canonical).rank
    return max(setup.height, setup.left + _training_bytes(part, cost.solution, own.ape_both, rank=rank))


def _scoring_bytes(solution: Solution, grid: Grid, *, n_depths: int) -> int:
    """Coordinates of all encoders, and a block of similarities with what is made of it.

    Args:
        solution: The connectors, without numbers.
        grid: Whose rows are scored.
        n_depths: Depths k; one alone takes a shorter way.
    """
    held = 0
    for tables, sides in ((grid.images, solution.images), (grid.texts, solution.texts)):
        widths = [
            rows.shape[1] if side is None else side.projection.shape[1]
            for rows, side in zip(tables, sides, strict=True)
        ]
        held += _ITEM * tables[0].shape[0] * (sum(widths) + max(widths))
    similarities = min(_ITEM * grid.n_images * grid.n_captions, _SIMILARITIES)
    return held + _block_bytes(grid) + round((2.5 if n_depths == 1 else 3.25) * similarities) + _ONCE


def _testing_bytes(solution: Solution, grid: Grid, *, n_depths: int = 3) -> int:
    """Scoring on the test items, or the bootstrap over them, whichever is higher; hits of all pairs stay."""
    n_pairs, n_queries = len(solution.pairs), grid.n_images + grid.n_captions
    hits = _ITEM * n_pairs * n_queries
    scoring = _scoring_bytes(solution, grid, n_depths=n_depths)
    weights = 12 * min(_RESAMPLES * grid.n_images, _WEIGHTS)
    resampling = 3 * hits + weights + 12 * _RESAMPLES * n_pairs + _ONCE
    return hits + max(scoring, resampling)


def _free_bytes(grid: Grid) -> int:
    """Training-free scores: Gram matrices and neighbours of a sample, of all texts and one picture encoder."""
    n_items = min(_SAMPLE, grid.n_images)
    n_captions = n_items * grid.n_captions // grid.n_images
    widest = max(rows.shape[1] for rows in (*grid.images, *grid.texts))
    return _ITEM * ((3 * len(grid.texts) + 12) * n_items**2 + 4 * n_captions * widest) + _ONCE


def _solution_bytes(solution: Solution) -> int:
    """Size of connectors and whitenings."""
    numbers = sum(weight.numel() + len(weight) for weight in solution.weights)
    sides = [side for side in (*solution.images, *solution.texts) if side is not None]
    return _ITEM * (numbers + sum(side.projection.numel() for side in sides))


def _kept_numbers(grid: Grid, shapes: SetupShapes) -> tuple[int, int]:
    """Numbers of rows and of coordinates that stay in memory; none where they are made again."""
    if not shapes.keeps:
        return 0, 0
    features = grid.n_images * (sum(shapes.image_features) + sum(shapes.text_features))
    coordinates = shapes.rank * (grid.n_images * len(grid.images) + grid.n_captions * len(grid.texts))
    return features, coordinates


def _block_bytes(grid: Grid) -> int:
    """A block of the widest table while it is made ready."""
    return max(_READ * min(rows.shape[0], BLOCK) * rows.shape[1] for rows in (*grid.images, *grid.texts))
