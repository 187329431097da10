"""A folder of embedded pictures that can be searched.

    INDEX/  index.json, rows/part-00000.npy, …, order-2.npy, lookup-2.faiss, manifest.json

`index.json` says whose rows these are and of which folders of pictures; it is written first. Rows come shard by shard
(see `stock`). The manifest comes last and names the order and the Faiss index that belong together, so that an update
that is cut short leaves what was there before it. Nothing in the folder depends on where it lies.
"""

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.grid import Picked
from hyperalign.embed.plain import misfit
from hyperalign.embed.shards import Part, Rows, read_array, read_record, write_record
from hyperalign.run import write_whole
from hyperalign.use.index import Lookup, Quality, find, read_lookup, write_lookup
from hyperalign.use.likeness import is_like
from hyperalign.use.sources import Place
from hyperalign.use.stock import place_of

__all__ = [
    "ABOUT",
    "Gallery",
    "Match",
    "Root",
    "describe",
    "hold_against",
    "open_gallery",
    "read_about",
    "read_manifest",
    "read_order",
    "search_gallery",
    "write_gallery",
]

ABOUT, MANIFEST, ROWS = "index.json", "manifest.json", "rows"
_FILE: Final = re.compile(r"(order-\d{1,9}\.npy|lookup-\d{1,9}\.faiss)")
_SHORTLISTS: Final = range(1, 10_001)
VERSION: Final = 1  # of the folder; a release reads its own and all earlier ones


class Root(NamedTuple):
    """A folder, a tar or a picture that an index was made of.

    Attributes:
        path: Where it lies.
        relative: Where it lies as seen from the index; empty where that cannot be said (another drive).
    """

    path: str
    relative: str

    def find(self, folder: Path) -> Path:
        """Where it lies now: where it was, else where it was as seen from the index in `folder`."""
        there = Path(self.path)
        beside = Path(os.path.normpath(folder.absolute() / self.relative)) if self.relative else there
        return beside if beside.exists() and not there.exists() else there


class _Model(TypedDict):
    name: str
    dim: int
    rows: list[list[float]]


class _Root(TypedDict):
    path: str
    relative: str


class _MadeBy(TypedDict):
    path: str
    pair: str | None


class _About(TypedDict):
    version: int
    model: _Model
    made_by: _MadeBy
    roots: list[_Root]


class _Quality(TypedDict):
    recall: dict[str, float]
    n_queries: dict[str, int]
    query_seconds: float
    exact_seconds: float
    enough: bool


class _Manifest(TypedDict):
    n_pictures: int
    n_stock: int
    dim: int
    shortlist: int
    quality: _Quality
    parts: list[dict[str, Any]]
    generation: int
    kind: Literal["flat", "hnsw", "ivf-pq"]
    effort: int
    order_file: str
    lookup_file: str


class Match(NamedTuple):
    """One picture that was found.

    Attributes:
        path: The file in which it lies.
        member: Its name there, where the file is a tar; else empty.
        similarity: Cosine with the query, in [-1, 1].
    """

    path: Path
    member: str
    similarity: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Gallery:
    """An index that can be searched.

    Attributes:
        folder: Where it lies.
        about: `index.json`.
        manifest: `manifest.json`.
        lookup: The Faiss index.
        order: (n,) row of the stock behind each of its numbers; -1 where the picture is gone.
        rows: (n_stock, D) the stock.
    """

    folder: Path
    about: Mapping[str, Any]
    manifest: Mapping[str, Any]
    lookup: Lookup
    order: NDArray[np.int64]
    rows: Rows

    @property
    def quality(self) -> Quality:
        """What a search gives, held against looking at every row."""
        return Quality(**self.manifest["quality"])


def describe(folder: Path, root: Path) -> Root:
    """A root as `index.json` has it."""
    path = root.expanduser().absolute()
    try:
        relative = os.path.relpath(path.resolve(), folder.resolve())
    except ValueError:  # on another drive of Windows
        relative = ""
    return Root(str(path), relative)


def read_about(folder: Path) -> dict[str, Any]:
    """`index.json` of a folder; empty where it has none.

    Raises:
        ValueError: If it is damaged or was written by a newer release.
    """
    if not (folder / ABOUT).exists():
        return {}
    about = read_record(folder / ABOUT)
    newer = about is not None and isinstance(about.get("version"), int) and about["version"] > VERSION
    if about is None or (not newer and misfit(about, _About) is not None):
        raise ValueError(f"{folder / ABOUT} is damaged; remove {folder} and make the index again")
    if newer:
        raise ValueError(
            f"{folder} was written by a newer release (version {about['version']} of an index, this one reads "
            f"{VERSION}): upgrade hyperalign"
        )
    return about


def read_manifest(folder: Path) -> dict[str, Any]:
    """`manifest.json` of an index; empty where it was never finished or is damaged, and must be built again."""
    manifest = read_record(folder / MANIFEST)
    if manifest is None or misfit(manifest, _Manifest) is not None or manifest["shortlist"] not in _SHORTLISTS:
        return {}
    names = [manifest[name] for name in ("order_file", "lookup_file")]
    if not all(_FILE.fullmatch(name) and (folder / name).is_file() for name in names):
        return {}
    try:
        parts = [Part.from_record(part) for part in manifest["parts"]]
    except ValueError:
        return {}
    sound = [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])] if parts else False
    return manifest if sound and {part.dim for part in parts} == {manifest["dim"]} else {}


def open_gallery(folder: Path) -> Gallery:
    """Open an index to search in it.

    Raises:
        FileNotFoundError: If the folder is no index.
        ValueError: If it was never finished, is damaged, or was written by a newer release.
    """
    about = read_about(folder)
    if not about:
        why = "there is no such folder" if not folder.is_dir() else f"it has no {ABOUT}"
        raise FileNotFoundError(f"{folder} is no index of pictures: {why}; `hyperalign index` makes one")
    manifest = read_manifest(folder)
    if not manifest:
        raise ValueError(f"the index {folder} was never finished; the same `hyperalign index` goes on with it")
    lookup = read_lookup(folder / manifest["lookup_file"], manifest["kind"], manifest["effort"])
    parts = [Part.from_record(part) for part in manifest["parts"]]
    order = read_order(folder, manifest)
    if len(order) != len(lookup) or lookup.index.d != manifest["dim"]:
        raise ValueError(f"the index {folder} is damaged; remove its {MANIFEST} and run `hyperalign index` again")
    rows = Rows(folder / ROWS, parts, checked=True)  # an update compares their checksums
    return Gallery(folder=folder, about=about, manifest=manifest, lookup=lookup, order=order, rows=rows)


def read_order(folder: Path, manifest: Mapping[str, Any]) -> NDArray[np.int64]:
    """(n,) row of the stock behind each number of the Faiss index, -1 where the picture is gone.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        order = read_array(folder / manifest["order_file"], mapped=False)
    except ValueError as error:
        raise ValueError(f"{error}; remove {folder / MANIFEST} and run `hyperalign index` again") from None
    n_stock = manifest["parts"][-1]["stop"]
    if order.ndim != 1 or order.dtype != np.int64 or not ((order >= -1) & (order < n_stock)).all():
        raise ValueError(f"{folder / manifest['order_file']} is damaged; remove it and run `hyperalign index` again")
    return order


def write_gallery(folder: Path, lookup: Lookup, order: NDArray[np.int64], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write what an index is searched by, the manifest last, and remove what it replaces.

    Args:
        folder: Of the index.
        lookup: The Faiss index.
        order: (n,) row of the stock behind each of its numbers.
        facts: What else the manifest says.

    Returns:
        The manifest.
    """
    generation = 1 + read_manifest(folder).get("generation", 0)
    while any((folder / name).exists() for name in (f"order-{generation}.npy", f"lookup-{generation}.faiss")):
        generation += 1  # of an update that was cut short
    manifest = {
        **facts,
        "generation": generation,
        "kind": lookup.kind,
        "effort": lookup.effort,
        "order_file": f"order-{generation}.npy",
        "lookup_file": f"lookup-{generation}.faiss",
    }
    buffer = io.BytesIO()
    np.save(buffer, order, allow_pickle=False)
    write_whole(folder / manifest["order_file"], buffer.getvalue())
    write_lookup(lookup, folder / manifest["lookup_file"])
    write_record(folder / MANIFEST, manifest)
    for path in [*folder.glob("order-*.npy"), *folder.glob("lookup-*.faiss"), *folder.glob(".*.tmp")]:
        if path.name not in (manifest["order_file"], manifest["lookup_file"]):
            path.unlink()
    return manifest


def search_gallery(gallery: Gallery, queries: NDArray[np.float32], k: int) -> list[list[Match]]:
    """The k pictures most similar to each query, most similar first; fewer where there are fewer.

    Args:
        gallery: Where.
        queries: (Q, D), unit rows.
        k: How many, at least 1.
    """
    if k < 1:
        raise ValueError(f"a query finds at least 1 picture, got k = {k}")
    alive = gallery.order >= 0
    rows = Picked(gallery.rows, np.maximum(gallery.order, 0)) if gallery.lookup.kind == "ivf-pq" else None
    found = find(gallery.lookup, queries, k, alive=alive, rows=rows, shortlist=gallery.manifest["shortlist"])
    return [
        [
            Match(_root(gallery, place).find(gallery.folder) / place.name, place.member, min(1.0, float(similarity)))
            for place, similarity in zip(_places(gallery, ids[ids >= 0]), similarities[ids >= 0], strict=True)
        ]
        for ids, similarities in zip(found.ids, found.similarities, strict=True)
    ]


def hold_against(about: Mapping[str, Any], likeness: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model that gives other rows than the one an index was made with."""
    if is_like(about["model"], likeness):
        return
    made, given = about["model"]["name"], likeness["name"]
    other = f"this is another {given}" if made == given else f"got {given}"
    raise ValueError(f"the index {folder} was made with {made} and knows no other model's rows, {other}")


def _root(gallery: Gallery, place: Place) -> Root:
    roots = gallery.about["roots"]
    if not 0 <= place.root < len(roots):
        raise ValueError(f"the index {gallery.folder} is damaged: it does not know where {place.name!r} lies")
    return Root(**roots[place.root])


def _places(gallery: Gallery, ids: NDArray[np.int64]) -> list[Place]:
    parts = [(part["file"], part["start"], part["stop"]) for part in gallery.manifest["parts"]]
    return list(place_of(gallery.folder / ROWS, parts, gallery.order[ids].tolist()))
