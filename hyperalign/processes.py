"""Several processes on one job, as `accelerate launch` starts them: who speaks, who writes, and how they talk.

The first process decides, writes and speaks; the others do what it asks for. They talk over gloo, whatever their
devices are, in JSON. Who waits looks up five times a second, so that Ctrl-C and a launcher that ends them are heard; a
process whose partner has gone says so and ends.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = [
    "ALONE",
    "Crew",
    "EndedError",
    "crew",
    "device_of_training",
    "is_first",
    "n_launched",
    "rank",
    "same_everywhere",
    "wait",
]

_T = TypeVar("_T")

_POLL = 0.2  # seconds
_LONGEST = timedelta(days=30)  # that one process may wait for another: training or a slow network, not a fault
_GONE = "another process of this launch has ended"


class EndedError(KeyboardInterrupt):
    """The launch is over before the job is: stopped as by Ctrl-C, whatever this process was doing."""


@dataclass(kw_only=True)
class Crew:
    """The processes of a launch, seen from one of them.

    Attributes:
        rank: Which of them this is; 0 decides.
        size: How many there are.
        group: Of torch, over gloo; None for a process by itself.
        is_listening: Whether the others wait for an order, as far as the first one knows.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    is_listening: bool = True

    def order(self, words: dict[str, Any]) -> None:
        """Tell all others what to do; for the first. It collects their answers before the next order."""
        self.is_listening = False
        self._pass(words, source=0)

    def collect(self, own: dict[str, Any], meanwhile: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """What every process has done, in their order, this one's with it; for the first.

        Args:
            own: What this process has done.
            meanwhile: Called again and again while others are not done yet.

        Raises:
            ValueError: With the sentence of a process that could not do it.
        """
        others = [self._pass(None, source=source, meanwhile=meanwhile) for source in range(1, self.size)]
        self.is_listening = True
        for found in others:
            if "error" in found:
                raise ValueError(found["error"])
        return [own, *others]

    def dismiss(self) -> None:
        """Let the others go, if they are waiting for an order; for the first."""
        if self.size > 1 and self.is_listening:
            self.order({"do": "over"})

    def hear(self) -> dict[str, Any]:
        """What the first one tells; for the others. Waits as long as it takes."""
        return self._pass(None, source=0)

    def answer(self, own: dict[str, Any]) -> None:
        """Tell what was done; for the others, who hear each other's answers too."""
        for source in range(1, self.size):
            self._pass(own if source == self.rank else None, source=source)

    def _pass(
        self, words: dict[str, Any] | None, *, source: int, meanwhile: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        import torch

        data = b"" if words is None else json.dumps(words).encode()
        length = torch.tensor([len(data)])
        self._broadcast(length, source, meanwhile)
        text = torch.frombuffer(bytearray(data), dtype=torch.uint8) if words is not None else None
        if text is None:
            text = torch.empty(int(length), dtype=torch.uint8)
        self._broadcast(text, source, meanwhile)
        found: dict[str, Any] = json.loads(text.numpy().tobytes())
        return found

    def _broadcast(self, tensor: "torch.Tensor", source: int, meanwhile: Callable[[], None]) -> None:
        """From one to all, without being deaf meanwhile.

        Raises:
            EndedError: If a process that was waited for has gone.
        """
        import torch.distributed as dist

        try:
            work = dist.broadcast(tensor, src=source, group=self.group, async_op=True)
            assert work is not None, "it was asked for as something to wait for"
            while not work.is_completed():
                time.sleep(_POLL)
                meanwhile()
            work.wait()
        except RuntimeError as error:  # gloo's words are of sockets
            raise EndedError(_GONE) from error


ALONE = Crew()


@contextmanager
def crew() -> Iterator[Crew]:
    """All processes of this launch, for a job that they share; `ALONE` where nothing was launched.

    While it lasts, a launcher that ends this process is heard as Ctrl-C is.
    """
    if n_launched() == 1:
        yield ALONE
        return
    import torch.distributed as dist

    state = _state()
    group = dist.new_group(backend="gloo", timeout=_LONGEST)
    own, before = os.getpid(), signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: object) -> None:
        if os.getpid() != own:  # a child that was forked has inherited this
            os._exit(128 + number)
        raise EndedError(_GONE)

    signal.signal(signal.SIGTERM, end)
    try:
        yield Crew(rank=state.process_index, size=state.num_processes, group=group)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "onnection closed by peer" not in str(error):
            raise
        raise EndedError(_GONE) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def n_launched() -> int:
    """How many processes were started together; from the environment, without importing anything."""
    words = os.environ.get("WORLD_SIZE", "1")
    return int(words) if words.isdigit() and "RANK" in os.environ else 1


def rank() -> int:
    """Which of those that were started together this is; 0 is the one that speaks."""
    return int(os.environ["RANK"]) if n_launched() > 1 else 0


def is_first() -> bool:
    """Whether this process writes; of several it is the first alone."""
    return bool(_state().is_main_process)


def wait() -> None:
    """Go on when every process has come here."""
    _state().wait_for_everyone()


def same_everywhere(make: Callable[[], _T]) -> _T:
    """What the first process makes, told to the others where there are some."""
    from accelerate.utils import broadcast_object_list

    told = [make() if is_first() else None]
    broadcast_object_list(told)
    assert told[0] is not None, "the first process has told it"
    return told[0]


def device_of_training() -> "torch.device":
    """The device that `train` uses."""
    import torch

    return torch.device(_state().device)


def _state() -> Any:
    """Accelerate's own knowledge; without a device it must be told so, or it takes each process for the only one."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())
