"""Who does what where several processes train together: the first one writes, the others wait and read."""

from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["device_of_training", "is_first", "same_everywhere", "wait"]


def is_first() -> bool:
    """Whether this process writes; of several it is the first alone."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def wait() -> None:
    """Go on when every process has come here."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def same_everywhere(make: Callable[[], Path]) -> Path:
    """What the first process makes, told to the others where there are some."""
    from accelerate.utils import broadcast_object_list

    told = [make() if is_first() else None]
    broadcast_object_list(told)
    assert told[0] is not None, "the first process has told it"
    return told[0]


def device_of_training() -> torch.device:
    """The device that `train` uses."""
    from accelerate import PartialState

    return torch.device(PartialState().device)
