"""What an encoder that comes later is given by those that were trained together."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from counting import count_all
from planted import mean_recall, plant, recalls, similarities
from torch import Tensor

from hyperalign.align.adoption import _axes, _carry, adopt, meet
from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.canonical_grid import CanonicalGrid, build_canonical_grid
from hyperalign.align.closed_form import canonical_solution
from hyperalign.align.consensus import find_bases
from hyperalign.align.directions import Directions
from hyperalign.align.grid import Grid
from hyperalign.align.hypernetwork import fold_into, in_own
from hyperalign.align.residual import RESIDUAL, solve_residual
from hyperalign.align.solution import Kept, Learned, Solution
from hyperalign.packing import pack_kept, unpack_kept

CONFIG = CanonicalConfig(rank=8)
SIDES = pytest.mark.parametrize("side", ["image", "text"])


def split(grid: Grid, side: str, k: int) -> tuple[Grid, Grid]:
    """The grid without an encoder, and with that one alone on its side."""
    tables, ok = (grid.images, grid.image_ok) if side == "image" else (grid.texts, grid.text_ok)
    parts = []
    for chosen in ([n for n in range(len(tables)) if n != k], [k]):
        some: Any = tuple(tables[n] for n in chosen)
        changes: dict[str, Any] = (
            {"images": some, "image_ok": ok[chosen]} if side == "image" else {"texts": some, "text_ok": ok[chosen]}
        )
        parts.append(replace(grid, **changes))
    return parts[0], parts[1]


def leave(canonical: CanonicalGrid, transforms: Tensor) -> Kept:
    """What a search leaves that has learned these transforms, in shared coordinates."""
    bases, n_img = find_bases(canonical.cross, canonical.widths), len(canonical.images)
    every = zip(canonical.whitenings, canonical.directions, bases, transforms, strict=True)
    learned = [Learned(*one) for one in every]
    return Kept(learned[:n_img], learned[n_img:], 12.5)


def answer(canonical: CanonicalGrid, kept: Kept) -> Solution:
    """The connectors of that search."""
    learned = [*kept.images, *kept.texts]
    ways = [side.canonical for side in (*canonical.images, *canonical.texts)]
    moved = [
        way._replace(projection=fold_into(way.projection, in_own(one.transform, one.basis)))
        for way, one in zip(ways, learned, strict=True)
    ]
    n_img = len(kept.images)
    return canonical_solution("hypernet", canonical, moved[:n_img], moved[n_img:])


def some_transforms(n_encoders: int, rank: int, *, size: float = 0.1) -> Tensor:
    """Of every encoder another."""
    return size * torch.randn(n_encoders, rank, rank, generator=torch.Generator().manual_seed(0))


def orthogonal(width: int, rank: int, seed: int) -> Directions:
    """Random directions of falling strength."""
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    return Directions(torch.linalg.qr(drawn).Q[:, :rank], torch.linspace(2, 1, rank))


# what a partner has learned, in other coordinates


def one_learned(width: int, rank: int) -> Learned:
    """Of an encoder with random directions, basis and transform."""
    whitening = build_canonical_grid(plant(60, image_dims=(width,), text_dims=(width,)), CONFIG).whitenings[0]
    basis = orthogonal(rank, rank, 5).basis
    return Learned(whitening, orthogonal(width, rank, 1), basis, some_transforms(1, rank)[0])


def test_where_the_directions_are_the_same_so_is_all_that_was_learned() -> None:
    learned = one_learned(12, 8)

    carried = _carry(learned, learned.directions, 8, 0.5)

    torch.testing.assert_close(carried.transform, in_own(learned.transform, learned.basis), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(carried.basis, learned.basis, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_between_directions_of_all_of_white_space_the_change_of_a_row_is_the_same(power: float) -> None:
    """Coordinates c = Gᵀz go to (I + T) c, and from there back to the row z that has them."""
    learned, now = one_learned(8, 8), orthogonal(8, 8, 2)

    carried = _carry(learned, now, 8, power)

    then, there = (_axes(one, 8, 8, power) for one in (learned.directions, now))
    before, after = in_own(learned.transform, learned.basis), carried.transform
    changes = [torch.linalg.solve(axes.mT, t @ axes.mT) for axes, t in ((then, before), (there, after))]
    torch.testing.assert_close(changes[0], changes[1], atol=1e-4, rtol=1e-3)


def test_of_directions_that_are_gone_nothing_is_left() -> None:
    learned = one_learned(12, 4)
    assert learned.directions is not None
    others = torch.linalg.svd(learned.directions.basis).U[:, 4:8]

    carried = _carry(learned, Directions(others, torch.ones(4)), 4, 0.5)

    assert carried.transform.abs().max() < 1e-5


# directions that others have told


@SIDES
def test_a_newcomer_that_tells_nothing_leaves_its_partners_the_directions_they_had(side: str) -> None:
    """Rows that are all the same predict nothing; without what others have told no direction would be found."""
    grid = plant(60, image_dims=(12, 16), text_dims=(14, 11))
    without, alone = split(grid, side, 1)
    kept = leave(build_canonical_grid(without, CONFIG), torch.zeros(3, 8, 8))
    tables = alone.images if side == "image" else alone.texts
    tables[0][:] = 1.0  # type: ignore[index]

    met = meet(alone, side, kept, CONFIG)

    partners = kept.texts if side == "image" else kept.images
    now = met.directions[1:] if side == "image" else met.directions[:-1]
    for before, after in zip(partners, now, strict=True):
        assert before.directions is not None
        assert after is not None
        common = torch.linalg.svdvals(before.directions.basis.mT @ after.basis)
        torch.testing.assert_close(common, torch.ones(8), atol=1e-3, rtol=0)
        torch.testing.assert_close(after.strength, before.directions.strength, atol=1e-3, rtol=1e-3)


def test_a_narrow_newcomer_does_not_narrow_its_partners() -> None:
    """Alone with a text encoder of width 3, images would keep 3 directions."""
    without, alone = split(plant(60, text_dims=(14, 3)), "text", 1)
    kept = leave(build_canonical_grid(without, CONFIG), torch.zeros(4, 8, 8))

    met = meet(alone, "text", kept, CONFIG)

    assert met.widths == [8, 8, 8, 3]


@SIDES
def test_what_is_known_of_partners_is_not_found_again(side: str) -> None:
    without, alone = split(plant(60), side, 1)
    kept = leave(build_canonical_grid(without, CONFIG), torch.zeros(4, 8, 8))

    met = meet(alone, side, kept, CONFIG)

    known = met.whitenings[1:] if side == "image" else met.whitenings[:-1]
    assert [one.mean for one in known] == [
        one.whitening.mean for one in (kept.texts if side == "image" else kept.images)
    ]
    assert met.flops < build_canonical_grid(alone, CONFIG).flops


@SIDES
@pytest.mark.parametrize("rank", [6, 8, 40])
def test_flops_of_a_set_up_among_partners_are_those_that_run(side: str, rank: int) -> None:
    config = CanonicalConfig(rank=rank, targets_per_rank=99, sketch_per_rank=99)
    without, alone = split(plant(80, n_captions=2, image_dims=(12, 90, 30), text_dims=(10, 95)), side, 0)
    kept = leave(built := build_canonical_grid(without, config), torch.zeros(4, *built.cross.shape[2:]))

    seen = count_all(lambda: meet(alone, side, kept, config))

    assert meet(alone, side, kept, config).flops == pytest.approx(seen, rel=0.01)


# the newcomer


@SIDES
def test_a_newcomer_is_given_the_mean_of_its_side(side: str) -> None:
    without, alone = split(plant(60, image_dims=(12, 8, 16), text_dims=(10, 14, 12)), side, 1)
    kept = leave(build_canonical_grid(without, CONFIG), some_transforms(5, 8))
    met = meet(alone, side, kept, CONFIG)

    found = adopt(side, met, kept, CONFIG)

    assert found.kept is not None
    (*before, mine) = found.kept.images if side == "image" else found.kept.texts
    peers = kept.images if side == "image" else kept.texts
    assert [id(one) for one in before] == [id(one) for one in peers]
    torch.testing.assert_close(mine.transform, torch.stack([one.transform for one in peers]).mean(0))
    own = (found.images if side == "image" else found.texts)[0]
    plain = (met.images if side == "image" else met.texts)[0].canonical
    assert own is not None
    torch.testing.assert_close(own.projection, fold_into(plain.projection, in_own(mine.transform, mine.basis)))


@SIDES
def test_the_copy_of_an_encoder_scores_as_it_does_where_its_side_has_learned_one_thing(side: str) -> None:
    """Image and text encoders each turn alike; the copy is not told whose copy it is."""
    grid, config = plant(200, image_dims=(12, 14, 16), text_dims=(13, 15), noise=0.5), CanonicalConfig(rank=16)
    canonical = build_canonical_grid(grid, config)
    shared = some_transforms(2, 16, size=0.15)[[0, 0, 0, 1, 1]]
    kept = leave(canonical, shared)
    _, alone = split(grid, side, 1)

    met = meet(alone, side, kept, config)
    found = adopt(side, met, kept, config)

    images, texts = ((1,), (0, 1)) if side == "image" else ((0, 1, 2), (1,))
    expected = similarities(answer(canonical, kept), grid)
    closed = similarities(canonical_solution("closed-form", met, *_ways(met)), alone)
    for (i, j), cosine in similarities(found, alone).items():
        whole = expected[images[i], texts[j]]
        assert (cosine - whole).abs().mean() < 0.3 * (closed[i, j] - whole).abs().mean()


def _ways(canonical: CanonicalGrid) -> tuple[list[Any], list[Any]]:
    return [c.canonical for c in canonical.images], [c.canonical for c in canonical.texts]


@SIDES
def test_a_newcomer_is_about_as_good_as_in_a_search_that_had_it(side: str) -> None:
    """Sums over the pairs of three encoders, each left out in turn; on items that were held back."""
    shapes: dict[str, Any] = {"image_dims": (12, 20, 16, 24), "text_dims": (14, 18, 22), "noise": 2.5}
    train, test = plant(400, **shapes), plant(300, items=1, **shapes)
    config, given = CanonicalConfig(rank=12), replace(RESIDUAL, n_visits=64, batch_size=128)
    whole = recalls(solve_residual(train, build_canonical_grid(train, config), given), test)
    adopted = full = 0.0
    for k in range(3):
        without, alone = split(train, side, k)
        search = solve_residual(without, build_canonical_grid(without, config), given)
        assert search.kept is not None
        found = adopt(side, meet(alone, side, search.kept, config), search.kept, config)
        adopted += sum(recalls(found, split(test, side, k)[1]).values())
        full += sum(score for pair, score in whole.items() if pair[side == "text"] == k)
    assert adopted > 0.95 * full
    assert full > 9 * 5  # chance is 100/300 each


@pytest.mark.parametrize(
    ("side", "shapes"), [("image", ((5, 5, 20), (4, 5))), ("text", ((5, 5), (4, 5, 18)))], ids=["image", "text"]
)
def test_a_newcomer_wider_than_all_others_has_more_coordinates_than_they_share(
    side: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    without, alone = split(plant(100, image_dims=shapes[0], text_dims=shapes[1]), side, 2)
    canonical = build_canonical_grid(without, CONFIG)
    assert canonical.cross.shape[-1] == 5
    kept = leave(canonical, some_transforms(4, 5))

    found = adopt(side, meet(alone, side, kept, CONFIG), kept, CONFIG)

    assert all(weight.isfinite().all() for weight in found.weights)
    assert mean_recall(found, alone) > 20  # chance is 1


@SIDES
def test_flops_of_an_adoption_are_those_that_run(side: str) -> None:
    without, alone = split(plant(60, image_dims=(12, 7, 16), text_dims=(10, 14, 6)), side, 1)
    kept = leave(build_canonical_grid(without, CONFIG), some_transforms(5, 8))
    met = meet(alone, side, kept, CONFIG)

    assert adopt(side, met, kept, CONFIG).emit_flops == count_all(lambda: adopt(side, met, kept, CONFIG))


@SIDES
def test_flops_of_an_adoption_among_newcomers_are_those_that_run(side: str) -> None:
    """Of the other side's two the second came later, and has more coordinates than are shared."""
    config, other = CanonicalConfig(rank=40), "text" if side == "image" else "image"
    grid = plant(60, image_dims=(5, 5, 30), text_dims=(4, 5, 30))
    first, _ = split(split(grid, side, 2)[0], other, 2)
    kept = leave(build_canonical_grid(first, config), some_transforms(4, 5))
    came = split(split(grid, side, 2)[0], other, 2)[1]
    longer = adopt(other, meet(came, other, kept, config), kept, config).kept
    assert longer is not None

    alone = split(grid, side, 2)[1]
    met = meet(alone, side, longer, config)

    assert sorted({len(one.basis) for one in (*longer.images, *longer.texts)}) == [5, 30]
    assert adopt(side, met, longer, config).emit_flops == count_all(lambda: adopt(side, met, longer, config))


# on disk


def test_what_is_kept_survives_the_disk() -> None:
    canonical = build_canonical_grid(plant(60, text_dims=(6, 14)), CONFIG)
    kept = leave(canonical, some_transforms(5, 8))

    back = unpack_kept(pack_kept(kept))

    assert (len(back.images), len(back.texts), back.logit_scale) == (3, 2, 12.5)
    assert back.texts[0].directions is None  # all of white space
    for one, other in zip([*kept.images, *kept.texts], [*back.images, *back.texts], strict=True):
        parts = [[*found.whitening, *(found.directions or ()), found.basis, found.transform] for found in (one, other)]
        for ours, theirs in zip(*parts, strict=True):
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("image/0/transform", lambda array: array * float("nan")),
        ("image/0/root", lambda array: array[1:]),
        ("image/1/basis", lambda array: array[:, 1:]),
        ("text/0/transform", lambda array: array[1:, 1:]),
        ("text/1/directions/strength", lambda array: array[:-1]),
        ("image/2/features", lambda array: array + 1000),
        ("image/2/mean", lambda array: array.astype("float64")),
    ],
)
def test_what_is_kept_and_does_not_fit_together_is_refused(name: str, spoil: Any) -> None:
    tensors = pack_kept(leave(build_canonical_grid(plant(60), CONFIG), some_transforms(5, 8)))

    with pytest.raises(ValueError, match="what the run has kept"):
        unpack_kept({**tensors, name: spoil(tensors[name])})


@pytest.mark.parametrize("name", ["logit_scale", "text/0/basis", "image/1/directions/strength"])
def test_what_is_kept_and_lacks_a_part_is_refused(name: str) -> None:
    tensors = pack_kept(leave(build_canonical_grid(plant(60), CONFIG), some_transforms(5, 8)))

    with pytest.raises(ValueError, match="the run is damaged or old; search anew"):
        unpack_kept({key: array for key, array in tensors.items() if key != name})
