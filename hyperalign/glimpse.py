"""A few test captions, and the pictures that the first pairs of a finished run retrieve for them.

They are kept in the run as `pictures.json`, so that its page is drawn from the run's folder alone. The captions are
spread evenly over the test set, the same ones whenever they are asked for.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.solution import Solution
from hyperalign.candidates import Candidates
from hyperalign.embed.cache import Entry
from hyperalign.embed.data import Split, surviving
from hyperalign.embed.pictures import Pictures
from hyperalign.grids import open_grid
from hyperalign.packing import restrict, unpack
from hyperalign.prepare import fill_cache
from hyperalign.promote import narrow
from hyperalign.record import PICTURES, to_json
from hyperalign.request import SearchConfig
from hyperalign.run import Run, load_tensors, read_log, write_whole
from hyperalign.scoring import nearest_images
from hyperalign.search import ask

__all__ = ["take_glimpse"]

N_CAPTIONS = 6
N_FOUND = 4  # pictures of each pair for each caption
_SIDE = 96  # pixels of a thumbnail
_QUALITY = 55  # of its JPEG: about 2 kB
_MOST_BYTES = 480_000  # of all thumbnails, in base 64; captions are left out until they fit

Progress = Callable[[str, int, int], None]
_Names = tuple[str, str]


def take_glimpse(run: Run, config: SearchConfig, *, cache_dir: Path, progress: Progress) -> Path:
    """Retrieve pictures for a few test captions with each pair whose connector the run has kept; write them into it.

    Rows of the test set that the cache lacks are embedded.

    Args:
        run: A finished run.
        config: What it was asked for.
        cache_dir: Where embeddings are kept.
        progress: Told `(stage, done, total)`.

    Returns:
        Path of `pictures.json`: captions with the place of their own picture among the thumbnails, thumbnails as
        JPEG in base 64, and for each pair, by name, the places of the pictures found for each caption.

    Raises:
        FileNotFoundError: If the run has kept no connectors.
        ValueError: If data or encoders are no longer those of the run.
    """
    solution, names = _kept_solution(run)
    asked = ask(config, cache_dir=cache_dir, progress=progress)
    split = asked.dataset.splits["test"]
    _hold_to_data(run, split)
    solution, candidates, names = _among(solution, names, asked.candidates, run.path)
    own = {spec.name for spec in (*candidates.images, *candidates.texts)}
    jobs = [job for job in asked.jobs if job.part == "test" and job.spec.name in own]
    entries, *_ = fill_cache(jobs, cache_dir=cache_dir, progress=progress, autocast=config.autocast)
    grid = open_grid(candidates, split, entries, [], strict=False, of=asked.dataset.name)
    opened = (entries[spec.name, "test"] for spec in candidates.images)
    left = surviving(split, {index for entry in opened if isinstance(entry, Entry) for index in entry.bad})
    captions = np.unique(np.linspace(0, len(left.captions) - 1, N_CAPTIONS).round().astype(np.int64))
    found = nearest_images(solution, grid, captions, N_FOUND)
    record = _record(split, left.captions[captions], left.images, grid.owner[captions], found, names)
    write_whole(run.path / PICTURES, to_json(record).encode())
    return run.path / PICTURES


def _kept_solution(run: Run) -> tuple[Solution, list[_Names]]:
    """Connectors of the first pairs and their names, as the search has left them."""
    record = next((line for line in read_log(run.path) if line.get("event") == "connectors"), None)
    if record is None:
        raise FileNotFoundError(f"the run {run.path} has kept no connectors to retrieve with; search anew")
    solution = unpack(load_tensors(run.path / "connectors.safetensors"), record["solution"])
    return solution, [(record["images"][i], record["texts"][j]) for i, j in solution.pairs]


def _hold_to_data(run: Run, split: Split) -> None:
    known = run.result.get("data", {}).get("splits", {}).get("test", {})
    if (known.get("image_digest"), known.get("text_digest")) != (split.image_digest, split.text_digest):
        raise ValueError(f"the test data of {run.path} have changed since the search; search anew for their pictures")


def _among(
    solution: Solution, names: Sequence[_Names], candidates: Candidates, path: Path
) -> tuple[Solution, Candidates, list[_Names]]:
    """The pairs whose encoders the zoo still has, numbered as these encoders are."""
    images, texts = ({spec.name: k for k, spec in enumerate(side)} for side in (candidates.images, candidates.texts))
    there = [n for n, (image, text) in enumerate(names) if image in images and text in texts]
    if not there:
        raise ValueError(
            f"the zoo has none of the encoders whose connectors {path} has kept, first {'+'.join(names[0])}"
        )
    kept = [names[n] for n in there]
    few = narrow(candidates, [(images[image], texts[text]) for image, text in kept])
    places = [{spec.name: k for k, spec in enumerate(side)} for side in (few.images, few.texts)]
    before = {
        name: k for pair, own in zip(names, solution.pairs, strict=True) for name, k in zip(pair, own, strict=True)
    }
    chosen = restrict(solution, [solution.pairs[n] for n in there])
    renumbered = replace(
        chosen,
        pairs=[(places[0][image], places[1][text]) for image, text in kept],
        images=[solution.images[before[spec.name]] for spec in few.images],
        texts=[solution.texts[before[spec.name]] for spec in few.texts],
    )
    return renumbered, few, kept


def _record(
    split: Split,
    captions: NDArray[np.int64],
    pictures: NDArray[np.int64],
    owner: NDArray[np.int64],
    found: Sequence[NDArray[np.int64]],
    names: Sequence[_Names],
) -> dict[str, Any]:
    """Captions, thumbnails and places, as few captions as fit."""
    thumbnails: dict[int, str] = {}
    n_kept, n_bytes = 0, 0
    for k in range(len(captions)):
        wanted = dict.fromkeys([int(owner[k]), *(int(place) for own in found for place in own[k])])
        new = {place: _thumbnail(split.pictures, int(pictures[place])) for place in wanted if place not in thumbnails}
        n_bytes += sum(map(len, new.values()))
        if n_kept and n_bytes > _MOST_BYTES:
            break
        thumbnails |= new
        n_kept += 1
    order = {place: n for n, place in enumerate(thumbnails)}
    return {
        "captions": [
            {"caption": split.captions[int(captions[k])], "image": order[int(owner[k])]} for k in range(n_kept)
        ],
        "thumbnails": list(thumbnails.values()),
        "pairs": {
            "+".join(pair): [[order[int(place)] for place in own[k]] for k in range(n_kept)]
            for pair, own in zip(names, found, strict=True)
        },
    }


def _thumbnail(pictures: Pictures, index: int) -> str:
    """A picture at a size that a page can hold many of, as JPEG in base 64."""
    picture = pictures[index].convert("RGB")
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
