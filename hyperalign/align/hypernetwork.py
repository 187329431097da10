"""Networks that emit connectors.

`ResidualNetwork` (the default) emits for each encoder a transform of its canonical space, from one learned code per
encoder: N + M emissions serve N×M pairs. It emits in coordinates that all encoders share (see `consensus`).
`SlicedNetwork` (the poster's) emits one weight as wide as the widest image encoder from the mean of a batch of its
embeddings, and each encoder takes a slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from hyperalign.align.connectors import Connector, unit_rows
from hyperalign.ledger import matmul_flops, mlp_step_flops

_N_SIDES = 2  # images and texts


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidualConfig:
    """Shape of the residual hypernetwork; the one home of these defaults.

    Attributes:
        code_dim: Width of the learned code of an encoder.
        hidden: Widths of the MLP's hidden layers, the last at least 2; without any, codes are mapped as they are.
        common: Share, in [0, 1), of what goes into the last layer that is the same for all encoders of a side.
    """

    code_dim: int = 32
    hidden: tuple[int, ...] = (32,)
    common: float = 0.25

    def __post_init__(self) -> None:
        """Refuse values no run could use."""
        if min([self.code_dim, *self.hidden]) < 1:
            raise ValueError(f"code_dim and hidden must be at least 1, got {self}")
        if self.hidden and self.hidden[-1] < 2:
            raise ValueError(f"the last hidden layer must be at least 2 wide, got {self.hidden[-1]}")
        if not 0 <= self.common < 1:
            raise ValueError(f"common must be in [0, 1), got {self.common}")


def transform(rows: Tensor, by: Tensor) -> Tensor:
    """(I + T) x for rows x, (E, B, R), and T, (E, R, R) -> (E, B, R)."""
    return torch.baddbmm(rows, rows, by.mT)


def transform_step_flops(batch: int, rank: int) -> int:
    """FLOPs of forward and backward of one transform of (batch, rank) rows, which are data and have no gradient."""
    return 2 * matmul_flops(batch, rank, rank)


def _layers(widths: Sequence[int]) -> list[nn.Linear]:
    """Layers whose values are not drawn yet, so that the global generator is left alone."""
    return [nn.utils.skip_init(nn.Linear, a, b) for a, b in pairwise(widths)]


def _draw(layer: nn.Linear, generator: torch.Generator, *, bias: bool) -> None:
    """Values uniform in ±1/√D_in, as in `torch.nn.Linear`; a bias of zeros on request."""
    bound = layer.in_features**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        if bias:
            layer.bias.uniform_(-bound, bound, generator=generator)
        else:
            layer.bias.zero_()


def _mlp(layers: Sequence[nn.Linear]) -> nn.Sequential:
    """The layers with a GELU between each two."""
    first, *rest = layers
    return nn.Sequential(first, *(module for layer in rest for module in (nn.GELU(), layer)))


def _emit_flops(n_rows: int, widths: Sequence[int]) -> int:
    """FLOPs of one forward pass of an MLP."""
    return sum(matmul_flops(n_rows, a, b) for a, b in pairwise(widths))


class ResidualNetwork(nn.Module):
    """One code per encoder and its side → a transform of its canonical space, T = Q MLP(code, side) Qᵀ.

    Q is the encoder's basis. What goes into the last layer has length 1, so that a rate means the same for every width:
    the centred hidden layer, and a number for the side, for codes are hardly alike and would leave every encoder to
    learn by itself. The last layer starts at zero: at the start every connector is the closed form.
    Codes of the N image encoders come first, then those of the M text encoders.
    """

    def __init__(self, bases: Tensor, n_image: int, config: ResidualConfig, generator: torch.Generator) -> None:
        """Make codes and layers.

        Args:
            bases: (N + M, R, R), Q of each encoder; zero rows where a coordinate of it is always zero.
            n_image: Image encoders, N.
            config: Widths.
            generator: Seeds codes and layers.
        """
        super().__init__()
        n_encoders, self.rank = bases.shape[:2]
        self.codes = nn.Parameter(torch.randn(n_encoders, config.code_dim, generator=generator))
        side = torch.ones(n_encoders, 1)
        side[n_image:] = -1
        self.register_buffer("side", side)
        self.register_buffer("bases", bases)
        self.widths = (config.code_dim + 1, *config.hidden)
        layers = _layers(self.widths)
        for layer in layers:
            _draw(layer, generator, bias=False)
        self.hidden = nn.Sequential(*(module for layer in layers for module in (layer, nn.GELU("tanh"))))
        common = torch.zeros(n_encoders, _N_SIDES)
        common[:n_image, 0] = common[n_image:, 1] = config.common**0.5
        self.register_buffer("common", common)
        self.own = (1 - config.common) ** 0.5
        self.last = nn.Parameter(torch.zeros(self.rank**2, self.widths[-1] + _N_SIDES))

    def forward(self, encoders: Tensor) -> Tensor:
        """Transforms of some encoders' own coordinates.

        Args:
            encoders: (E,) indices, text encoders counted on from N.

        Returns:
            (E, R, R)
        """
        return in_own(self.emit(encoders), self.get_buffer("bases")[encoders])

    def emit(self, encoders: Tensor) -> Tensor:
        """The same in coordinates that all encoders share, (E, R, R)."""
        hidden = self.hidden(torch.cat([self.codes[encoders], self.get_buffer("side")[encoders]], 1))
        hidden = unit_rows(hidden - hidden.mean(1, keepdim=True))
        hidden = torch.cat([hidden * self.own, self.get_buffer("common")[encoders]], 1)
        return (hidden @ self.last.mT).view(len(encoders), self.rank, self.rank)

    def step_flops(self, n_encoders: int) -> int:
        """FLOPs of one emission for `n_encoders` encoders, forward and backward."""
        turned = 4 * n_encoders * matmul_flops(self.rank, self.rank, self.rank)
        return sum(mlp_step_flops(n_encoders, part, input_grad=True) for part in self._products()) + turned

    def emit_flops(self, n_encoders: int) -> int:
        """FLOPs of one emission, forward alone."""
        turned = 2 * n_encoders * matmul_flops(self.rank, self.rank, self.rank)
        return sum(_emit_flops(n_encoders, part) for part in self._products()) + turned

    def _products(self) -> tuple[tuple[int, ...], tuple[int, int]]:
        """Widths of the hidden layers, and of the last."""
        return self.widths, (self.last.shape[1], self.last.shape[0])


def in_own(shared: Tensor, bases: Tensor) -> Tensor:
    """Transforms in shared coordinates, (E, S, S), as encoders with bases Q, (E, R, S), see them: Q T Qᵀ, (E, R, R)."""
    return bases @ shared @ bases.mT


def fold_into(projection: Tensor, by: Tensor) -> Tensor:
    """A projection, (D, R), followed by a transform, (R, R), as one projection, (D, R)."""
    return transform(projection[None], by[None])[0]


class SlicedNetwork(nn.Module):
    """The poster's hypernetwork for one text encoder: mean of a batch → slices of one widest connector.

    Condition: batch mean of an image encoder's rows, padded with zeros to the widest, linear to 32. MLP 32→128→512→Q
    with GELU, Q = D_max·D_txt + D_max. Weight and bias are slices of the output scaled by 1/√numel. Source: the
    Hyper-Align poster (Singh, Misra, Knyazev, Orvieto 2025); widths and padding as in the authors' research code.
    """

    def __init__(self, d_max: int, d_txt: int, generator: torch.Generator) -> None:
        """Make the layers.

        Args:
            d_max: Width of the widest image encoder.
            d_txt: Width of the text encoder.
            generator: Seeds the layers.
        """
        super().__init__()
        self.d_max, self.d_txt = d_max, d_txt
        self.widths = (d_max, 32, 128, 512, d_max * d_txt + d_max)
        condition, *layers = _layers(self.widths)
        for layer in (condition, *layers):
            _draw(layer, generator, bias=True)
        self.condition, self.mlp = condition, _mlp(layers)

    def forward(self, means: Tensor) -> Tensor:
        """(E, D_max) padded means -> (E, Q) outputs, to be cut by `slice_connector`."""
        out: Tensor = self.mlp(self.condition(means))
        return out

    def slice_connector(self, out: Tensor, d_img: int) -> Connector:
        """The connector of one encoder of width `d_img`, from one row (Q,) of the output."""
        weight = out[: d_img * self.d_txt].reshape(1, d_img, self.d_txt) / (d_img * self.d_txt) ** 0.5
        bias = out[self.d_max * self.d_txt :][:d_img].reshape(1, d_img) / d_img**0.5
        return Connector(weight, bias)

    def step_flops(self, n_encoders: int) -> int:
        """FLOPs of one emission for `n_encoders` encoders, forward and backward."""
        return mlp_step_flops(n_encoders, self.widths, input_grad=False)

    def emit_flops(self, n_encoders: int) -> int:
        """FLOPs of one emission, forward alone."""
        return _emit_flops(n_encoders, self.widths)
