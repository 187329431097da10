"""An index of pictures made, or brought up to date: what is new or changed is embedded, what is gone forgotten.

Pictures that are gone stay in the stock, unfound, until they are a quarter of it; then it is written anew.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.grid import Picked
from hyperalign.embed.locks import make_folder, owned_now
from hyperalign.embed.pictures import choose
from hyperalign.embed.shards import write_record
from hyperalign.use.dual import DualEncoder
from hyperalign.use.gallery import (
    ABOUT,
    ROWS,
    VERSION,
    Root,
    describe,
    hold_against,
    read_about,
    read_manifest,
    read_order,
    write_gallery,
)
from hyperalign.use.index import IndexConfig, Lookup, add_rows, choose_kind, n_to_learn, new_lookup, read_lookup, tune
from hyperalign.use.likeness import likeness
from hyperalign.use.sources import Place, Sources, find_pictures
from hyperalign.use.stock import Stock, compact, read_stock, store_rows

__all__ = ["Updated", "update_gallery"]

Progress = Callable[[str, int, int], None]

MOST_GONE = 0.25  # of the stock, or of the numbers of the Faiss index, before it is written anew
SHARD_ROWS = 1024  # the most that an interruption can cost: half a minute at 30 pictures a second
_FIRST = {ROWS, ".locks"}  # what is made before an index says that it is one
_SUBJECTS = ("a dog", "two children", "a man on a bicycle", "a red car", "an old house", "birds", "food", "a woman")
_PLACES = ("in the snow", "on a beach", "in a city street", "at night", "on the grass", "near the water", "indoors", "")


class Updated(NamedTuple):
    """What an update did.

    Attributes:
        n_pictures: Pictures that can be found now.
        n_new: Pictures that this update embedded.
        n_gone: Pictures that could be found before and are gone, or not as they were.
        bad: Name and reason of each picture that cannot be decoded.
        manifest: What the index is searched by now.
    """

    n_pictures: int
    n_new: int
    n_gone: int
    bad: list[tuple[str, str]]
    manifest: dict[str, Any]


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


def update_gallery(  # noqa: PLR0913 - whose rows, of which pictures, where, how, and who is told
    model: DualEncoder,
    roots: Sequence[Path],
    folder: Path,
    *,
    made_by: Mapping[str, Any],
    strict: bool = False,
    config: IndexConfig | None = None,
    shard_rows: int = SHARD_ROWS,
    progress: Progress = _silent,
) -> Updated:
    """Make an index of pictures, or bring one up to date.

    Args:
        model: The pair.
        roots: Folders, tars and pictures; all that the index was made of and that are still there.
        folder: Of the index; made if it is not there.
        made_by: How the pair is opened again, for `retrieve`.
        strict: Stop at a picture that cannot be decoded.
        config: Which Faiss index, and how.
        shard_rows: Rows per shard.
        progress: Told `(stage, done, total)`.

    Raises:
        ValueError: If the folder is no index, or one of another model, of other pictures or of a newer release; or
            none of the pictures can be decoded.
    """
    config = config or IndexConfig()
    known, me = _known(folder), likeness(model)
    if known:
        hold_against(known, me, folder)
    sources = find_pictures(roots, memory=folder if known else None, progress=progress)
    slots, all_roots = _slots(folder, roots, known)
    make_folder(folder, "--to")
    make_folder(folder / ROWS, "--to")
    with _owned(folder):
        about = {"version": VERSION, "model": known.get("model", me), "made_by": dict(made_by)}
        write_record(folder / ABOUT, {**about, "roots": [root._asdict() for root in all_roots]})
        wanted = [place._replace(root=slots[place.root]) for place in sources.places]
        n_new = _embed_missing(model, sources, wanted, folder / ROWS, strict, shard_rows, progress)
        stock = read_stock(folder / ROWS)
        before, n_gone = _before(folder, stock, wanted)
        if len(stock.places) - len(wanted) > MOST_GONE * len(stock.places):
            at = stock.latest()
            keep = np.array(sorted(at[place] for place in wanted), dtype=np.int64)
            compact(folder / ROWS, stock, keep, shard_rows=shard_rows, progress=progress)
            before, stock = {}, read_stock(folder / ROWS)
        manifest = _build(model, folder, stock, wanted, before, config, progress)
    at = stock.latest()
    bad = [(_shown(all_roots, place), stock.bad[at[place]]) for place in wanted if at[place] in stock.bad]
    return Updated(manifest["n_pictures"], n_new, n_gone, bad, manifest)


def _known(folder: Path) -> dict[str, Any]:
    """What an index says of itself; empty where it is to be made."""
    known = read_about(folder)
    if not known and folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - _FIRST):
        raise ValueError(f"{folder} is there and is no index; choose another folder with --to")
    return known


def _slots(folder: Path, roots: Sequence[Path], known: Mapping[str, Any]) -> tuple[list[int], list[Root]]:
    """Which number each root has in the index, and all roots of the index.

    Raises:
        ValueError: If a root of the index that is still there is not named.
    """
    all_roots = [Root(**root) for root in known.get("roots", [])]
    given = [describe(folder, root) for root in roots]
    named = {root.path for root in given}
    gone = []
    for number, root in enumerate(all_roots):
        if root.path in named:
            continue
        if Path(root.path).exists():
            raise ValueError(f"the index {folder} is of {root.path} too; name it as well, or choose another --to")
        gone.append(number)
    fresh = [root for root in given if root.path not in {one.path for one in all_roots}]
    if len(fresh) == len(gone) == 1:
        all_roots[gone[0]] = fresh[0]  # it was moved
    else:
        all_roots += fresh
    numbers = {root.path: number for number, root in enumerate(all_roots)}
    return [numbers[root.path] for root in given], all_roots


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Be the only process that writes an index."""
    with owned_now(folder, "index", "--to") as ours:
        if not ours:
            raise ValueError(f"another process is writing the index {folder}; wait until it is done")
        yield


def _embed_missing(  # noqa: PLR0913 - whose rows, of what, where to, how, and who is told
    model: DualEncoder,
    sources: Sources,
    wanted: Sequence[Place],
    folder: Path,
    strict: bool,
    shard_rows: int,
    progress: Progress,
) -> int:
    """Embed the pictures that the stock has no row of, shard by shard; how many they were."""
    known = read_stock(folder).latest()
    missing = np.array([n for n, place in enumerate(wanted) if place not in known], dtype=np.int64)
    pictures = choose(sources.pictures, missing)
    for low in range(0, len(missing), shard_rows):
        high = min(low + shard_rows, len(missing))

        def tell(done: int, low: int = low) -> None:
            progress("embedding pictures", low + done, len(missing))

        rows, bad = model.encode_pictures(pictures, low, high, tell=tell)
        for number, reason in bad[:1] if strict else ():
            path = sources.path(int(missing[number]))
            raise ValueError(f"with --strict every picture must be readable, and {path} is not: {reason}")
        places = [wanted[n] for n in missing[low:high].tolist()]
        store_rows(folder, rows.numpy(), places, [(number - low, reason) for number, reason in bad])
    return len(missing)


def _before(folder: Path, stock: Stock, wanted: Sequence[Place]) -> tuple[dict[str, Any], int]:
    """The manifest as far as it still holds, and how many of its pictures are not wanted any more."""
    manifest = read_manifest(folder)
    parts = manifest.get("parts", [])
    if not manifest or parts != [_part_record(part) for part in stock.parts[: len(parts)]]:
        return {}, 0
    try:
        order, there = read_order(folder, manifest), set(wanted)
    except ValueError:
        return {}, 0  # damaged: it is built again
    return manifest, sum(stock.places[row] not in there for row in order[order >= 0].tolist())


def _build(  # noqa: PLR0913 - whose rows, where, which, what was there before, how, and who is told
    model: DualEncoder,
    folder: Path,
    stock: Stock,
    wanted: Sequence[Place],
    before: Mapping[str, Any],
    config: IndexConfig,
    progress: Progress,
) -> dict[str, Any]:
    """Bring the Faiss index up to date, measure what it finds, and write it; the manifest."""
    at = stock.latest()
    live = np.array(sorted({at[place] for place in wanted} - stock.bad.keys()), dtype=np.int64)
    if stock.rows is None or not len(live):
        raise ValueError(f"none of the {len(wanted):,} pictures can be decoded, the first because {_first(stock)}")
    lookup, order = _earlier(folder, live, stock.rows.shape[1], before, config)
    fresh = np.random.default_rng(config.seed).permutation(np.setdiff1d(live, order))
    if before and not len(fresh) and lookup is not None and (order >= 0).sum() == before["n_pictures"]:
        return dict(before)
    if lookup is None:
        sample = stock.rows[fresh[: n_to_learn(choose_kind(len(live), stock.rows.shape[1], config), len(live))]]
        lookup = new_lookup(choose_kind(len(live), stock.rows.shape[1], config), sample, len(live), config)
    n_old, order = len(order), np.concatenate([order, fresh])
    rows = Picked(stock.rows, np.maximum(order, 0))
    n_in = len(order) - min(config.n_held_out, len(fresh) // 4)
    add_rows(lookup, rows, n_old, n_in, progress=progress)
    queries = {"pictures": rows[slice(n_in, None)].astype(np.float32), "captions": _captions(model)}
    if not any(map(len, queries.values())):  # a handful of pictures, and a model that knows none of the words
        queries = {"pictures": rows[slice(0, n_in)].astype(np.float32)}
    lookup, quality = tune(lookup, rows, queries, config, alive=order[:n_in] >= 0)
    add_rows(lookup, rows, n_in, len(order))
    facts = {
        "n_pictures": len(live),
        "n_stock": len(stock.places),
        "dim": stock.rows.shape[1],
        "shortlist": config.shortlist,
        "quality": quality._asdict(),
        "parts": [_part_record(part) for part in stock.parts],
    }
    return write_gallery(folder, lookup, order, facts)


def _earlier(
    folder: Path, live: NDArray[np.int64], dim: int, before: Mapping[str, Any], config: IndexConfig
) -> tuple[Lookup | None, NDArray[np.int64]]:
    """The Faiss index to go on with and the row behind each number, −1 where it is gone; nothing where none will do."""
    none = None, np.empty(0, dtype=np.int64)
    if not before or before["kind"] != choose_kind(len(live), dim, config):
        return none
    order = read_order(folder, before)
    order = np.where(np.isin(order, live), order, -1)
    if (order < 0).sum() > MOST_GONE * len(order):
        return none
    try:
        lookup = read_lookup(folder / before["lookup_file"], before["kind"], before["effort"])
    except ValueError:
        return none  # damaged: it is built again
    return (lookup, order) if len(lookup) == len(order) else none


def _captions(model: DualEncoder) -> NDArray[np.float32]:
    """(Q, D) rows of captions as people search with; no picture of the index has them."""
    rows = model.encode_text([f"{subject} {place}".strip() for subject in _SUBJECTS for place in _PLACES]).numpy()
    return rows[rows.any(axis=1)]


def _part_record(part: Any) -> dict[str, Any]:
    """A shard as the manifest has it; who cannot be decoded stands in the shard's own record."""
    return {**asdict(part), "bad": []}


def _first(stock: Stock) -> str:
    return next(iter(stock.bad.values()), "there are none")


def _shown(roots: Sequence[Root], place: Place) -> str:
    path = str(Path(roots[place.root].path) / place.name)
    return f"{path}: {place.member}" if place.member else path
