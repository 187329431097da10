"""What a run records: the columns of its tables and the keys of `result.json`. Shapes of data, no files.

Everything is plain JSON, so that a result can be read in years, with or without this program.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

import numpy as np

__all__ = [
    "CEILING",
    "LATE_COLUMNS",
    "LEADERBOARD_COLUMNS",
    "LEDGER_COLUMNS",
    "PICTURES",
    "WORD_COLUMNS",
    "AgreementRecord",
    "LogLine",
    "RatioRecord",
    "ReadResult",
    "Result",
    "SolutionRecord",
    "distinct_ratios",
    "embedded_whole",
    "to_json",
]

LEADERBOARD_COLUMNS = (
    *("position", "rank", "image_encoder", "text_encoder", "method", "sides", "score", "score_low", "score_high"),
    *("p_best", "t2i_recall_at_1", "t2i_recall_at_5", "t2i_recall_at_10"),
    *("i2t_recall_at_1", "i2t_recall_at_5", "i2t_recall_at_10", "zero_shot_top_1", "cka", "mutual_knn"),
    *("n_params_image", "n_params_text", "gflops_image", "gflops_text", "latency_ms", "image_dim", "text_dim"),
    *("license_image", "license_text", "train_flops", "seed", "validation_score", "n_train"),
)
CEILING = "ceiling"  # method of a row that takes no part in the order
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


class _Split(TypedDict, total=False):
    n_images: int
    n_captions: int
    image_digest: str
    text_digest: str


class _Data(TypedDict, total=False):
    name: Required[str]
    splits: dict[str, _Split]
    label_set: dict[str, Any] | None


class _Encoder(TypedDict, total=False):
    name: Required[str]
    modality: Required[str]
    loader: Required[str]
    weights: str
    preprocess: str


class _Adopted(TypedDict, total=False):
    encoder: Required[str]
    zoo: Required[list[str]]


class _Promotion(TypedDict, total=False):
    images: Required[list[str]]
    texts: Required[list[str]]


class _Configuration(TypedDict, total=False):
    zoo: list[str]
    data: str
    task: str
    seed: int
    autocast: bool


class _Hardware(TypedDict, total=False):
    memory_bytes: int | None


class _Roofline(TypedDict, total=False):
    flops_per_second: float


class ReadResult(TypedDict, total=False):
    """What the parts of `result.json` must be to be read back; `Result` says what each of them is."""

    name: Required[str]
    status: Required[Literal["running", "finished"]]
    configuration: Required[_Configuration]
    hardware: _Hardware
    data: _Data
    encoders: list[_Encoder]
    adopted: list[_Adopted]
    promotion: _Promotion
    roofline: _Roofline


class _Whitening(TypedDict):
    width: int
    normalise: bool


class SolutionRecord(TypedDict, total=False):
    """What `packing.pack` says of connectors beside their tensors.

    Attributes:
        method: How they were trained.
        sides: Of the baseline's words.
        pairs: Places of both encoders of each.
        images: Way of each image encoder to canonical coordinates; None where rows are taken as they are.
        texts: The same of text encoders.
        fits: How training went.
        setup_flops: Cost before training.
        emit_flops: Cost of emitting.
    """

    method: Required[str]
    sides: Required[str]
    pairs: Required[list[tuple[int, int]]]
    images: Required[list[_Whitening | None]]
    texts: Required[list[_Whitening | None]]
    fits: list[Any]
    setup_flops: Required[int]
    emit_flops: Required[int]


class LogLine(TypedDict, total=False):
    """What the lines of `log.jsonl` say that are read back; every event has some of it."""

    event: Required[str]
    time: str
    pid: int
    name: str
    into: str
    digest: str
    stage: str
    step: int
    loss: float
    validation: float
    curve: list[tuple[int, float]]
    at_step: int
    to_step: int
    of: int
    solution: SolutionRecord
    images: list[str]
    texts: list[str]
    prefix: str
    method: str
    seed: int


def distinct_ratios(ratios: Iterable[RatioRecord]) -> list[RatioRecord]:
    """Those of the same two sides as one, by the names of all of them."""
    found: dict[tuple[str, str], RatioRecord] = {}
    for item in ratios:
        sides = item["baseline"], item["method"]
        names = [found[sides]["setting"]] if sides in found else []
        found[sides] = {**item, "setting": ", ".join([*names, item["setting"]])}
    return list(found.values())


def embedded_whole(result: Result) -> list[str]:
    """Names of the encoders that all items were embedded with, in the order of the record.

    A run's hits and what it has kept count these alone; who left on a sample of the data has a row of the table only.
    """
    names = [record["name"] for record in result.get("encoders", [])]
    promotion = result.get("promotion")
    if promotion is None:
        return names
    came_later = [record["encoder"] for record in result.get("adopted", [])]
    stayed = {*promotion["images"], *promotion["texts"], *came_later}
    return [name for name in names if name in stayed]


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
