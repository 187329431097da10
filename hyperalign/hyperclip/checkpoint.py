"""A training as it stands, in one file: weights now and at their best, the optimiser's moments, settings and record."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from hyperalign.run import write_whole

__all__ = ["keep", "restore"]


def keep(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    *,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    best: Mapping[str, Tensor],
) -> None:
    """Write a checkpoint; settings and record are plain values and stand in its head.

    `best` is the state of the network that validated best, empty where none was validated.
    """
    tensors = {f"network/{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for number, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{number}/{name}": torch.as_tensor(value) for name, value in moments.items()}
    head = {"config": config, "record": record}
    path.parent.mkdir(parents=True, exist_ok=True)
    data = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, metadata={"training": json.dumps(head)})
    write_whole(path, data)


def restore(
    path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, *, config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put a training back to where its checkpoint stands.

    Returns:
        The record that it was kept with, and the state that validated best.

    Raises:
        ValueError: If the file is damaged, or of a training with other settings or of another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {}).get("training", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, OSError):
        raise ValueError(f"{path} is damaged or was cut short; remove it to train from the start") from None
    if head.get("config") != json.loads(json.dumps(config)):
        raise ValueError(f"{path} belongs to a training with other settings; remove it to train from the start")
    own, best, moments = (_under(part, tensors) for part in ("network", "best", "optimiser"))
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for states in (own, best) if best else (own,):
        if {name: tensor.shape for name, tensor in states.items()} != expected:
            raise ValueError(f"{path} holds another network; remove it to train from the start")
    network.load_state_dict(own)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in moments.items():
        number, _, moment = name.partition("/")
        state.setdefault(int(number), {})[moment] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return head["record"], best


def _under(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{part}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
