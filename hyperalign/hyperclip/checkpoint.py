"""A training as it stands, in one file: weights, the optimiser's moments, the settings and what has happened so far."""

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
) -> None:
    """Write a checkpoint; settings and record are plain values and stand in its head."""
    tensors = {f"network/{name}": tensor for name, tensor in network.state_dict().items()}
    for number, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{number}/{name}": torch.as_tensor(value) for name, value in moments.items()}
    head = {"config": config, "record": record}
    path.parent.mkdir(parents=True, exist_ok=True)
    data = save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, metadata={"training": json.dumps(head)})
    write_whole(path, data)


def restore(
    path: Path, network: nn.Module, optimiser: torch.optim.Optimizer, *, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Put a training back to where its checkpoint stands.

    Returns:
        The record that it was kept with.

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
    state: dict[int, dict[str, Tensor]] = {}
    own = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "network":
            own[rest] = tensor
        else:
            number, _, moment = rest.partition("/")
            state.setdefault(int(number), {})[moment] = tensor
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if {name: tensor.shape for name, tensor in own.items()} != expected:
        raise ValueError(f"{path} holds another network; remove it to train from the start")
    network.load_state_dict(own)
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    record: dict[str, Any] = head["record"]
    return record
