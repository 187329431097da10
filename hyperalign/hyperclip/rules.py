"""Pairs that are worth training on: in one language, about known classes, and scored well enough.

The three rules of HyperCLIP's data (arXiv:2412.16777, appendix A.5): captions in English, captions that name a class of
a vocabulary, and pairs that another model scores high (a data filtering network, arXiv:2309.17425). Rules are asked in
the order of what they cost, score, class, language, and a pair is counted under the first one that drops it; which
pairs are kept does not depend on the order. A pair is judged by itself, so the data may be of any size.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from hyperalign.hyperclip.language import Likelihood, open_language
from hyperalign.hyperclip.vocabulary import Vocabulary, compile_vocabulary, named, read_vocabulary

__all__ = ["REASONS", "FilterConfig", "Item", "Rules", "Tally", "as_score", "judge", "open_rules", "threshold"]

REASONS: Final = {
    "no picture": "no picture beside the caption",
    "no caption": "no caption",
    "no score": "no score",
    "score": "score too low",
    "class": "names no class",
    "language": "another language",
}
_EXAMPLES = 3  # captions shown of those that a rule dropped


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """Which pairs are kept; a rule that is None or empty lets everything through.

    Attributes:
        language: ISO 639-1 code of the language that captions are kept in.
        min_probability: Of that language, in (0, 1]. Low, because captions are short and names of things are often
            foreign words.
        vocabulary: Sources of classes of which a caption must name one: text files, .json files, label sets.
        score: Column of a table, or key of a shard's .json, that scores a pair; more is better.
        min_score: Least score that is kept.
        top_share: Or: share of the scored pairs that is kept, in (0, 1]; those tied with the last one are kept too.
    """

    language: str | None = "en"
    min_probability: float = 0.1
    vocabulary: tuple[str, ...] = ()
    score: str | None = None
    min_score: float | None = None
    top_share: float | None = None

    def __post_init__(self) -> None:
        """Refuse rules that cannot be followed."""
        if not 0 < self.min_probability <= 1:
            raise ValueError(f"min_probability must be in (0, 1], got {self.min_probability}")
        if self.min_score is not None and self.top_share is not None:
            raise ValueError("give min_score or top_share, not both")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise ValueError(f"min_score must be a number, got {self.min_score}")
        if self.top_share is not None and not 0 < self.top_share <= 1:
            raise ValueError(f"top_share must be in (0, 1], got {self.top_share}")
        cut = self.min_score is not None or self.top_share is not None
        if cut and self.score is None:
            raise ValueError("min_score and top_share need `score`, the name of the column that holds the scores")
        if self.score is not None and not cut:
            raise ValueError(f"score {self.score!r} needs min_score or top_share, to say which pairs are kept")
        if self.language is None and not self.vocabulary and self.score is None:
            raise ValueError("a filter needs a rule: a language, a vocabulary or a score")


class Item(NamedTuple):
    """A row of a table, or a sample of a shard.

    Attributes:
        captions: Its captions.
        score: Of the pair; None where it has none. All captions of an item share it.
    """

    captions: Sequence[str]
    score: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """`FilterConfig` with everything loaded that it names.

    Attributes:
        least: Score below which a pair is dropped; None where scores do not matter.
        vocabulary: Classes of which a caption must name one; None for any caption.
        likelihood: Probability that a text is in the language; None for any language.
        min_probability: Least such probability.
    """

    least: float | None
    vocabulary: Vocabulary | None
    likelihood: Likelihood | None
    min_probability: float


@dataclass(slots=True)
class Tally:
    """What was dropped, and why; it grows while data passes.

    Attributes:
        n_read: Captions read; an item without one counts as one.
        n_kept: Captions kept.
        n_items: Items read: rows or samples.
        n_items_kept: Those of which a caption was kept.
        dropped: Captions by the key of `REASONS` that dropped them.
        classes: Captions kept, by the class that they name; one that names two counts for both.
        examples: A few dropped captions by reason.
    """

    n_read: int = 0
    n_kept: int = 0
    n_items: int = 0
    n_items_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, caption: str = "") -> None:
        """Count one caption that was dropped."""
        self.n_read += 1
        self.dropped[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if caption and len(shown) < _EXAMPLES and caption[:200] not in shown:
            shown.append(caption[:200])

    def add(self, other: "Tally") -> None:
        """Add what was counted elsewhere."""
        self.n_read, self.n_kept = self.n_read + other.n_read, self.n_kept + other.n_kept
        self.n_items, self.n_items_kept = self.n_items + other.n_items, self.n_items_kept + other.n_items_kept
        self.dropped.update(other.dropped)
        self.classes.update(other.classes)
        for reason, shown in other.examples.items():
            self.examples[reason] = list(dict.fromkeys([*self.examples.get(reason, []), *shown]))[:_EXAMPLES]


def open_rules(config: FilterConfig, *, scores: Callable[[], Iterable[float | None]]) -> Rules:
    """Load what a configuration names.

    Args:
        config: The rules.
        scores: Gives the scores of all pairs; asked only where a share of them is kept.
    """
    names = [name for source in config.vocabulary for name in read_vocabulary(source)]
    vocabulary = compile_vocabulary(names) if config.vocabulary else None
    likelihood = open_language(config.language) if config.language is not None else None
    least = config.min_score
    if config.top_share is not None:
        least = threshold(scores(), config.top_share)
    return Rules(
        least=least,
        vocabulary=vocabulary,
        likelihood=likelihood,
        min_probability=config.min_probability,
    )


def threshold(scores: Iterable[float | None], top_share: float) -> float:
    """The score of the last pair that is among the best.

    Args:
        scores: Of all pairs; None and what is not finite are left out, of the share too.
        top_share: In (0, 1]. Of n scores the ⌈top_share · n⌉ highest are kept.

    Returns:
        The ⌈top_share · n⌉-th highest score; the smallest one for a share of 1.
    """
    found = np.fromiter((score for score in scores if score is not None and math.isfinite(score)), dtype=np.float64)
    if not len(found):
        raise ValueError("no pair has a score; check the name that was given with --score")
    n_kept = math.ceil(round(top_share * len(found), 9))  # 0.1 · 30 is 3.0000000000000004
    place = len(found) - n_kept
    return float(np.partition(found, place)[place])


def judge(rules: Rules, items: Sequence[Item], tally: Tally) -> list[list[int]]:
    """Say which captions of each item are kept, as positions, and count the rest."""
    return [_judge_item(rules, item, tally) for item in items]


def _judge_item(rules: Rules, item: Item, tally: Tally) -> list[int]:
    tally.n_items += 1
    texts = [(number, text) for number, text in enumerate(item.captions) if text.strip()]
    if not texts:
        tally.drop("no caption")
        return []
    reason = _score_reason(rules, item.score)
    kept = []
    for number, text in texts:
        classes = named(rules.vocabulary, text) if reason is None and rules.vocabulary is not None else set[int]()
        why = reason or _text_reason(rules, text, classes)
        if why is not None:
            tally.drop(why, text)
            continue
        kept.append(number)
        if rules.vocabulary is not None:
            tally.classes.update(rules.vocabulary.names[index] for index in classes)
    tally.n_read, tally.n_kept = tally.n_read + len(kept), tally.n_kept + len(kept)
    tally.n_items_kept += bool(kept)
    return kept


def _score_reason(rules: Rules, score: float | None) -> str | None:
    if rules.least is None:
        return None
    if score is None or not math.isfinite(score):
        return "no score"
    return "score" if score < rules.least else None


def _text_reason(rules: Rules, text: str, classes: set[int]) -> str | None:
    if rules.vocabulary is not None and not classes:
        return "class"
    if rules.likelihood is not None and rules.likelihood(text) < rules.min_probability:
        return "language"
    return None


def as_score(value: Any) -> float | None:
    """Read a cell as a score; None for what is no number."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
