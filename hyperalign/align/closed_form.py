"""Connectors without a gradient step: cross-covariances between canonical coordinates, and their text-sided twin."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hyperalign.align.canonical import Canonical
from hyperalign.align.canonical_grid import CanonicalGrid
from hyperalign.align.solution import Solution
from hyperalign.ledger import matmul_flops


def solve_closed_form(canonical: CanonicalGrid, *, sides: str = "both") -> Solution:
    """The connectors without a gradient step; with sides "text" their twin between the encoders' own rows."""
    images, texts = [c.canonical for c in canonical.images], [c.canonical for c in canonical.texts]
    solution = canonical_solution("closed-form", canonical, images, texts)
    return solution if sides == "both" else to_text_sided(solution)


def to_text_sided(solution: Solution) -> Solution:
    """The text-only twin of a solution between canonical coordinates: W = P_img V P_txtᵀ, b = −W μ_txt.

    Text rows are taken as unit vectors where the whitening took them so.
    """
    weights, biases, emit = [], [], 0
    for (i, j), weight in zip(solution.pairs, solution.weights, strict=True):
        image, text = solution.images[i], solution.texts[j]
        assert image is not None, "a solution between canonical coordinates has whitenings"
        assert text is not None, "a solution between canonical coordinates has whitenings"
        w, b = to_text_side(weight, image, text)
        weights.append(torch.zeros(image.width, text.width).index_put_((image.features[:, None], text.features), w))
        biases.append(torch.zeros(image.width).index_put_((image.features,), b))
        (r_img, r_txt), f_img, f_txt = weight.shape, len(image.mean), len(text.mean)
        emit += matmul_flops(f_img, r_img, r_txt) + matmul_flops(f_img, r_txt, f_txt)
    return replace(
        solution,
        sides="text",
        weights=weights,
        biases=biases,
        images=[None] * len(solution.images),
        texts=[_unit_rows(c) for c in solution.texts],
        emit_flops=solution.emit_flops + emit,
    )


def _unit_rows(canonical: Canonical | None) -> Canonical | None:
    """Rows as unit vectors, where a whitening took them so; else as they are."""
    if canonical is None or not canonical.normalise:
        return None
    width = canonical.width
    return Canonical(torch.zeros(width), torch.eye(width), torch.arange(width), width, normalise=True)


def canonical_solution(
    method: str, canonical: CanonicalGrid, images: Sequence[Canonical], texts: Sequence[Canonical]
) -> Solution:
    """The closed-form connectors, each cut to the two encoders' own ranks, between some coordinates."""
    r_img = [c.canonical.own_rank for c in canonical.images]
    r_txt = [c.canonical.own_rank for c in canonical.texts]
    pairs = [(i, j) for i in range(len(images)) for j in range(len(texts))]
    return Solution(
        method=method,
        sides="both",
        pairs=pairs,
        weights=[canonical.cross[i, j, : r_img[i], : r_txt[j]].contiguous() for i, j in pairs],
        biases=[torch.zeros(r_img[i]) for i, _ in pairs],
        images=images,
        texts=texts,
        setup_flops=canonical.flops,
    )


def to_text_side(weight: Tensor, image: Canonical, text: Canonical) -> tuple[Tensor, Tensor]:
    """The text-only twin of a canonical connector: W = P_img V P_txtᵀ, b = −W μ_txt, from text rows to image rows.

    Args:
        weight: (r_img, r_txt), V from canonical text to canonical image.
        image: Whitening of the image encoder.
        text: Whitening of the text encoder.

    Returns:
        (F_img, F_txt) weight and (F_img,) bias, on the features that the whitenings use.
    """
    r_img, r_txt = weight.shape
    mapped = image.projection[:, :r_img] @ weight @ text.projection[:, :r_txt].T
    return mapped, -(mapped @ text.mean)
