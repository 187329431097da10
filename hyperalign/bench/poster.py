"""Best score against FLOPs for zoos that grow, and by classes of scale: the two figures of the method's poster.

The baseline's pairs are independent, so one grid of it serves every part of the zoo, at the cost from shapes of that
part; the hypernetwork is trained on each part anew.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.bench.costs import announce, foresee
from hyperalign.bench.opened import Opened, open_bench
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.bench.trials import Trial, Trials, part_of, setting_of
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.solve import Method

__all__ = ["classes", "growing", "measure"]

_STEP = 3  # image encoders by which a zoo grows
_MOST = 30  # the poster's largest zoo
_MILLION = 1_000_000


class _Part(NamedTuple):
    """A search among some of the image encoders, by one method and seed.

    Attributes:
        pairs: (P,) indices of its pairs among those of the whole grid.
        validation: (P,) by which it chooses.
        test: (P,) its own scores.
        search_flops: Its cost.
    """

    pairs: NDArray[np.int64]
    validation: NDArray[np.float64]
    test: NDArray[np.float64]
    search_flops: int

    @property
    def chosen(self) -> int:
        """Its best pair on validation, among those of the whole grid."""
        return int(self.pairs[self.validation.argmax()])


def measure(asked: Asked) -> list[Sheet]:
    """Search every part of the zoo by the baseline and by the hypernetwork.

    Returns:
        Best score and cost for zoos that grow in the order of the zoo; and for each class of scale the best pair.
    """
    searching = _Searching(asked, open_bench(asked))
    images = searching.opened.candidates.images
    sizes = {f"{n} image encoders": list(range(n)) for n in growing(len(images))}
    scales = classes(images)
    foreseen = searching.announce([*sizes.values(), *scales.values()])
    growth = [row for name, part in sizes.items() for row in searching.rows(name, part)]
    scale = [row for name, part in scales.items() for row in searching.rows(name, part)]
    notes = [
        "best pair: chosen on validation by each method and seed; own_score is its test score by that method, "
        "ape_score in the mean of ape · text over seeds",
        f"{searching.settings()}; costs are set-up, training and validation; flops_ratio is ape · text over the method",
    ]
    return [
        Sheet("best score against FLOPs, zoos that grow in the order of the zoo", growth, notes),
        Sheet("by scale of the image encoder", scale, [*notes[:1], *searching.trials.notes(foreseen)]),
    ]


def growing(n_images: int) -> list[int]:
    """Sizes of zoos that grow: 12 to 30 where there are more than twelve, else from 3 to what there is."""
    if n_images < _STEP:
        return [n_images]
    first, last = (12 if n_images > 12 else _STEP), min(n_images, _MOST)
    sizes = list(range(first, last + 1, _STEP))
    return sizes if sizes[-1] == last else [*sizes, last]


def classes(images: Sequence[EncoderSpec]) -> Mapping[str, list[int]]:
    """Image encoders by width and by parameters, each class with its indices; empty classes are left out.

    Args:
        images: With facts known.
    """
    widths = sorted({spec.embed_dim for spec in images if spec.embed_dim is not None})
    found = {f"width {w:,}": [i for i, spec in enumerate(images) if spec.embed_dim == w] for w in widths}
    sized = [(i, spec.n_params) for i, spec in enumerate(images) if spec.n_params is not None]
    found["below 30M"] = [i for i, size in sized if size < 30 * _MILLION]
    found["30M to 120M"] = [i for i, size in sized if 30 * _MILLION <= size <= 120 * _MILLION]
    found["above 120M"] = [i for i, size in sized if size > 120 * _MILLION]
    return {words: part for words, part in found.items() if part}


class _Searching:
    """Searches among parts of a zoo; the baseline's grid is trained once for each seed."""

    def __init__(self, asked: Asked, opened: Opened) -> None:
        self.asked, self.opened, self.trials = asked, opened, Trials("poster", asked)
        self.recipe, self.pairs = asked.config.recipe(), opened.candidates.pair_indices()
        self._grid: list[Trial] = []

    def announce(self, parts: Sequence[list[int]]) -> str:
        """Say what all of it will cost."""
        once = [foresee(self.opened, self._method("ape", 0), self.recipe, task=self.asked.config.task)]
        for part in {tuple(part) for part in parts}:
            small = part_of(self.opened, part)
            once.append(foresee(small, self._method("hypernet", 0), self.recipe, task=self.asked.config.task))
        return announce(self.asked.n_seeds * once, self.asked.say)

    def settings(self) -> str:
        """How both are trained."""
        return "; ".join(f"{name}: {setting_of(self._method(name, 0), self.recipe)}" for name in ("ape", "hypernet"))

    def rows(self, words: str, images: list[int]) -> list[dict[str, Any]]:
        """Both methods among some image encoders, a row for each seed."""
        truth = np.mean([trial.test for trial in self.grid()], axis=0)
        candidates, rows = self.opened.candidates, []
        cost = self._ape_flops(images)
        for name, search in (("ape", self._ape), ("hypernet", self._hypernet)):
            for n, seed in enumerate(self.asked.seeds()):
                part = search(images, n, seed)
                i, j = self.pairs[part.chosen]
                rows.append(
                    {
                        "part": words,
                        "n_image_encoders": len(images),
                        "method": self._method(name, seed).label.split(" · seed")[0],
                        "seed": seed,
                        "search_flops": part.search_flops,
                        "flops_ratio": cost / part.search_flops,
                        "image_encoder": candidates.images[i].name,
                        "text_encoder": candidates.texts[j].name,
                        "own_score": round(float(part.test[part.validation.argmax()]), 3),
                        "ape_score": round(float(truth[part.chosen]), 3),
                        "best_ape_score": round(float(truth[part.pairs].max()), 3),
                    }
                )
        return rows

    def grid(self) -> list[Trial]:
        """The baseline on all pairs, a trial for each seed."""
        if not self._grid:
            seeds = self.asked.seeds()
            self._grid = [self.trials.take(self.opened, self._method("ape", seed), self.recipe) for seed in seeds]
        return self._grid

    def _ape(self, images: list[int], n: int, seed: int) -> _Part:
        trial, at = self.grid()[n], self._at(images)
        return _Part(at, trial.validation[at], trial.test[at], self._ape_flops(images))

    def _hypernet(self, images: list[int], n: int, seed: int) -> _Part:
        trial = self.trials.take(part_of(self.opened, images), self._method("hypernet", seed), self.recipe)
        return _Part(self._at(images), trial.validation, trial.test, trial.search_flops)

    def _ape_flops(self, images: list[int]) -> int:
        small = part_of(self.opened, images)
        return foresee(small, self._method("ape", 0), self.recipe, task=self.asked.config.task).search_flops

    def _at(self, images: list[int]) -> NDArray[np.int64]:
        return np.array([n for n, (i, _) in enumerate(self.pairs) if i in images])

    def _method(self, name: str, seed: int) -> Method:
        return Method(name, "text" if name == "ape" else "both", seed)
