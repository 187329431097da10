"""Scales and biases of normalisation layers: found, given from outside for one call, folded in for good.

A network that is adapted for a call is left as it was; only `fold` writes values down, and it writes a copy.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Adapted", "Statistics", "adapt", "call_adapted", "find_adapted", "fold", "freeze_adapted", "use_statistics"]

Statistics = Literal["running", "batch"]

_BATCH: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_LAYERS: Final = (*_BATCH, nn.LayerNorm, nn.GroupNorm)


class Adapted(NamedTuple):
    """The scales and biases of a network's normalisation layers, scales first.

    Attributes:
        names: Of the parameters, as the network's state dict has them.
        shapes: Of each.
        n_scales: How many of the names are scales.
        kinds: "BN", "LN" and "GN", as far as there are such layers.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    n_scales: int
    kinds: tuple[str, ...]

    @property
    def sizes(self) -> list[int]:
        """Numbers in each parameter."""
        return [torch.Size(shape).numel() for shape in self.shapes]

    @property
    def n_numbers(self) -> int:
        """Numbers in all, A."""
        return sum(self.sizes)

    @property
    def n_scale_numbers(self) -> int:
        """Numbers that are scales; they come first."""
        return sum(self.sizes[: self.n_scales])


def find_adapted(network: nn.Module) -> Adapted:
    """Find every scale and bias of a BatchNorm, LayerNorm or GroupNorm; one that two layers share stands once.

    Raises:
        ValueError: There is none.
    """
    found: dict[str, dict[str, tuple[int, ...]]] = {"weight": {}, "bias": {}}
    kinds, seen = set(), set[int]()
    for layer_name, layer in _normalisation_layers(network):
        for part, named in found.items():
            parameter = getattr(layer, part, None)
            if isinstance(parameter, nn.Parameter) and id(parameter) not in seen:
                seen.add(id(parameter))
                named[f"{layer_name}.{part}".lstrip(".")] = tuple(parameter.shape)
                kinds.add(_kind(layer))
    scales, biases = found["weight"], found["bias"]
    if not scales and not biases:
        raise ValueError(
            f"{type(network).__name__} has no scale or bias of a BatchNorm, LayerNorm or GroupNorm, and HyperCLIP "
            "adapts nothing else; choose an encoder that has some"
        )
    return Adapted((*scales, *biases), (*scales.values(), *biases.values()), len(scales), tuple(sorted(kinds)))


def adapt(network: nn.Module, adapted: Adapted, change: Tensor) -> dict[str, Tensor]:
    """Apply a change to the scales and biases that a network has: γ → γ · exp(change), β → β + change.

    A new network has γ = 1 and β = 0, which makes this the paper's γ = exp(·), and a trained one starts from what it
    has learned. A scale that is zero, as some networks begin, could never leave it: it becomes exp(change) − 1.

    Args:
        network: Its own values are read and stay as they are; no gradient flows to them.
        adapted: From `find_adapted(network)`.
        change: (A,), scales first.

    Returns:
        Parameters by name, for `call_adapted` or `fold`.
    """
    own = dict(network.named_parameters(remove_duplicate=False))
    flat = torch.cat([own[name].detach().reshape(-1) for name in adapted.names]).to(change.dtype)
    n = adapted.n_scale_numbers
    scale, up = flat[:n], change[:n]
    scales = torch.where(scale == 0, up.expm1(), scale * up.exp())
    parts = torch.cat([scales, flat[n:] + change[n:]]).split(adapted.sizes)
    return {name: part.view(shape) for name, part, shape in zip(adapted.names, parts, adapted.shapes, strict=True)}


def call_adapted(network: nn.Module, parameters: Mapping[str, Tensor], *args: Any) -> Any:
    """Call a network with other values for some of its parameters; none leaves it as it is."""
    return functional_call(network, dict(parameters), args) if parameters else network(*args)


def fold(network: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy a network's state dict with other values for some of its parameters."""
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for name, value in parameters.items():
        state[name] = value.detach().to(state[name]).clone()
    return state


def freeze_adapted(network: nn.Module, adapted: Adapted) -> None:
    """Keep the network's own scales and biases out of training: the hypernetwork speaks for them."""
    own = dict(network.named_parameters())
    for name in adapted.names:
        own[name].requires_grad_(False)


def use_statistics(network: nn.Module, statistics: Statistics) -> None:
    """Put a network into training mode, its BatchNorm layers normalising by these statistics.

    Args:
        network: With BatchNorm or without.
        statistics: "running" normalises by what the layers have stored and leaves that alone. "batch" normalises by
            the batch and keeps a running mean of it for evaluation; a network from scratch needs it, for what it has
            stored at the start says nothing about its activations.
    """
    network.train()
    for _, layer in _normalisation_layers(network):
        if isinstance(layer, _BATCH):
            layer.train(statistics == "batch")


def _normalisation_layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, layer) for name, layer in network.named_modules() if isinstance(layer, _LAYERS))


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, _BATCH):
        return "BN"
    return "LN" if isinstance(layer, nn.LayerNorm) else "GN"
