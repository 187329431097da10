"""Formulas against the counter, to the unit; and the account that the method's authors published."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from counting import count_all, count_seen
from torch import Tensor, nn

from hyperalign.align.connectors import Connector, connect, infonce
from hyperalign.align.moments import add_gram
from hyperalign.ledger import (
    SEARCH_STAGES,
    STAGES,
    Line,
    adamw_flops,
    cholesky_flops,
    connector_step_flops,
    damped_flops,
    eigh_flops,
    gram_flops,
    infonce_flops,
    mapped_flops,
    matmul_flops,
    mlp_step_flops,
    published_ape_epoch_flops,
    published_sliced_epoch_flops,
    pulled_flops,
    qr_flops,
    search_flops,
    sgd_flops,
    similarity_flops,
    svd_flops,
    total_flops,
    triangular_flops,
)

N_ITEMS = 558_128  # of the published account


def test_one_multiply_add_is_two_flops() -> None:
    assert matmul_flops(1, 1, 1) == 2
    assert matmul_flops(2, 3, 4) == 48


def test_what_no_counter_sees_has_a_formula() -> None:
    """The counter sees the product alone; the tests' own counter adds the formulas at the shapes that ran."""
    matrix = torch.randn(8, 8)

    def run() -> None:
        square = matrix @ matrix.T + torch.eye(8)
        torch.linalg.eigh(square)
        torch.linalg.solve_triangular(torch.linalg.cholesky(square), matrix[:, :3], upper=False)
        torch.linalg.qr(matrix[:, :5])

    seen, unseen = matmul_flops(8, 8, 8), (eigh_flops(8), cholesky_flops(8), triangular_flops(8, 3), qr_flops(8, 5))
    assert count_seen(run) == seen
    assert count_all(run) == seen + sum(unseen)
    assert unseen == (9 * 8**3, 8**3 // 3, 8**2 * 3, 4 * 8 * 5**2)
    assert adamw_flops(10, 3) == 14 * 30


def test_a_triangular_system_costs_what_the_textbook_s_loops_do() -> None:
    """Row i takes i multiply-adds and a division."""
    assert triangular_flops(50, 3) == 3 * sum(2 * i + 1 for i in range(50))


def test_a_cholesky_decomposition_costs_what_the_textbook_s_loops_do() -> None:
    """Entry (i, j) takes j multiply-adds and a division or a root; D³/3 is what is left of it where D is large."""
    textbook = sum((2 * j + 1) * (512 - j) for j in range(512))

    assert cholesky_flops(512) == pytest.approx(textbook, rel=5e-3)


def test_an_orthonormal_basis_costs_what_reflections_do() -> None:
    """Reflection j of (n, k) is applied to k − j columns below row j, 4 FLOP an entry; once for R and once for Q."""
    textbook = 2 * sum(4 * (10_000 - j) * (160 - j) for j in range(160))

    assert qr_flops(10_000, 160) == pytest.approx(textbook, rel=2e-2)


def test_products_with_one_vector_are_left_out_on_both_sides() -> None:
    assert count_seen(lambda: torch.randn(5, 4) @ torch.randn(4)) == 0


@pytest.mark.parametrize("dim", [6, 128, 129, 300])
def test_a_symmetric_product_costs_what_the_counter_sees(dim: int) -> None:
    rows, total = torch.randn(20, dim), torch.zeros(dim, dim)

    assert count_seen(lambda: add_gram(total, rows)) == gram_flops(20, dim)


def test_a_symmetric_product_costs_little_more_than_half() -> None:
    assert gram_flops(20, 100) == matmul_flops(100, 20, 100)  # within a strip there is nothing to save
    assert 0.5 < gram_flops(20, 1024) / matmul_flops(1024, 20, 1024) < 0.57


@pytest.mark.parametrize(("batch", "d_txt", "d_img"), [(8, 5, 3), (3, 8, 5), (5, 3, 8)])
def test_a_step_of_one_connector_costs_what_the_counter_sees(batch: int, d_txt: int, d_img: int) -> None:
    connector = Connector(torch.randn(1, d_img, d_txt, requires_grad=True), torch.zeros(1, d_img, requires_grad=True))

    def step() -> None:
        mapped = connect(torch.randn(1, batch, d_txt), connector)
        infonce(torch.randn(1, batch, d_img), mapped, torch.tensor(10.0)).sum().backward()

    assert count_seen(step) == connector_step_flops(batch, d_txt, d_img) == 4 * batch * d_img * (d_txt + batch)


@pytest.mark.parametrize("both_sides", [False, True])
def test_the_loss_costs_what_the_counter_sees(both_sides: bool) -> None:
    image = torch.randn(1, 7, 4, requires_grad=both_sides)
    text = torch.randn(1, 7, 4, requires_grad=True)

    found = count_seen(lambda: infonce(image, text, torch.tensor(10.0)).sum().backward())

    assert found == infonce_flops(7, 4, both_sides=both_sides)


@pytest.mark.parametrize("input_grad", [False, True])
def test_an_mlp_costs_what_the_counter_sees(input_grad: bool) -> None:
    widths = (3, 7, 5, 11)
    layers = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    rows = torch.randn(4, 3, requires_grad=input_grad)

    def step() -> None:
        out: Tensor = layers(rows)
        out.sum().backward()

    assert count_seen(step) == mlp_step_flops(4, widths, input_grad=input_grad)


def test_similarities_are_counted_in_the_cheaper_order() -> None:
    """A narrow text encoder asks for pulling the images back, a narrow image encoder for mapping the captions."""
    wide_images, wide_texts = (1000, 1000, 8, 64), (1000, 1000, 64, 8)

    assert similarity_flops(*wide_images) == pulled_flops(*wide_images) < mapped_flops(*wide_images)
    assert similarity_flops(*wide_texts) == mapped_flops(*wide_texts) < pulled_flops(*wide_texts)


def test_similarities_that_are_read_twice_are_mapped_twice_and_pulled_back_once() -> None:
    once, twice = (pulled_flops(100, 50, 4, 6, n_reads=n) for n in (1, 2))

    assert mapped_flops(100, 50, 4, 6, n_reads=2) == 2 * mapped_flops(100, 50, 4, 6)
    assert twice - once == matmul_flops(100, 4, 50) + matmul_flops(100, 4, 4)


@pytest.mark.parametrize(
    ("batch", "teraflop"), [(256, 0.8777), (512, 1.0972), (1024, 1.5361), (4096, 4.1618), (16384, 14.6759)]
)
def test_the_published_cost_of_the_baseline_returns(batch: int, teraflop: float) -> None:
    """One epoch at image width 384; the figures were cut, not rounded, at the fourth digit."""
    assert math.floor(published_ape_epoch_flops(N_ITEMS, batch) / 1e8) == round(teraflop * 1e4)


def test_the_published_cost_of_the_baseline_is_our_own_formula_times_whole_batches() -> None:
    assert published_ape_epoch_flops(1000, 256) == 3 * connector_step_flops(256, 768, 384)


@pytest.mark.parametrize(
    ("n_encoders", "formula", "published"),
    [(4, 22.156, 22.165), (6, 33.234, 33.25), (8, 44.312, 44.34), (10, 55.389, 55.40)],
)
def test_the_published_cost_of_the_sliced_hypernetwork_returns(
    n_encoders: int, formula: float, published: float
) -> None:
    found = published_sliced_epoch_flops(N_ITEMS, 512, n_encoders) / 1e12

    assert found == pytest.approx(formula, abs=5e-4)
    assert found == pytest.approx(published, rel=7e-4)  # the published figures are 0.02 to 0.06 % higher
    assert found < published


def ape_grid(batch: int, widths: Sequence[int]) -> float:
    """One epoch of the baseline for each of some image encoders."""
    return float(sum(published_ape_epoch_flops(N_ITEMS, batch, d_img=width) for width in widths))


def test_the_ratios_of_the_poster_return() -> None:
    """Twelve encoders, four of each width, against one hypernetwork with four encoders a step at batch 512."""
    hypernetwork = published_sliced_epoch_flops(N_ITEMS, 512, 4)
    true_widths = 4 * (384, 768, 1024)

    assert round(ape_grid(16384, 12 * (384,)) / hypernetwork) == 8  # the poster's, all encoders taken as 384 wide
    assert round(ape_grid(16384, true_widths) / hypernetwork) == 15
    assert round(ape_grid(512, true_widths) / hypernetwork, 1) == 1.1  # at matched batch


def test_a_search_costs_its_own_set_up_training_and_validation() -> None:
    methods = ("ours", "theirs", "")
    lines = [Line(stage, method, "", 10**k, seconds=1.0) for k, stage in enumerate(STAGES) for method in methods]

    assert search_flops(lines, "ours") == sum(10 ** STAGES.index(stage) for stage in SEARCH_STAGES)
    assert total_flops(lines) == 3 * int("1" * len(STAGES))


def test_what_two_methods_share_is_on_both_accounts_and_ran_once() -> None:
    lines = [Line("set-up", "first", "", 100, seconds=2.0), Line("set-up", "second", "", 100)]

    assert search_flops(lines, "first") == search_flops(lines, "second") == 100
    assert total_flops(lines) == 100


def test_every_formula_has_the_value_that_is_found_by_hand() -> None:
    assert matmul_flops(3, 5, 7) == 210
    assert gram_flops(10, 200) == 2 * 10 * (128 * 200 + 72 * 72)  # two strips
    assert (cholesky_flops(7), triangular_flops(7, 3), eigh_flops(7)) == (114, 147, 3087)
    assert (qr_flops(7, 3), svd_flops(3, 7)) == (252, 1386)
    assert [book(5) for book in (sgd_flops, damped_flops, adamw_flops)] == [10, 45, 70]
    assert [book(5, 3) for book in (sgd_flops, damped_flops, adamw_flops)] == [30, 135, 210]
    kinds = [(False, False), (True, False), (False, True), (True, True)]
    assert [infonce_flops(4, 6, both_sides=both, tiled=tiled) for both, tiled in kinds] == [384, 576, 576, 768]
    assert (connector_step_flops(4, 5, 6), connector_step_flops(4, 5, 6, tiled=True)) == (864, 1056)
    assert mlp_step_flops(2, (3, 4, 5), input_grad=True) == 3 * (48 + 80)
    assert mlp_step_flops(2, (3, 4, 5), input_grad=False) == 3 * (48 + 80) - 48


def test_similarities_are_booked_in_the_cheaper_order_each_time_they_are_read() -> None:
    mapped = 2 * 20 * 3 * 50 + 2 * 20 * 50 * 10
    once, each = 2 * 10 * 50 * 3 + 2 * 3 * 50 * 3, 2 * 20 * 3 * 10 + 2 * 20 * 3 * 3

    assert [mapped_flops(20, 10, 3, 50, n_reads=n) for n in (1, 4)] == [mapped, 4 * mapped]
    assert [pulled_flops(20, 10, 3, 50, n_reads=n) for n in (1, 4)] == [once + each, once + 4 * each]
    assert [similarity_flops(20, 10, 3, 50, n_reads=n) for n in (1, 4)] == [once + each, once + 4 * each]
    assert similarity_flops(20, 10, 50, 3) == 2 * 20 * 50 * 3 + 2 * 20 * 3 * 10
    assert mapped_flops(20, 10, 3, 50) == mapped
    assert pulled_flops(20, 10, 3, 50) == once + each


def test_an_epoch_of_the_published_sliced_network_adds_up_for_one_width() -> None:
    network = 6 * (32 * 128 + 128 * 512 + 512 * (1024 * 768 + 1024)) + 4 * 1024 * 32
    assert network == 2_419_613_696
    step = network + 300 * (4 * 512 * 768 + 8 * 512**2)
    assert step == 3_520_618_496

    assert published_sliced_epoch_flops(1100, 512, 3, widths=(300,)) == 2 * 3 * step
    assert published_sliced_epoch_flops(1024, 512, 1, widths=(300, 300)) == 2 * step
    assert published_ape_epoch_flops(1100, 512) == 2 * 4 * 512 * 384 * (768 + 512)
