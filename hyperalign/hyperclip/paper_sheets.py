"""The paper's four tables as sheets, drawn from the records of adaptations alone.

Scores are means over seeds. Where a class set can be cut, top-1 is that on the pictures which probe and bound were not
trained on, so that columns compare.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.bench.sheet import Sheet
from hyperalign.hyperclip.overhead import Overhead

__all__ = [
    "CAPTIONS",
    "Found",
    "Timed",
    "batch_sheet",
    "norms_sheet",
    "overhead_sheet",
    "worst_group_sheet",
    "zero_shot_sheet",
]

CAPTIONS: Final = "captions, mean recall@1"

_BASELINE = "siglip"
_N_LOOKS = 10  # rows of a training's curve


class Found(NamedTuple):
    """One adaptation.

    Attributes:
        arch: Architecture, or the pair of a run.
        batch_size: Pictures in a step.
        seed: Its seed.
        record: Its `adapted.json`.
        extras: By class set: `test`, positions that are scored; `groups`, the group of each of them by name, or None;
            `hits`, expected top-1 hits on them by what was trained (`probe`, `adapted probe`, `bound`).
    """

    arch: str
    batch_size: int
    seed: int
    record: Mapping[str, Any]
    extras: Mapping[str, Any]


class Timed(NamedTuple):
    """The overhead of one architecture.

    Attributes:
        arch: Its name.
        overhead: What a step costs.
    """

    arch: str
    overhead: Overhead


def zero_shot_sheet(found: Sequence[Found]) -> Sheet:
    """Zero-shot accuracy and mean recall@1 by architecture, beside a probe and the upper bound.

    Args:
        found: Adaptations at one batch size.
    """
    rows = []
    for arch, own in _by_arch(found).items():
        for name in _class_sets(own):
            rows.append(
                {
                    "architecture": arch,
                    "classes": name,
                    "pictures": _n_pictures(own, name),
                    **_compared(_all_hits(own, name)),
                    "probe_score": _extra(own, name, "probe"),
                    "adapted_probe_score": _extra(own, name, "adapted probe"),
                    "bound_score": _extra(own, name, "bound"),
                    **{f"{_word(m)}_top_5_score": _top_5(own, m, name) for m in _methods(own)},
                }
            )
        rows.append(_retrieval_row(arch, own, rows[-1] if rows else None))
    notes = [
        "gain: HyperCLIP less the baseline, with its 95 % interval over pictures (low, high); spread, ± seeds: the "
        "standard deviation of the gain over seeds",
        "probe: a linear probe on the baseline's frozen rows, adapted probe: on HyperCLIP's, both from the classes' "
        "rows; bound: scales and biases tuned on pictures of the classes, from what HyperCLIP emits",
        "top 1 is on the pictures that neither was trained on, top 5 on all of a set",
    ]
    return Sheet("zero-shot accuracy by architecture", rows, notes)


def worst_group_sheet(found: Sequence[Found]) -> Sheet:
    """Top-1 accuracy of the worst group.

    Args:
        found: Adaptations at one batch size.
    """
    rows = []
    for arch, own in _by_arch(found).items():
        for name in _class_sets(own):
            if any(one.extras[name]["groups"] is None for one in own):
                continue
            groups = sorted({group for one in own for group in one.extras[name]["groups"]})
            rows.append(
                {
                    "architecture": arch,
                    "classes": name,
                    "groups": len(groups),
                    "baseline_worst": _worst(own, name, _BASELINE)[1],
                    **{f"{_word(m)}_worst_group_score": _worst(own, name, m)[0] for m in _methods(own)},
                    **{f"{_word(m)}_average_score": _mean(own, m, name) for m in _methods(own)},
                    **{
                        f"{_word(extra)}_worst_group_score": _worst(own, name, extra)[0] for extra in ("probe", "bound")
                    },
                }
            )
    notes = [] if rows else ["no class set has groups; a JSON file beside one may give them"]
    return Sheet("accuracy of the worst group", rows, notes)


def overhead_sheet(timed: Sequence[Timed], found: Sequence[Found], *, device: str, length: int) -> Sheet:
    """What the hypernetwork costs in training; in use it costs nothing.

    Args:
        timed: One per architecture.
        found: Adaptations at one batch size, for the pictures a second of whole trainings.
        device: Where steps were timed.
        length: Tokens of a caption.
    """
    trained = _by_arch(found)
    rows = []
    for arch, overhead in timed:
        own = trained.get(arch, [])
        rows.append(
            {
                "architecture": arch,
                "adapted": overhead.n_adapted,
                "batch": overhead.batch_size,
                "siglip_per_second": overhead.baseline_per_second,
                "hyperclip_per_second": overhead.hyper_per_second,
                "slower_share": overhead.slower,
                "siglip_step_flops": overhead.baseline_flops,
                "hyperclip_step_flops": overhead.hyper_flops,
                "added_share": overhead.added_flops,
                "encoder_parameters": overhead.n_params_image,
                "hypernetwork_parameters": overhead.n_params_hyper,
                **{f"training_{m}_per_second": _pictures_per_second(own, m) for m in (_BASELINE, "hyperclip")},
            }
        )
    notes = [
        f"a step is forward, loss, backward and AdamW on {device}, captions of {length} tokens, medians of steps taken "
        "in turn; FLOPs are counted from shapes without the optimiser",
        "training: pictures a second of the whole trainings, decoding and checkpoints in them",
        "in use nothing is added: what is emitted is folded into the encoder",
    ]
    return Sheet("what the hypernetwork costs in training", rows, notes)


def batch_sheet(found: Sequence[Found]) -> Sheet:
    """Accuracy at several batch sizes, for as many pictures seen.

    Args:
        found: Adaptations of one architecture.
    """
    rows = []
    for batch_size in sorted({one.batch_size for one in found}):
        own = [one for one in found if one.batch_size == batch_size]
        steps = own[0].record["trainings"][_BASELINE]["n_steps"]
        for name in _class_sets(own):
            rows.append({"batch": batch_size, "steps": steps, "classes": name, **_compared(_all_hits(own, name))})
        rows.append({"batch": batch_size, "steps": steps, "classes": CAPTIONS, **_compared(_all_recalls(own))})
    return Sheet(
        f"batch size, {found[0].arch}" if found else "batch size", rows, ["every row has seen as many pictures"]
    )


def norms_sheet(found: Sequence[Found]) -> Sheet:
    """Norms of parameters, of updates and of what is emitted, over training.

    Args:
        found: Adaptations.
    """
    rows = [
        {"architecture": one.arch, "batch": one.batch_size, "seed": one.seed, "method": method, **look}
        for one in found
        for method, training in one.record["trainings"].items()
        for look in _thinned(training["looks"])
    ]
    return Sheet("norms over training", rows, ["parameters and updates are the image encoder's"])


def _retrieval_row(arch: str, own: Sequence[Found], like: Mapping[str, Any] | None) -> dict[str, Any]:
    """Mean recall@1 in the columns of the other rows."""
    row = {
        "architecture": arch,
        "classes": CAPTIONS,
        "pictures": None,
        **_compared(_all_recalls(own)),
    }
    return row if like is None else {column: row.get(column) for column in like}


def _compared(values: Mapping[str, Sequence[NDArray[np.float64]]]) -> dict[str, Any]:
    """Every method's mean in per cent, and what HyperCLIP gains over the baseline.

    Args:
        values: By method, for each seed the hits (n,) of the same pictures; a single value has no interval.
    """
    row: dict[str, Any] = {
        f"{_word(method)}_top_1_score": 100 * statistics.mean(float(one.mean()) for one in own)
        for method, own in values.items()
    }
    gain = low = high = spread = None
    if {_BASELINE, "hyperclip"} <= {*values}:
        gains = [100 * (ours - theirs) for ours, theirs in zip(values["hyperclip"], values[_BASELINE], strict=True)]
        gain = statistics.mean(float(one.mean()) for one in gains)
        if len(gains) > 1:
            spread = statistics.stdev(float(one.mean()) for one in gains)
        if min(map(len, gains)) > 1:
            error = math.sqrt(sum(float(one.var()) / len(one) for one in gains)) / len(gains)
            low, high = gain - 1.96 * error, gain + 1.96 * error
    return {**row, "gain_score": gain, "low_score": low, "high_score": high, "spread_score": spread}


def _all_hits(own: Sequence[Found], name: str) -> dict[str, list[NDArray[np.float64]]]:
    """Every method's hits on a class set, seed by seed."""
    return {method: [_hits(one, method, name) for one in own] for method in _methods(own)}


def _all_recalls(own: Sequence[Found]) -> dict[str, list[NDArray[np.float64]]]:
    """Every method's mean recall@1 as one number a seed."""
    return {
        method: [np.array([one.record["scores"][method]["retrieval"]["score"] / 100]) for one in own]
        for method in _methods(own)
    }


def _hits(one: Found, method: str, name: str) -> NDArray[np.float64]:
    """(n,) expected top-1 hits of a method, or of a probe or bound, on the pictures that are scored."""
    extra = one.extras[name]
    known = method in extra["hits"]
    hits = np.array(extra["hits"][method] if known else one.record["scores"][method]["classes"][name]["hits"], float)
    return hits if known else hits[np.array(extra["test"])]


def _mean(own: Sequence[Found], method: str, name: str) -> float:
    return 100 * statistics.mean(float(_hits(one, method, name).mean()) for one in own)


def _extra(own: Sequence[Found], name: str, trained: str) -> float | None:
    """Top-1 of a probe or bound; None where it was not trained."""
    if any(trained not in one.extras[name]["hits"] for one in own):
        return None
    return _mean(own, trained, name)


def _worst(own: Sequence[Found], name: str, method: str) -> tuple[float | None, str]:
    """Top-1 of the worst group, each seed's own, and the name of the one that is worst in most of them."""
    found = []
    for one in own:
        if method in ("probe", "bound") and method not in one.extras[name]["hits"]:
            return None, ""
        hits, groups = _hits(one, method, name), np.array(one.extras[name]["groups"])
        found.append(min((100 * float(hits[groups == group].mean()), str(group)) for group in np.unique(groups)))
    names = [group for _, group in found]
    return statistics.mean(value for value, _ in found), max(sorted(set(names)), key=names.count)


def _top_5(own: Sequence[Found], method: str, name: str) -> float:
    """Top-5 on all pictures of the set."""
    return statistics.mean(float(one.record["scores"][method]["classes"][name]["top_5"]) for one in own)


def _pictures_per_second(own: Sequence[Found], method: str) -> float | None:
    found = [one.record["trainings"].get(method, {}).get("images_per_second") for one in own]
    known = [value for value in found if value is not None]
    return statistics.mean(known) if known else None


def _n_pictures(own: Sequence[Found], name: str) -> int:
    return len(own[0].extras[name]["test"])


def _methods(own: Sequence[Found]) -> list[str]:
    """What was scored, the start of a winner among them."""
    return list(own[0].record["scores"])


def _class_sets(own: Sequence[Found]) -> list[str]:
    return list(own[0].extras)


def _by_arch(found: Sequence[Found]) -> dict[str, list[Found]]:
    by_arch: dict[str, list[Found]] = {}
    for one in found:
        by_arch.setdefault(one.arch, []).append(one)
    return by_arch


def _thinned(looks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A few rows of a curve, the first and the last among them."""
    if len(looks) <= _N_LOOKS:
        return list(looks)
    return [looks[round(k * (len(looks) - 1) / (_N_LOOKS - 1))] for k in range(_N_LOOKS)]


def _word(method: str) -> str:
    return method.replace("-", "_").replace(" ", "_")
