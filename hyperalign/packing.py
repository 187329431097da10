"""Solutions as tensors and plain records, so that a finished method survives a crash and the winners reach the disk."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.canonical import Canonical, Whitening
from hyperalign.align.directions import Directions
from hyperalign.align.grid import PairIndex
from hyperalign.align.solution import Kept, Learned, Solution
from hyperalign.align.train import Fit, Look
from hyperalign.embed.plain import first_line, misfit
from hyperalign.record import SolutionRecord

__all__ = ["join", "pack", "pack_kept", "restrict", "unpack", "unpack_kept"]


def restrict(solution: Solution, pairs: Iterable[PairIndex]) -> Solution:
    """The connectors of some pairs, in the order given; pairs it has none for are left out."""
    at = {pair: n for n, pair in enumerate(solution.pairs)}
    kept = [at[pair] for pair in pairs if pair in at]
    return replace(
        solution,
        pairs=[solution.pairs[n] for n in kept],
        weights=[solution.weights[n] for n in kept],
        biases=[solution.biases[n] for n in kept],
        fits=[solution.fits[n] for n in kept] if solution.method == "ape" else solution.fits,
    )


def join(parts: Sequence[Solution]) -> Solution:
    """One solution out of parts of the same method that cover different pairs; the set-up is counted once."""
    first = parts[0]
    return replace(
        first,
        pairs=[pair for part in parts for pair in part.pairs],
        weights=[weight for part in parts for weight in part.weights],
        biases=[bias for part in parts for bias in part.biases],
        fits=[fit for part in parts for fit in part.fits],
        emit_flops=sum(part.emit_flops for part in parts),
    )


def pack(solution: Solution) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors by name, and a JSON record of everything else."""
    tensors: dict[str, NDArray[Any]] = {}
    for (i, j), weight, bias in zip(solution.pairs, solution.weights, solution.biases, strict=True):
        tensors[f"pair/{i}/{j}/weight"] = weight.numpy()
        tensors[f"pair/{i}/{j}/bias"] = bias.numpy()
    for side, whitenings in (("image", solution.images), ("text", solution.texts)):
        for k, canonical in enumerate(whitenings):
            if canonical is not None:
                tensors[f"{side}/{k}/mean"] = canonical.mean.numpy()
                tensors[f"{side}/{k}/projection"] = canonical.projection.numpy()
                tensors[f"{side}/{k}/features"] = canonical.features.numpy()
    if solution.kept is not None:
        tensors |= {f"kept/{name}": array for name, array in pack_kept(solution.kept).items()}
    record = {
        "method": solution.method,
        "sides": solution.sides,
        "pairs": [list(pair) for pair in solution.pairs],
        "images": [_whitening_record(c) for c in solution.images],
        "texts": [_whitening_record(c) for c in solution.texts],
        "fits": [asdict(fit) for fit in solution.fits],
        "setup_flops": solution.setup_flops,
        "emit_flops": solution.emit_flops,
    }
    return tensors, record


def unpack(tensors: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> Solution:
    """What `pack` took apart.

    Raises:
        ValueError: If record and tensors do not belong together.
    """
    fault = misfit(record, SolutionRecord)
    pairs = [] if fault else [(int(i), int(j)) for i, j in record["pairs"]]
    if fault is None and not all(0 <= i < len(record["images"]) and 0 <= j < len(record["texts"]) for i, j in pairs):
        fault = "a pair is of encoders that are not there"
    if fault is not None:
        raise ValueError(f"the record of connectors is damaged: {fault}")
    try:
        return _unpack(tensors, record, pairs)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"connectors and their record do not belong together: {first_line(error)}") from None


def _unpack(tensors: Mapping[str, NDArray[Any]], record: Mapping[str, Any], pairs: list[tuple[int, int]]) -> Solution:
    kept = {name.removeprefix("kept/"): array for name, array in tensors.items() if name.startswith("kept/")}
    return Solution(
        method=record["method"],
        sides=record["sides"],
        pairs=pairs,
        weights=[_tensor(tensors[f"pair/{i}/{j}/weight"]) for i, j in pairs],
        biases=[_tensor(tensors[f"pair/{i}/{j}/bias"]) for i, j in pairs],
        images=[_whitening(tensors, f"image/{k}", given) for k, given in enumerate(record["images"])],
        texts=[_whitening(tensors, f"text/{k}", given) for k, given in enumerate(record["texts"])],
        fits=[_fit(given) for given in record.get("fits", [])],
        setup_flops=record["setup_flops"],
        emit_flops=record["emit_flops"],
        kept=unpack_kept(kept) if kept else None,
    )


def _tensor(array: NDArray[Any]) -> Tensor:
    """The array as a tensor on the same memory; a read-only one is copied, for torch warns of those."""
    return torch.from_numpy(np.require(array, requirements="W"))


def pack_kept(kept: Kept) -> dict[str, NDArray[Any]]:
    """What adopting starts from, as tensors: for each encoder about F² + F·R + 2 R² numbers of 4 bytes."""
    tensors: dict[str, NDArray[Any]] = {"logit_scale": np.array([kept.logit_scale])}
    for side, every in (("image", kept.images), ("text", kept.texts)):
        for k, one in enumerate(every):
            found = _parts(one.whitening, _TENSORS) | _parts(one, _LEARNED)
            if one.directions is not None:
                found |= {f"directions/{name}": array for name, array in _parts(one.directions, _DIRECTIONS).items()}
            found["facts"] = np.array([getattr(one.whitening, fact) for fact in _FACTS], dtype=np.int64)
            tensors |= {f"{side}/{k}/{name}": array for name, array in found.items()}
    return tensors


def _parts(of: Whitening | Directions | Learned, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    return {name: getattr(of, name).numpy() for name in names}


def unpack_kept(tensors: Mapping[str, NDArray[Any]]) -> Kept:
    """What `pack_kept` took apart.

    Raises:
        ValueError: If a part is missing, not finite or of another shape than the others.
    """
    sides = []
    try:
        for side in ("image", "text"):
            n_encoders = sum(name.startswith(f"{side}/") and name.endswith("/facts") for name in tensors)
            sides.append([_known(tensors, f"{side}/{k}") for k in range(n_encoders)])
        scale = float(tensors["logit_scale"][0])
    except KeyError as error:
        raise ValueError(
            f"what the run has kept of its encoders lacks {error}: the run is damaged or old; search anew"
        ) from None
    images, texts = sides
    if len({len(one.transform) for one in (*images, *texts)}) > 1:
        raise ValueError("what the run has kept is damaged: its encoders do not share their coordinates")
    return Kept(images, texts, logit_scale=scale)


_TENSORS = ("mean", "root", "features")
_FACTS = ("width", "normalise", "varies", "n_rows")
_LEARNED = ("basis", "transform")
_DIRECTIONS = ("basis", "strength")


def _known(tensors: Mapping[str, NDArray[Any]], name: str) -> Learned:
    def read(*names: str) -> list[Tensor]:
        return [torch.from_numpy(np.array(tensors[f"{name}/{one}"])) for one in names]

    mean, root, features = read(*_TENSORS)
    width, normalise, varies, n_rows = tensors[f"{name}/facts"].tolist()
    whitening = Whitening(mean, root, features, width, bool(normalise), bool(varies), n_rows)
    chosen = f"{name}/directions/basis" in tensors
    directions = Directions(*read(*(f"directions/{one}" for one in _DIRECTIONS))) if chosen else None
    learned = Learned(whitening, directions, *read(*_LEARNED))
    if not _fits(learned):
        raise ValueError(f"what the run has kept of {name} is damaged: its parts do not fit together")
    return learned


def _fits(learned: Learned) -> bool:
    """Whether shapes agree and numbers are finite."""
    whitening, directions, basis, transform = learned
    n_features = len(whitening.features)
    floats = [(whitening.mean, (n_features,)), (whitening.root, (n_features, n_features))]
    floats += [(basis, (len(basis), len(transform))), (transform, (len(transform), len(transform)))]
    kept = n_features
    if directions is not None:
        kept = len(directions.strength)
        floats += [(directions.basis, (n_features, kept)), (directions.strength, (kept,))]
    chosen = whitening.features
    return (
        all(one.dtype == torch.float32 and one.shape == shape and bool(one.isfinite().all()) for one, shape in floats)
        and kept <= min(n_features, len(basis))
        and chosen.dtype == torch.int64
        and n_features > 0
        and bool(((chosen >= 0) & (chosen < whitening.width)).all())
    )


def _whitening_record(canonical: Canonical | None) -> dict[str, Any] | None:
    return None if canonical is None else {"width": canonical.width, "normalise": canonical.normalise}


def _whitening(tensors: Mapping[str, NDArray[Any]], name: str, given: Mapping[str, Any] | None) -> Canonical | None:
    if given is None:
        return None
    mean, projection, features = (_tensor(tensors[f"{name}/{part}"]) for part in ("mean", "projection", "features"))
    return Canonical(mean, projection, features, int(given["width"]), bool(given["normalise"]))


def _fit(given: Mapping[str, Any]) -> Fit:
    """NaN is null in JSON; earlier releases timed the looks here too."""
    given = {name: value for name, value in given.items() if name != "look_seconds"}
    looks = [Look(int(step), *(float("nan") if x is None else x for x in rest)) for step, *rest in given["looks"]]
    losses = [(int(step), float(loss)) for step, loss in given.get("losses", [])]
    return Fit(**{**given, "looks": looks, "losses": losses})
