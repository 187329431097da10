"""One basis for all encoders: found where it is planted, zero where an encoder has nothing, and its cost."""

import pytest
import torch
from counting import count_all
from torch import Tensor

from hyperalign.align.consensus import bases_flops, find_bases

RANK = 6


def turned(n: int, seed: int) -> Tensor:
    """(n, R, R) rotations."""
    rotations: Tensor = torch.linalg.qr(torch.randn(n, RANK, RANK, generator=torch.Generator().manual_seed(seed)))[0]
    return rotations


def planted(noise: float = 0.0) -> Tensor:
    """(3, 2, R, R) connectors that are one diagonal seen in five bases."""
    images, texts, strength = turned(3, 0), turned(2, 1), torch.diag(torch.linspace(1, 0.2, RANK))
    cross = images[:, None] @ strength @ texts[None].mT
    return cross + noise * torch.randn(cross.shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_in_the_consensus_all_connectors_are_the_same(noise: float) -> None:
    cross = planted(noise)

    bases = find_bases(cross, [RANK] * 5)

    seen = torch.stack([bases[i].mT @ cross[i, j] @ bases[3 + j] for i in range(3) for j in range(2)])
    apart = planted(noise).flatten(0, 1).std(0).norm()
    assert float(seen.std(0).norm()) < (1e-4 if noise == 0 else 0.2 * float(apart))
    torch.testing.assert_close(bases @ bases.mT, torch.eye(RANK).expand(5, -1, -1), atol=1e-5, rtol=1e-5)


def test_a_narrow_encoder_has_rows_for_its_own_coordinates_alone() -> None:
    cross = planted()
    cross[:, 1, :, 4:] = 0
    cross[0, :, 3:] = 0

    bases = find_bases(cross, [3, RANK, RANK, RANK, 4])

    assert bases[0, 3:].abs().max() == bases[4, 4:].abs().max() == 0
    torch.testing.assert_close(bases[0, :3] @ bases[0, :3].T, torch.eye(3), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bases[4, :4] @ bases[4, :4].T, torch.eye(4), atol=1e-5, rtol=1e-5)


def test_one_pair_and_no_prediction_at_all_have_bases() -> None:
    assert find_bases(torch.randn(1, 1, 4, 4), [4, 4]).isfinite().all()
    assert find_bases(torch.zeros(2, 1, 4, 4), [4, 4, 4]).isfinite().all()


def test_finding_them_costs_what_runs() -> None:
    cross, widths = planted(), [3, RANK, RANK, RANK, 4]

    seen = count_all(lambda: find_bases(cross, widths))

    assert seen == bases_flops(widths[:3], widths[3:], RANK)
