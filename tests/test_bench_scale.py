"""What a search over many pictures costs, computed: figures that a hand can check."""

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


def test_a_zoo_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="the zoo has 9 text encoders, got --grid 30x12; ask for fewer"):
        measure(asked(1_000, (30, 12)))
