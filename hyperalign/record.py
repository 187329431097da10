"""What a run records: the columns of its tables and the keys of `result.json`. Shapes of data, no files.

Everything is plain JSON, so that a result can be read in years, with or without this program.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

__all__ = [
    "LATE_COLUMNS",
    "LEADERBOARD_COLUMNS",
    "LEDGER_COLUMNS",
    "PICTURES",
    "WORD_COLUMNS",
    "AgreementRecord",
    "RatioRecord",
    "Result",
    "to_json",
]

LEADERBOARD_COLUMNS = (
    *("position", "rank", "image_encoder", "text_encoder", "method", "sides", "score", "score_low", "score_high"),
    *("p_best", "t2i_recall_at_1", "t2i_recall_at_5", "t2i_recall_at_10"),
    *("i2t_recall_at_1", "i2t_recall_at_5", "i2t_recall_at_10", "zero_shot_top_1", "cka", "mutual_knn"),
    *("n_params_image", "n_params_text", "gflops_image", "gflops_text", "latency_ms", "image_dim", "text_dim"),
    *("license_image", "license_text", "train_flops", "seed", "validation_score", "n_train"),
)
LATE_COLUMNS = ("n_train",)  # runs of version 0.1 do not have them
LEDGER_COLUMNS = ("stage", "what", "flops", "seconds", "peak_bytes", "method")
PICTURES = "pictures.json"  # of a run: what its first pairs retrieve, where that was asked for
WORD_COLUMNS = (
    *("image_encoder", "text_encoder", "method", "sides", "license_image", "license_text"),
    *("stage", "what"),
)


class RatioRecord(TypedDict):
    """The cost of the baseline grid over the cost of the search, with everything needed to judge it.

    Attributes:
        setting: What is held equal, such as `matched batch 512` or `each at its own best`.
        baseline: The dear side in words: method, sides, batch, epochs, pairs, whether it was run or computed.
        baseline_flops: Its cost.
        method: The cheap side in words: method, sides, batch, steps.
        method_flops: Its cost, set-up + training + validation.
    """

    setting: str
    baseline: str
    baseline_flops: int
    method: str
    method_flops: int


class AgreementRecord(TypedDict, total=False):
    """How far one order of the pairs agrees with another; measured over `n_pairs` pairs.

    Attributes:
        order: The order that is judged, in words.
        reference: The order it is held against; for the noise ceiling the same method under another seed.
        n_pairs: Pairs in both.
        spearman: Rank correlation.
        kendall: Kendall's tau-b.
        ndcg_at_5: In [0, 1].
        regret_at_1: Points that taking the first of `order` loses in the scores of `reference`.
        regret_low: Lower end of its 95 % interval.
        regret_high: Upper end of it.
        reason: Why a correlation could not be computed; empty where it was.
    """

    order: str
    reference: str
    n_pairs: int
    spearman: float
    kendall: float
    ndcg_at_5: float
    regret_at_1: float
    regret_low: float
    regret_high: float
    reason: str


class Result(TypedDict, total=False):
    """`result.json`. Keys of the first block are there from the start, the others when the run is finished.

    Attributes:
        name: Name of the folder at the time of the run.
        status: `running` or `finished`.
        started: Time of the start, UTC, ISO 8601.
        configuration: Everything `hyperalign rerun` needs.
        versions: Python, hyperalign and the libraries that compute.
        hardware: Processor, cores, threads, memory, device.
        commit: Of the project and of the working folder, where known.
        seeds: Every seed used.
        wall_seconds: From start to end, resumed parts added up.
        data: Name, sizes and content digests of the data.
        encoders: One record for each encoder that took part.
        method: The method whose order is the answer.
        counts: What the limits let through, as sentences.
        answer: The winner, and who cannot be told from it, as sentences.
        notes: What was skipped, cut or found twice, as sentences.
        agreement: Orders held against each other.
        ratios: Cost of the baseline grid over cost of the search.
        totals: FLOPs of the search by the method that answers, `search_flops`, and of all that ran, `all_flops`.
        promotion: Rungs, who got everything, and what embedding cost; only where promotion ran.
        roofline: Best matrix product seen and what the stages achieved, FLOP/s.
        adopted: Encoders that were added to a finished run, one record each, the latest last; not there without any.
    """

    name: str
    status: str
    started: str
    configuration: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    commit: dict[str, str | None]

    seeds: list[int]
    wall_seconds: float
    data: dict[str, Any]
    encoders: list[dict[str, Any]]
    method: str
    counts: list[str]
    answer: list[str]
    notes: list[str]
    agreement: list[AgreementRecord]
    ratios: list[RatioRecord]
    totals: dict[str, int]
    promotion: dict[str, Any]
    roofline: dict[str, Any]
    adopted: list[dict[str, Any]]


def to_json(value: object, *, indent: int | None = None) -> str:
    """JSON of plain data, paths, arrays' numbers and dataclasses; NaN and infinities become null."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
