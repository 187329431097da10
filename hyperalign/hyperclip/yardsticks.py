"""What trained models are held against: probes on frozen pictures' rows, and the upper bound of what can be emitted."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.embed.label_sets import LabelSet
from hyperalign.embed.pictures import choose
from hyperalign.hyperclip.bound import BoundConfig, tune_normalisation
from hyperalign.hyperclip.measure import embed_pictures
from hyperalign.hyperclip.parts import Parts, split_labels
from hyperalign.hyperclip.probe import ProbeConfig, train_probe
from hyperalign.hyperclip.specialise import class_rows
from hyperalign.hyperclip.stored import Model, load_model
from hyperalign.processes import device_of_training
from hyperalign.rank.metrics import usable, zero_shot_hits

__all__ = ["Yardsticks", "measure_yardsticks"]

Progress = Callable[[str, int, int], None]


class Yardsticks(NamedTuple):
    """How probes and bounds are trained.

    Attributes:
        probe: Of the linear probe.
        bound: Of the upper bound.
        train_share: Share of each class's pictures that they are trained on.
        seed: Of the cut.
    """

    probe: ProbeConfig
    bound: BoundConfig
    train_share: float
    seed: int


def measure_yardsticks(
    folder: Path, label_sets: Mapping[str, LabelSet], how: Yardsticks, *, progress: Progress
) -> dict[str, Any]:
    """Train probes and bounds on a part of each class set and score them on the rest.

    Args:
        folder: Of an adaptation; its `siglip` and `hyperclip` are read.
        label_sets: By name. One whose classes have one picture each cannot be cut, and has neither.
        how: They are trained.
        progress: Told `(stage, done, total)`.

    Returns:
        By class set: `test`, positions of the pictures that were scored; `groups`, the name of each one's group, or
        None; `hits`, their expected top-1 hits by a probe on the baseline (`probe`), on HyperCLIP (`adapted probe`) and
        with the bound's scales and biases (`bound`).
    """
    plain, adapted = (load_model(folder / method) for method in ("siglip", "hyperclip"))
    for model in (plain, adapted):
        model.network.to(device_of_training())
    found = {}
    for name, labels in label_sets.items():
        parts = split_labels(labels, train_share=how.train_share, seed=how.seed)
        hits, test = {}, np.arange(len(labels.labels))
        if len(parts.train):
            test = parts.test
            hits["probe"] = _probe_hits(plain, labels, parts, how.probe, progress)
            hits["adapted probe"] = _probe_hits(adapted, labels, parts, how.probe, progress)
            hits["bound"] = _bound_hits(adapted, labels, parts, how.bound, progress)
        groups = None if labels.groups is None else [labels.group_names[group] for group in labels.groups[test]]
        found[name] = {"test": test.tolist(), "groups": groups, "hits": {k: v.tolist() for k, v in hits.items()}}
    return found


def _probe_hits(
    model: Model, labels: LabelSet, parts: Parts, config: ProbeConfig, progress: Progress
) -> NDArray[np.float32]:
    """(n_test,) top-1 hits of a probe on the frozen encoder, adapted to the classes where it can be."""
    classes = _classes(model, labels)
    with torch.no_grad():
        parameters = model.network.emit(classes)
    tell = _teller(progress, f"embedding {labels.name} for a probe")
    rows = embed_pictures(model, labels.pictures, parameters, tell=tell).to(classes.device)
    ok = usable(rows).cpu().numpy()
    train = parts.train[ok[parts.train]]
    own = torch.from_numpy(labels.labels[train]).to(rows.device)
    probe = train_probe(rows[train], own, classes, float(model.network.log_logit_scale.detach().exp()), config)
    logits, test = probe.logits(rows[parts.test]).cpu(), parts.test
    return zero_shot_hits(logits, labels.labels[test], ks=(1,), image_ok=ok[test])[:, 0]


def _bound_hits(
    model: Model, labels: LabelSet, parts: Parts, config: BoundConfig, progress: Progress
) -> NDArray[np.float32]:
    """(n_test,) top-1 hits with scales and biases tuned on the other part."""
    classes = _classes(model, labels)
    pictures = choose(labels.pictures, parts.train)
    tuned = tune_normalisation(model, pictures, labels.labels[parts.train], classes, config, progress=progress)
    tell = _teller(progress, f"embedding {labels.name} for the bound")
    rows = embed_pictures(model, choose(labels.pictures, parts.test), tuned, tell=tell)
    return zero_shot_hits(rows @ classes.cpu().T, labels.labels[parts.test], ks=(1,))[:, 0]


def _classes(model: Model, labels: LabelSet) -> Tensor:
    """(C, D) unit rows of the classes, as a tensor that gradients may look at."""
    return class_rows(model, labels.class_names, labels.templates).clone()


def _teller(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)
