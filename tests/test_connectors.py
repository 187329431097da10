"""Linear maps and contrastive losses: values known by hand, and one computation held against another."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hyperalign.align import connectors
from hyperalign.align.connectors import (
    Connector,
    connect,
    contrastive,
    infonce,
    init_connector,
    is_tiled,
    siglip,
    tiled_infonce,
    tiled_siglip,
    unit_rows,
)
from hyperalign.ledger import infonce_flops


def unit(*shape: int, seed: int = 0) -> Tensor:
    """Random unit rows."""
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def gradients(loss: Callable[..., Tensor], *inputs: Tensor, **rest: Any) -> tuple[Tensor, ...]:
    """Values, then gradients of a weighted sum over pairs."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    values = loss(*leaves, **rest)
    (values * torch.arange(1.0, 1 + len(values))).sum().backward()
    grads = [leaf.grad for leaf in leaves]
    return (values.detach(), *(grad for grad in grads if grad is not None))


def test_a_connector_maps_every_pair_by_its_own_weight_and_bias() -> None:
    weight = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    bias = torch.tensor([[0.0, 0.0, 1.0], [5.0, 6.0, 7.0]])

    mapped = connect(torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]]]), Connector(weight, bias))

    assert mapped.tolist() == [[[3.0, 8.0, 8.0]], [[5.0, 6.0, 7.0]]]


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 7), (1, 2, 1)])
def test_unit_rows_and_their_gradients_are_those_of_the_division_by_lengths(shape: tuple[int, ...]) -> None:
    rows = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    found, expected = unit_rows(rows), rows / rows.square().sum(-1, keepdim=True).sqrt()

    torch.testing.assert_close(found, expected)
    (gradient,), (plain,) = (torch.autograd.grad(units, rows, upstream) for units in (found, expected))
    torch.testing.assert_close(gradient, plain)


def test_a_row_of_zeros_stays_zero_and_leaves_the_others_their_gradients() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)

    units = unit_rows(rows)
    (gradient,) = torch.autograd.grad(units.sum(), rows)

    assert units.tolist() == [[0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[1], torch.tensor([0.8 * 0.2, -0.6 * 0.2]) / 5)


def test_a_connector_starts_within_its_bound_and_from_its_own_generator() -> None:
    before = torch.get_rng_state()

    first, again = (init_connector(2, 5, 16, torch.Generator().manual_seed(3)) for _ in range(2))

    assert first.weight.shape == (2, 5, 16)
    assert first.bias.shape == (2, 5)
    assert 0.2 < first.weight.abs().max() <= 0.25  # 1/√16
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_loss_of_unrelated_embeddings_is_log_batch_at_zero_scale() -> None:
    rows = torch.eye(4)[None]

    loss = infonce(rows, rows.flip(1), torch.tensor(0.0))

    assert math.isclose(loss.item(), math.log(4), rel_tol=1e-6)


def test_loss_of_two_orthogonal_items_is_known_by_hand() -> None:
    """Matched logits are 1, others 0: the loss is log(e + 1) − 1."""
    rows = torch.eye(2)[None]

    assert math.isclose(infonce(rows, rows, torch.tensor(1.0)).item(), math.log(math.e + 1) - 1, rel_tol=1e-6)


def test_infonce_is_the_mean_of_two_cross_entropies() -> None:
    image, text, target = unit(2, 6, 5), unit(2, 6, 5, seed=1), torch.arange(6)
    logits = 7 * image @ text.mT

    expected = [(F.cross_entropy(one, target) + F.cross_entropy(one.T, target)) / 2 for one in logits]

    torch.testing.assert_close(infonce(image, text, torch.tensor(7.0)), torch.stack(expected))


@pytest.mark.parametrize("loss", [infonce, tiled_infonce])
def test_masked_items_are_neither_queries_nor_candidates(loss: Callable[..., Tensor]) -> None:
    image, text = unit(2, 8, 5), unit(2, 8, 5, seed=1)
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[0, [1, 4]] = False
    kept = valid[0]

    first, second = loss(image, text, torch.tensor(9.0), valid)

    torch.testing.assert_close(first, infonce(image[:1, kept], text[:1, kept], torch.tensor(9.0))[0])
    torch.testing.assert_close(second, infonce(image[1:], text[1:], torch.tensor(9.0))[0])


@pytest.mark.parametrize("loss", [infonce, tiled_infonce])
def test_masked_items_have_no_gradient(loss: Callable[..., Tensor]) -> None:
    valid = torch.tensor([[True, False, True, True, False]])

    _, grad_image, grad_text = gradients(
        lambda image, text: loss(image, text, torch.tensor(100.0), valid), unit(1, 5, 3), unit(1, 5, 3, seed=1)
    )

    for grad in (grad_image, grad_text):
        assert grad[~valid].abs().max() == 0
        assert grad[valid].abs().min() > 0
        assert grad.isfinite().all()


@pytest.mark.parametrize("loss", [infonce, tiled_infonce])
def test_a_batch_without_a_valid_item_costs_nothing(loss: Callable[..., Tensor]) -> None:
    valid = torch.zeros(1, 4, dtype=torch.bool)

    value, *grads = gradients(
        lambda image, text: loss(image, text, torch.tensor(10.0), valid), unit(1, 4, 3), unit(1, 4, 3)
    )

    assert value.item() == 0
    assert all(grad.abs().max() == 0 for grad in grads)


@pytest.mark.parametrize("tile", [1, 3, 4, 7, 64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("one_scale", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_tiles_give_the_value_and_the_gradients_of_the_whole(
    tile: int, masked: bool, one_scale: bool, keep: bool
) -> None:
    scale = torch.tensor(20.0) if one_scale else torch.tensor([[[5.0]], [[20.0]], [[100.0]]])
    inputs = (unit(3, 7, 4).double(), unit(3, 7, 4, seed=1).double(), scale.double())
    valid = torch.rand(3, 7, generator=torch.Generator().manual_seed(2)) > 0.3 if masked else None

    plain = gradients(infonce, *inputs, valid=valid)
    tiled = gradients(tiled_infonce, *inputs, valid=valid, tile=tile, keep=keep)

    for one, other in zip(plain, tiled, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n_pairs", [1, 3, 4, 5])
@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_however_pairs_are_shared_among_threads_products_are_the_same(n_pairs: int, n_threads: int) -> None:
    left, right = torch.randn(n_pairs, 6, 5), torch.randn(n_pairs, 5, 7)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        out = connectors._multiply(
            left, right, torch.full((n_pairs, 6, 7), torch.nan)
        )  # what was there is not looked at
        twice = connectors._multiply(left, right, out.clone(), add=True)
    finally:
        torch.set_num_threads(before)

    torch.testing.assert_close(out, left @ right)
    torch.testing.assert_close(twice, 2 * (left @ right))


def test_rows_that_are_all_alike_or_all_opposed_stay_finite_at_the_largest_scale() -> None:
    """Width 1: cosines are 1 or -1, and at s = 100 the sums of exponentials would leave float32."""
    image, text = torch.ones(1, 600, 1), torch.ones(1, 600, 1)
    alike = gradients(tiled_infonce, image, text, torch.tensor(100.0))
    opposed = gradients(tiled_infonce, image, -text, torch.tensor(100.0))

    assert alike[0].item() == pytest.approx(math.log(600), rel=1e-5)
    assert all(found.isfinite().all() for found in (*alike, *opposed))


@pytest.mark.parametrize("sides", [(0,), (1,), (2,), (0, 2)])
def test_tiles_give_a_gradient_to_those_that_want_one(sides: tuple[int, ...]) -> None:
    inputs = [unit(2, 6, 4), unit(2, 6, 4, seed=1), torch.tensor(9.0)]
    for place in sides:
        inputs[place].requires_grad_()
    wanted = [inputs[place] for place in sides]

    tiled = torch.autograd.grad(tiled_infonce(*inputs, tile=4).sum(), wanted)

    for one, other in zip(torch.autograd.grad(infonce(*inputs).sum(), wanted), tiled, strict=True):
        torch.testing.assert_close(other, one)


def test_a_second_backward_finds_the_logits_again() -> None:
    text = unit(1, 9, 4, seed=1).requires_grad_()
    loss = tiled_infonce(unit(1, 9, 4), text, torch.tensor(9.0), tile=4, keep=True).sum()

    first, second = (torch.autograd.grad(loss, text, retain_graph=True)[0] for _ in range(2))

    assert torch.equal(first, second)


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_tiles_that_are_not_kept_cost_the_logits_once_more(both_sides: bool, keep: bool) -> None:
    image, text = unit(2, 9, 4).requires_grad_(both_sides), unit(2, 9, 4, seed=1).requires_grad_()

    with FlopCounterMode(display=False) as counter:
        tiled_infonce(image, text, torch.tensor(10.0), tile=4, keep=keep).sum().backward()

    assert counter.get_total_flops() == 2 * infonce_flops(9, 4, both_sides=both_sides, tiled=not keep)
    assert infonce_flops(9, 4, tiled=True) == 1.5 * infonce_flops(9, 4)


def test_only_logits_that_do_not_fit_are_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def flops() -> tuple[float, int]:
        with FlopCounterMode(display=False) as counter:
            loss = contrastive(unit(1, 6, 3), unit(1, 6, 3, seed=1).requires_grad_(), torch.tensor(5.0)).sum()
            loss.backward()
        return loss.item(), counter.get_total_flops()

    assert not is_tiled(1, 16384)  # 1 GiB
    assert is_tiled(2, 16384)
    kept = flops()
    monkeypatch.setattr(connectors, "MAX_LOGITS", 35)

    assert kept[1] == infonce_flops(6, 3)
    assert flops() == (kept[0], infonce_flops(6, 3, tiled=True))


def test_the_sigmoid_loss_at_zero_is_batch_times_log_two() -> None:
    loss = siglip(unit(2, 5, 3), unit(2, 5, 3, seed=1), torch.tensor(0.0), torch.tensor(0.0))

    torch.testing.assert_close(loss, torch.full((2,), 5 * math.log(2)))


def test_the_sigmoid_loss_is_the_sum_written_out() -> None:
    image, text, scale, bias = unit(1, 4, 3), unit(1, 4, 3, seed=1), 6.0, -2.0
    expected = 0.0
    for i in range(4):
        for j in range(4):
            logit = scale * float(image[0, i] @ text[0, j]) + bias
            expected += math.log1p(math.exp(-logit if i == j else logit)) / 4

    loss = siglip(image, text, torch.tensor(scale), torch.tensor(bias))

    assert math.isclose(loss.item(), expected, rel_tol=1e-5)


@pytest.mark.parametrize("loss", [infonce, tiled_infonce])
def test_the_order_of_items_does_not_matter(loss: Callable[..., Tensor]) -> None:
    image, text, order = unit(1, 6, 4), unit(1, 6, 4, seed=1), torch.tensor([3, 1, 5, 0, 2, 4])

    shuffled = loss(image[:, order], text[:, order], torch.tensor(10.0))

    torch.testing.assert_close(shuffled, loss(image, text, torch.tensor(10.0)))


@pytest.mark.parametrize("tile", [1, 4, 9, 100, None])
@pytest.mark.parametrize("shape", [(), (3, 1, 1)], ids=["shared", "per-pair"])
def test_siglip_in_squares_is_siglip(tile: int | None, shape: tuple[int, ...]) -> None:
    """9 rows in squares of 4 leave a remainder on both sides."""
    inputs = [unit(3, 9, 5, seed=1), unit(3, 9, 5, seed=2), torch.full(shape, 7.0), torch.full(shape, -3.0)]

    plain = gradients(siglip, *inputs)
    tiled = gradients(tiled_siglip, *inputs, tile=tile)

    for one, other in zip(plain, tiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_siglip_in_squares_of_unrelated_rows_is_known_by_hand() -> None:
    loss = tiled_siglip(unit(2, 8, 4), unit(2, 8, 4, seed=1), torch.tensor(0.0), torch.tensor(0.0), tile=3)

    torch.testing.assert_close(loss, torch.full((2,), 8 * math.log(2)))


def test_siglip_of_halves_and_their_negatives_is_siglip_of_the_whole() -> None:
    """As processes that hold a half of a batch each take it: the mean over them is the loss of all."""
    image, text, scale, bias = unit(1, 8, 5, seed=1), unit(1, 8, 5, seed=2), torch.tensor(7.0), torch.tensor(-3.0)

    def halved(*inputs: Tensor) -> Tensor:
        images, texts = inputs[0].split(4, 1), inputs[1].split(4, 1)
        parts = [
            tiled_siglip(images[i], texts[j], *inputs[2:], tile=3, matched=i == j) for i in range(2) for j in range(2)
        ]
        return torch.stack(parts).sum(0) / 2

    found, expected = gradients(halved, image, text, scale, bias), gradients(siglip, image, text, scale, bias)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is Linux's")
def test_siglip_of_8192_pairs_takes_less_than_a_gigabyte() -> None:
    """Its logits alone are 256 MiB, and would be there three times; rows and gradients are 64 MiB here."""
    code = (
        "import torch, torch.nn.functional as F\n"
        "from hyperalign.align.connectors import tiled_siglip\n"
        "from hyperalign.bench.watermark import watched\n"
        "torch.rand(8, 64, 64) @ torch.rand(8, 64, 64)\n"
        "with watched() as growth:\n"
        "    rows = [F.normalize(torch.randn(1, 8192, 512), dim=2).requires_grad_() for _ in range(2)]\n"
        "    numbers = [torch.tensor(x, requires_grad=True) for x in (10.0, -10.0)]\n"
        "    tiled_siglip(*rows, *numbers).sum().backward()\n"
        "assert all(leaf.grad is not None for leaf in (*rows, *numbers))\n"
        "print(growth.n_bytes)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert int(done.stdout) < 2**30
