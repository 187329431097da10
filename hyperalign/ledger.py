"""What a search costs: FLOPs from shapes, seconds and bytes. Pure numbers, no libraries.

One multiply–add is 2 FLOP. Formulas count matrix products, which is what `torch.utils.flop_counter` sees; a test
holds each against the counter to the unit. Left out on both sides are sums, biases, norms, softmax, gathers and
products of a matrix and one vector.
What the counter cannot see is listed here with a formula of its own: eigendecompositions (`eigh_flops`), other
decompositions and triangular systems (`cholesky_flops`, `qr_flops`,
`svd_flops`, `triangular_flops`), optimiser updates (`adamw_flops`, `damped_flops`).
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

SEARCH_STAGES = ("set-up", "training", "validation")
STRIP = 128  # columns of a symmetric product that are computed at a time
STAGES = (
    "embedding",
    *SEARCH_STAGES,
    "verification",
    "polishing",
    "test evaluation",
    "failed and repeated",
    "optimiser",
)


class Line(NamedTuple):
    """One booking.

    Attributes:
        stage: One of `STAGES`.
        method: Which method it belongs to; empty where all share it.
        what: What was computed, in words.
        flops: Executed; where `seconds` is 0, what another line's time has done (shared, or timed with it).
        seconds: Wall time; 0 where it stands in another line.
        peak_bytes: Largest resident memory of the process at the end of it, of embedding that of the largest of its
            processes; 0 where not measured.
    """

    stage: str
    method: str
    what: str
    flops: int
    seconds: float = 0.0
    peak_bytes: int = 0


def search_flops(lines: Iterable[Line], method: str) -> int:
    """Cost of a search by `method`: its set-up, training and validation."""
    return sum(line.flops for line in lines if line.method == method and line.stage in SEARCH_STAGES)


def total_flops(lines: Iterable[Line]) -> int:
    """Everything that ran. What is made once and booked to several methods counts where its time is booked."""
    return sum(line.flops for line in lines if line.seconds or line.stage == "optimiser")


def matmul_flops(n_rows: int, d_in: int, d_out: int) -> int:
    """FLOPs of one (n_rows, d_in) @ (d_in, d_out) product."""
    return 2 * n_rows * d_in * d_out


def gram_flops(n_rows: int, dim: int) -> int:
    """FLOPs of the upper triangle of zᵀz over `n_rows` rows of width `dim`, in strips of `STRIP` columns.

    Each strip is multiplied with what stands on and right of it: 2·n·w·(D − start).
    """
    return sum(matmul_flops(min(STRIP, dim - start), n_rows, dim - start) for start in range(0, dim, STRIP))


def cholesky_flops(dim: int) -> int:
    """FLOPs of a Cholesky decomposition, D³/3 (no counter sees it)."""
    return dim**3 // 3


def triangular_flops(dim: int, n_columns: int) -> int:
    """FLOPs of solving a triangular system of width `dim` for so many columns, D² each (no counter sees it)."""
    return dim**2 * n_columns


def qr_flops(n_rows: int, n_columns: int) -> int:
    """FLOPs of an orthonormal basis of (n, k) by Householder reflections, booked at 4·n·k² (no counter sees it)."""
    return 4 * n_rows * n_columns**2


def eigh_flops(dim: int) -> int:
    """FLOPs of a symmetric eigendecomposition with vectors, booked at 9·D³ (no counter sees it)."""
    return 9 * dim**3


def svd_flops(n_rows: int, n_columns: int) -> int:
    """FLOPs of the singular values and vectors of (r, R), r ≤ R, booked at 22·r²·R (no counter sees it)."""
    return 22 * n_rows**2 * n_columns


def sgd_flops(n_params: int, n_steps: int = 1) -> int:
    """FLOPs of plain gradient steps, 2 per parameter and step."""
    return 2 * n_params * n_steps


def damped_flops(n_params: int, n_steps: int = 1) -> int:
    """FLOPs of updates along the damped mean gradient (`align.damped`), booked at 9 per parameter and step.

    Powers of gradient and mean 2 each, mean 3, step 2.
    """
    return 9 * n_params * n_steps


def adamw_flops(n_params: int, n_steps: int = 1) -> int:
    """FLOPs of AdamW updates, booked at 14 per parameter and step.

    Decay 1, first moment 3, second moment 4, bias corrections 2, root and epsilon 2, step 2.
    """
    return 14 * n_params * n_steps


def infonce_flops(batch: int, dim: int, *, both_sides: bool = False, tiled: bool = False) -> int:
    """FLOPs of the logits' products of one training step.

    Forward, and a gradient for each side that has one; in tiles the logits are computed again for the gradient.
    """
    return (2 + both_sides + tiled) * matmul_flops(batch, dim, batch)


def connector_step_flops(batch: int, d_txt: int, d_img: int, *, tiled: bool = False) -> int:
    """FLOPs of one training step of one linear connector on cached embeddings: 4·B·D_img·(D_txt + B).

    Forward and weight gradient of the map, then the logits' forward and the gradient to the mapped side. The usual
    factor of three is two here: both inputs are cached, so no gradient flows back to them. A batch whose loss is
    computed in tiles has the logits once more.
    """
    return 2 * matmul_flops(batch, d_txt, d_img) + infonce_flops(batch, d_img, tiled=tiled)


def mlp_step_flops(n_rows: int, widths: tuple[int, ...], *, input_grad: bool) -> int:
    """FLOPs of forward and backward of an MLP on `n_rows` rows.

    Args:
        n_rows: Rows, one for each emitted thing.
        widths: Input, hidden and output widths.
        input_grad: Whether the input is learned too (codes) or data.
    """
    forward = [matmul_flops(n_rows, a, b) for a, b in pairwise(widths)]
    return 3 * sum(forward) - (0 if input_grad else forward[0])


def mapped_flops(n_captions: int, n_images: int, r_txt: int, r_img: int, *, n_reads: int = 1) -> int:
    """FLOPs of all similarities of one pair, the captions mapped first: 2·n_c·r_t·r_i + 2·n_c·n_i·r_i, each time."""
    return n_reads * (matmul_flops(n_captions, r_txt, r_img) + matmul_flops(n_captions, r_img, n_images))


def pulled_flops(n_captions: int, n_images: int, r_txt: int, r_img: int, *, n_reads: int = 1) -> int:
    """FLOPs of the same, the images pulled back to the captions' space.

    Pulling back costs 2·n_i·r_i·r_t and the Gram matrix for the norms of the mapped captions 2·r_i·r_t², both once;
    each time the similarities are read 2·n_c·n_i·r_t + 2·n_c·r_t² are added.
    """
    once = matmul_flops(n_images, r_img, r_txt) + matmul_flops(r_txt, r_img, r_txt)
    return once + n_reads * (matmul_flops(n_captions, r_txt, n_images) + matmul_flops(n_captions, r_txt, r_txt))


def similarity_flops(n_captions: int, n_images: int, r_txt: int, r_img: int, *, n_reads: int = 1) -> int:
    """FLOPs of all similarities of one pair in the cheaper of the two orders, read so many times."""
    shape = (n_captions, n_images, r_txt, r_img)
    return min(mapped_flops(*shape, n_reads=n_reads), pulled_flops(*shape, n_reads=n_reads))


def published_ape_epoch_flops(n_items: int, batch: int, *, d_txt: int = 768, d_img: int = 384) -> int:
    """One epoch of the baseline by the account of the method's authors: m·D_img·(4·D_txt + 4·B), m = ⌊n/B⌋·B."""
    return (n_items // batch) * connector_step_flops(batch, d_txt, d_img)


def published_sliced_epoch_flops(
    n_items: int, batch: int, n_encoders: int, *, d_txt: int = 768, widths: tuple[int, ...] = (384, 768, 1024)
) -> float:
    """One epoch of the sliced hypernetwork by the account of the method's authors, averaged over image widths.

    E·[6·(32·128 + 128·512 + 512·Q) + 4·1024·32 + 4·B·D_txt·D_img + 8·B²·D_img] a step, Q = 1024·D_txt + 1024. The 8·B²
    is theirs, who compute the logits twice; our own ledger counts what ran. Published for n = 558,128, B = 512 and
    E = 4, 6, 8, 10: 22.165, 33.25, 44.34, 55.40 TFLOP.
    """
    widest = 1024
    emitted = widest * d_txt + widest
    network = 6 * (32 * 128 + 128 * 512 + 512 * emitted) + 4 * widest * 32
    per_width = [4 * batch * d_txt * d + 8 * batch**2 * d for d in widths]
    return (n_items // batch) * n_encoders * (network + sum(per_width) / len(per_width))
