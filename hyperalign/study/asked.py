"""What a study is asked for: what varies, what is scored, who proposes, when it ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from hyperalign.align.train import TrainConfig
from hyperalign.request import SearchConfig
from hyperalign.solve import Method

__all__ = ["OBJECTIVES", "OVER", "PRUNERS", "SAMPLERS", "StudyConfig", "Tuned", "tuned"]

OVER = ("training", "pairs")
OBJECTIVES = ("score", "flops")
SAMPLERS = ("tpe", "gp", "random", "nsga2")
PRUNERS = ("none", "median", "hyperband")


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """What a study is asked for.

    Attributes:
        over: What varies: "training", fields of `TrainConfig`; or "pairs", the encoders.
        trials: Finished trials of the study in all, pruned and failed ones with them.
        objectives: "score", the score on validation in per cent, or "score" and "flops". Over trainings FLOPs are
            those of the search, over pairs those of one picture and one caption.
        sampler: Who proposes, of `SAMPLERS`.
        pruner: Who ends trials early, of `PRUNERS`; a study of two objectives has none. None is median for one.
        looks: Looks at validation of each training that can be pruned.
        space: What varies, by field, in words such as `1e-4:1e-1:log` or `128,256,512`; empty for the usual fields.
        seeds: Trainings of one setting, their scores averaged; the first is pruned, the others are not.
        patience: Ends the study after so many finished trials without a better one; None never does.
        target: Ends the study at this score in per cent; None never does.
    """

    over: str = "training"
    trials: int = 40
    objectives: tuple[str, ...] = ("score",)
    sampler: str = "tpe"
    pruner: str | None = None
    looks: int = 4
    space: Mapping[str, str] = field(default_factory=dict)
    seeds: int = 1
    patience: int | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no study could do."""
        for what, value, known in (
            ("over", self.over, OVER),
            ("sampler", self.sampler, SAMPLERS),
            *((("pruner", self.pruner, PRUNERS),) if self.pruner is not None else ()),
        ):
            if value not in known:
                raise ValueError(f"{what} must be one of {', '.join(known)}, got {value!r}")
        if self.objectives not in (("score",), ("score", "flops")):
            raise ValueError(f"a study has the objective score, or score,flops, got {','.join(self.objectives)!r}")
        for name, least in (("trials", 1), ("looks", 1), ("seeds", 1), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if len(self.objectives) > 1:
            self._check_two()
        elif self.sampler == "nsga2":
            raise ValueError("nsga2 is for two objectives; give --objective score,flops, or another --sampler")
        if self.over == "pairs" and (self.space or self.seeds != 1):
            raise ValueError(
                "a study over pairs varies the encoders and tries each pair once; leave out space and seeds"
            )

    def _check_two(self) -> None:
        given = {"pruner": self.pruner not in (None, "none"), "patience": self.patience, "target": self.target}
        for name, value in given.items():
            if value:
                raise ValueError(f"{name} is for one objective, got score,flops too; leave one of the two out")

    @property
    def pruning(self) -> str:
        """Who ends trials early."""
        return self.pruner or ("median" if len(self.objectives) == 1 else "none")


class Tuned(NamedTuple):
    """Where the settings that are tuned stand.

    Attributes:
        method: What is trained.
        field: Of `Recipe`.
        table: Of a configuration file.
        base: What the study starts from.
    """

    method: Method
    field: str
    table: str
    base: TrainConfig


def tuned(config: SearchConfig) -> Tuned:
    """The training that a study of this configuration tunes: that of the method whose order is the answer.

    Raises:
        ValueError: If that method is not trained.
    """
    method, recipe = config.answering(), config.recipe()
    if method.name == "closed-form":
        raise ValueError("the closed form has no training to tune, got method closed-form; give hypernet or ape")
    if method.name == "ape":
        field = "ape_both" if method.sides == "both" else "ape"
        return Tuned(method, field, "baseline_both" if method.sides == "both" else "baseline", getattr(recipe, field))
    field = "sliced" if method.name == "hypernet-sliced" else "residual"
    return Tuned(method, field, "train", getattr(recipe, field))
