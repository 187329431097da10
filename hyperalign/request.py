"""What a search is asked for; with the data it determines the table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hyperalign.align.baseline import APE, APE_BOTH
from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.residual import RESIDUAL
from hyperalign.align.sliced import SLICED
from hyperalign.align.train import TrainConfig
from hyperalign.config import build, convert
from hyperalign.embed.zoo import Limits
from hyperalign.solve import Method, Recipe

__all__ = ["METHODS", "SearchConfig", "from_record"]

METHODS = ("ape", "closed-form", "hypernet", "hypernet-sliced")
_ANSWERS = ("hypernet", "hypernet-sliced", "closed-form", "ape")  # whose order is the answer: the first that is run


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """What a search is asked for; with the data it determines the table.

    Attributes:
        zoo: Names of shipped zoos or paths of zoo files.
        data: Where pictures and captions come from.
        limits: What encoders must keep to.
        methods: Of `METHODS`; all stand in one table.
        decoder: "residual" or "sliced": which hypernetwork the word `hypernet` means.
        sides: Sides of the baseline's grid: "text", "both", or both words with a comma.
        task: "retrieval" or "zero-shot": what is scored.
        labels: Label set for zero-shot.
        verify: First pairs that are trained by the baseline too; None is 1 on the embedded zoo and 0 elsewhere.
        polish: First pairs that get connectors made for them alone; the winner is chosen among them by what these score
            on validation, and exported with its own where it is the better one.
        baseline_seeds: Seeds of the baseline's grid, where it is run; two or more give the noise ceiling.
        scores: Whether training-free scores are computed beside.
        seed: Of everything that is drawn.
        limit: At most so many pictures of each split.
        max_minutes: Training stops after so long; what is finished is ranked.
        strict: Stop at a picture that cannot be read.
        exhaustive: Embed everything with everyone; None does so where promotion would save little (see `promote`). A
            run records which of the two it was.
        autocast: Embed in bfloat16.
        ceiling: Zoo files of two encoders each that were trained together; they stand beside the pairs.
        train: Fields of `TrainConfig` for the hypernetwork that differ from its defaults.
        baseline: Fields of `TrainConfig` for the text-sided baseline that differ from its defaults.
        baseline_both: The same for the baseline between canonical coordinates.
        canonical: Fields of `CanonicalConfig` that differ from the defaults.
    """

    zoo: tuple[str, ...] = ("embedded",)
    data: str = "scenes"
    limits: Limits = field(default_factory=Limits)
    methods: tuple[str, ...] = ("hypernet",)
    decoder: str = "residual"
    sides: str = "text"
    task: str = "retrieval"
    labels: str | None = None
    verify: int | None = None
    polish: int = 2
    baseline_seeds: int = 2
    scores: bool = True
    seed: int = 0
    limit: int | None = None
    max_minutes: float | None = None
    strict: bool = False
    exhaustive: bool | None = None
    autocast: bool = False
    ceiling: tuple[str, ...] = ()
    train: Mapping[str, Any] = field(default_factory=dict)
    baseline: Mapping[str, Any] = field(default_factory=dict)
    baseline_both: Mapping[str, Any] = field(default_factory=dict)
    canonical: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no search could do."""
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"a method is one of {', '.join(METHODS)}, got {name!r}")
        if not self.methods:
            raise ValueError(f"a search needs a method: {', '.join(METHODS)}")
        for what, value, known in (
            ("decoder", self.decoder, ("residual", "sliced")),
            ("task", self.task, ("retrieval", "zero-shot")),
            *(("sides", side, ("text", "both")) for side in self.all_sides()),
        ):
            if value not in known:
                raise ValueError(f"{what} must be {' or '.join(known)}, got {value!r}")
        self._check_numbers()
        if self.ceiling and self.task != "retrieval":
            raise ValueError(f"a ceiling is scored by retrieval, and the task is {self.task}; leave out --ceiling")
        if self.exhaustive is False and not self.may_promote():
            raise ValueError("promotion is for retrieval without the baseline's grid; leave out ape and zero-shot")
        self.recipe()

    def _check_numbers(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.baseline_seeds < 1:
            raise ValueError(f"baseline_seeds must be at least 1, got {self.baseline_seeds}")
        if self.verify is not None and self.verify < 0:
            raise ValueError(f"verify must be at least 0 pairs, got {self.verify}")
        if self.polish < 0:
            raise ValueError(f"polish must be at least 0 pairs, got {self.polish}")
        if self.max_minutes is not None and not self.max_minutes >= 0:
            raise ValueError(f"max_minutes must be at least 0, got {self.max_minutes}")

    def may_promote(self) -> bool:
        """Whether pairs may leave before everything is embedded: the baseline's grid and zero-shot need all of them."""
        return "ape" not in self.methods and self.task == "retrieval" and self.exhaustive is not True

    def all_sides(self) -> list[str]:
        """Sides of the baseline, each once."""
        return list(dict.fromkeys(side.strip() for side in self.sides.split(",")))

    def recipe(self) -> Recipe:
        """How each method is trained, defaults and what was asked put together."""
        return Recipe(
            canonical=replace(CanonicalConfig(), **_known(CanonicalConfig, self.canonical, "canonical")),
            residual=replace(RESIDUAL, **_training(self.train, "train")),
            sliced=replace(SLICED, **_training(self.train, "train")),
            ape=replace(APE, **_training(self.baseline, "baseline")),
            ape_both=replace(APE_BOTH, **_training(self.baseline_both, "baseline_both")),
        )

    def plan_methods(self) -> list[Method]:
        """The methods in the order in which they run, cheap ones first."""
        names = ["hypernet-sliced" if n == "hypernet" and self.decoder == "sliced" else n for n in self.methods]
        wanted = []
        if "closed-form" in names:
            wanted += [Method("closed-form", sides, self.seed) for sides in ("both", "text")]
        if "hypernet" in names:
            wanted.append(Method("hypernet", "both", self.seed))
        if "hypernet-sliced" in names:
            wanted.append(Method("hypernet-sliced", "text", self.seed))
        if "ape" in names:
            seeds = range(self.seed, self.seed + self.baseline_seeds)
            wanted += [Method("ape", sides, seed) for sides in self.all_sides() for seed in seeds]
        return wanted

    def answering(self, among: Sequence[Method] | None = None) -> Method:
        """The method whose order is the answer, of those that have finished or of all."""
        return min(self.plan_methods() if among is None else among, key=lambda one: _ANSWERS.index(one.name))

    def n_verified(self) -> int:
        """How many of the first pairs the baseline trains too; none where its grid is run anyway."""
        if "ape" in self.methods:
            return 0
        return int(self.zoo == ("embedded",)) if self.verify is None else self.verify


def from_record(record: Mapping[str, Any]) -> SearchConfig:
    """The configuration of a record, its tables of training fields looked at too: a slip in them is one sentence."""
    tables: dict[str, type[Any]] = dict.fromkeys(("train", "baseline", "baseline_both"), TrainConfig)
    tables["canonical"] = CanonicalConfig
    values = {name: convert(cls, record[name], where=f"{name}.") for name, cls in tables.items() if name in record}
    return build(SearchConfig, {**record, **values})


def _training(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of `TrainConfig`; a number of steps takes the place of a number of epochs, and the other way round."""
    values = _known(TrainConfig, given, where)
    if "seed" in values:
        raise ValueError(f"a search has one seed for everything, got {where}.seed = {values['seed']}; give seed alone")
    if values.get("n_steps") is not None:
        values.setdefault("n_epochs", None)
    if values.get("n_epochs") is not None:
        values.setdefault("n_steps", None)
    return {name: tuple(value) if name == "betas" else value for name, value in values.items()}


def _known(cls: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = {f.name for f in fields(cls)}
    for name in given:
        if name not in known:
            raise ValueError(f"unknown setting {where}.{name}; known are {', '.join(sorted(known))}")
    return dict(given)
