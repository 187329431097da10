"""What a search over many pictures costs, computed: figures that a hand can check."""

from dataclasses import replace
from pathlib import Path

import pytest

from hyperalign.bench.scale import HELD_OUT, measure
from hyperalign.bench.sheet import Asked
from hyperalign.embed.zoo import load_zoos
from hyperalign.request import SearchConfig


def asked(n_items: int, shape: tuple[int, int]) -> Asked:
    return Asked(
        config=SearchConfig(zoo=("hub",)),
        cache_dir=Path("cache"),
        out=Path("reports"),
        shape=shape,
        n_items=n_items,
        progress=lambda stage, done, total: None,
        say=lambda sentence: None,
    )


def test_embedding_costs_what_the_zoo_declares_of_every_item() -> None:
    stages, places = measure(asked(20_000, (3, 2)))

    specs = load_zoos(["hub"])
    chosen = [spec for spec in specs if spec.modality == "image"][:3]
    chosen += [spec for spec in specs if spec.modality == "text"][:2]
    flops = {row["stage"]: row["flops"] for row in stages.rows}
    n = 20_000 + 2 * HELD_OUT
    assert flops["embedding everything with everyone"] == pytest.approx(n * 1e9 * sum(s.gflops or 0 for s in chosen))
    assert flops["embedding with promotion, at most"] <= flops["embedding everything with everyone"]
    assert places.rows[0]["cache_bytes"] == 2 * n * sum(spec.embed_dim or 0 for spec in chosen)
    assert places.rows[1]["all_seconds"] == pytest.approx(4 * places.rows[2]["all_seconds"])  # 8 devices, then 32


def test_a_host_needs_memory_for_the_rows_it_keeps_and_for_products_of_widths_where_they_do_not_fit() -> None:
    small, large = (measure(asked(n, (3, 2)))[1].rows[0]["memory_bytes"] for n in (20_000, 1_000_000))

    specs = load_zoos(["hub"])
    image, text = ([s.embed_dim or 0 for s in specs if s.modality == side] for side in ("image", "text"))
    widths = [*image[:3], *text[:2]]
    assert small > 4 * 20_000 * sum(widths)
    assert 4 * sum(width**2 for width in widths) < large < 4 * 1_000_000 * max(widths)


def test_polishing_is_priced_where_it_is_asked_for() -> None:
    def flops(polish: int) -> int:
        one = asked(20_000, (3, 2))
        stages, _ = measure(replace(one, config=replace(one.config, polish=polish)))
        return next(int(row["flops"]) for row in stages.rows if row["stage"] == "polishing")

    assert flops(0) == 0
    assert 0 < flops(1) < flops(2)


def test_a_zoo_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="the zoo has 9 text encoders, got --grid 30x12; ask for fewer"):
        measure(asked(1_000, (30, 12)))
