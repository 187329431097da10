"""The search space of a training: fields of `TrainConfig`, each with a range or choices; the best trial is one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from hyperalign.align.train import MAX_LOGIT_SCALE, TrainConfig
from hyperalign.config import convert

__all__ = ["Knob", "defaults", "read_space", "turned", "usual_space"]

_LENGTHS = ("n_steps", "n_epochs", "n_visits")  # one of them rules
_OTHERS = ("seed", "n_validations", "betas")  # what a study sets itself, or what is no single number
_WHOLE = frozenset({"n_steps", "n_visits", "batch_size", "pairs_per_step"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """One field of `TrainConfig` that varies.

    Attributes:
        name: The field.
        low: Smallest value; None where there are choices.
        high: Largest value.
        log: Whether its logarithm is even.
        choices: The values themselves, where there is no range.
    """

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it is a whole number."""
        return self.name in _WHOLE

    def holds(self, value: Any) -> bool:
        """Whether a value is one of those that are tried."""
        if self.choices:
            return value in self.choices
        assert self.low is not None, "a range has two ends"
        assert self.high is not None, "a range has two ends"
        return value is not None and self.low <= value <= self.high

    def __str__(self) -> str:
        """As it is typed."""
        if self.choices:
            return ",".join(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in self.choices)
        return f"{self.low:g}:{self.high:g}" + (":log" if self.log else "")


def usual_space(base: TrainConfig, *, hypernet: bool) -> tuple[Knob, ...]:
    """What is usually worth varying, around what a training has by default.

    Args:
        base: The training.
        hypernet: Whether it draws several pairs a step, and is told how far its inverse temperature starts.
    """
    length = _length(base)
    long = getattr(base, length)
    knobs = [
        Knob(name=length, low=max(long / 4, 1 if length in _WHOLE else 0), high=long * 4, log=True),
        Knob(name="learning_rate", low=base.learning_rate / 10, high=_highest_rate(base), log=True),
        Knob(name="batch_size", choices=tuple(sorted({max(2, base.batch_size * 2**k // 4) for k in range(4)}))),
        Knob(name="warmup_frac", low=0.0, high=0.5),
        Knob(name="logit_scale", low=base.logit_scale / 4, high=min(base.logit_scale * 4, MAX_LOGIT_SCALE), log=True),
    ]
    if hypernet:
        knobs.append(Knob(name="pairs_per_step", low=1, high=2 * base.pairs_per_step))
    return tuple(_rounded(knob) for knob in knobs)


def _highest_rate(base: TrainConfig) -> float:
    """Ten times the base's; no step of AdamW is of use above 1, a damped mean has another unit."""
    return base.learning_rate * 10 if base.optimizer == "damped" else min(base.learning_rate * 10, 1.0)


def read_space(words: Mapping[str, Any], base: TrainConfig) -> tuple[Knob, ...]:
    """Read `{"learning_rate": "1e-4:1e-1:log", "batch_size": "128,256"}`.

    Args:
        words: By field; a list is as good as words with commas.
        base: The training that it belongs to; every end and choice must be a value that it could have.

    Raises:
        ValueError: For a field that no training has, a range that does not rise, a value no training could have.
    """
    lengths = [name for name in _LENGTHS if name in words]
    if len(lengths) > 1:
        raise ValueError(f"one field says how long a training is, got {' and '.join(lengths)} in the space")
    return tuple(_read_knob(name, value, base) for name, value in words.items())


def turned(base: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """The training with some fields at other values; a length takes the place of the one that ruled.

    Raises:
        ValueError: For a field that no training has, or a value that it could not have.
    """
    if strange := values.keys() - {field.name for field in fields(base)}:
        raise ValueError(f"a trial is of {', '.join(sorted(strange))}, and no training has such a field")
    rest: dict[str, Any] = {}
    if any(name in values for name in _LENGTHS):
        rest = {"n_steps": None, "n_epochs": None}
    return replace(base, **{**rest, **values})


def defaults(knobs: Sequence[Knob], base: TrainConfig) -> dict[str, Any]:
    """What the training has today, of those fields whose value is among what is tried."""
    found = {knob.name: getattr(base, knob.name) for knob in knobs}
    found = {name: value for name, value in found.items() if name not in _LENGTHS or name == _length(base)}
    return {knob.name: found[knob.name] for knob in knobs if knob.name in found and knob.holds(found[knob.name])}


def _length(base: TrainConfig) -> str:
    if base.n_steps is not None:
        return "n_steps"
    return "n_visits" if base.n_epochs is None else "n_epochs"


def _rounded(knob: Knob) -> Knob:
    if not knob.whole or knob.low is None or knob.high is None:
        return knob
    return replace(knob, low=int(knob.low), high=int(knob.high))


def _read_knob(name: str, given: Any, base: TrainConfig) -> Knob:
    if name in _OTHERS:
        raise ValueError(f"{name} cannot vary in a study: it is no single number, or the study sets it itself")
    words = ",".join(map(str, given)) if isinstance(given, list | tuple) else str(given)
    if ":" in words:
        low, high, *rest = (part.strip() for part in words.split(":"))
        if rest not in ([], ["log"]):
            raise ValueError(f"the space of {name} must be LOW:HIGH, LOW:HIGH:log or values with commas, got {words!r}")
        knob = Knob(name=name, low=_value(name, low, base), high=_value(name, high, base), log=rest == ["log"])
        ends = knob.low, knob.high
        if isinstance(knob.low, bool) or ends[0] is None or ends[1] is None or not ends[0] < ends[1]:
            raise ValueError(f"the space of {name} must rise from LOW to HIGH, got {words!r}")
        if knob.log and not ends[0] > 0:
            raise ValueError(f"the space of {name} must begin above 0 to be even in its logarithm, got {words!r}")
        return knob
    choices = tuple(_value(name, part.strip(), base) for part in words.split(",") if part.strip())
    if len(set(choices)) < 2:
        raise ValueError(f"the space of {name} needs two values or more, got {words!r}; leave it out to keep one")
    return Knob(name=name, choices=tuple(dict.fromkeys(choices)))


def _value(name: str, word: str, base: TrainConfig) -> Any:
    """A value of a field, that a training could have."""
    read: Any = {"true": True, "false": False}.get(word.lower())
    if read is None:
        try:
            read = float(word)
        except ValueError:
            raise ValueError(f"the space of {name} must hold numbers, or true,false; got {word!r}") from None
        if not math.isfinite(read):
            raise ValueError(f"the space of {name} must hold numbers, got {word!r}")
        read = int(read) if read.is_integer() and name in _WHOLE else read
    value = convert(TrainConfig, {name: read})[name]
    turned(base, {name: value})  # refuses what no training could have
    return value
