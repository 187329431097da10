"""Batches that memory does not hold, halved until it does."""

import gc
from collections.abc import Callable
from typing import Final, TypeVar

import torch

__all__ = ["fitting", "is_out_of_memory"]

T = TypeVar("T")

_WORDS: Final = (  # of what torch says where it has no error of its own: CPUs, other accelerators, their libraries
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "_ALLOC_FAILED",
)


def fitting(compute: Callable[[int], T], size: int, what: str) -> tuple[T, int]:
    """Compute in batches of `size` items, or half as many, and so on down to one, as memory allows.

    Args:
        compute: Does all of it in batches of so many items.
        size: What to try first.
        what: Computes, in words, for the error.

    Returns:
        What was computed, and the size that was small enough.

    Raises:
        MemoryError: If one item at a time is too much.
    """
    while True:
        try:
            return compute(size), size
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if size <= 1:
                raise MemoryError(
                    f"{what} needs more memory than there is, with one item at a time; leave it out, or use a machine "
                    "with more"
                ) from None
        size //= 2
        _release()  # here, where the error no longer holds what was computed


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short, of this machine or of its accelerator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def _release() -> None:
    """Give back what the larger batch has left behind."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
