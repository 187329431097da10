"""Our figures beside those that CLIP_benchmark and torchmetrics get from the same embeddings."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hyperalign.use.evaluate import label_scores, retrieval_scores

N_IMAGES, N_CLASSES, DIM = 120, 12, 16


def retrieval_rows(*, seed: int = 0) -> tuple[Tensor, Tensor, np.ndarray[Any, np.dtype[np.int64]]]:
    """Pictures with one to five captions each that are like them, more or less."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 6, (N_IMAGES,), generator=generator)
    owner = torch.arange(N_IMAGES).repeat_interleave(counts)
    images = torch.randn(N_IMAGES, DIM, generator=generator)
    captions = images[owner] + 1.2 * torch.randn(len(owner), DIM, generator=generator)
    return F.normalize(images, dim=1), F.normalize(captions, dim=1), owner.numpy()


def label_rows(*, seed: int = 0) -> tuple[Tensor, Tensor, np.ndarray[Any, np.dtype[np.int64]]]:
    """Pictures of classes of unequal size around their classes' rows."""
    generator = torch.Generator().manual_seed(seed)
    classes = F.normalize(torch.randn(N_CLASSES, DIM, generator=generator), dim=1)
    labels = torch.arange(N_CLASSES).repeat_interleave(torch.randint(3, 30, (N_CLASSES,), generator=generator))
    images = classes[labels] + 0.5 * torch.randn(len(labels), DIM, generator=generator)
    return F.normalize(images, dim=1), classes, labels.numpy()


class Rows:
    """A model of CLIP_benchmark's whose pictures and captions are rows already."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Rows as they are."""
        return images

    encode_text = encode_image


def batches(images: Tensor, captions: Tensor, owner: Any) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Pictures and the captions of each, as CLIP_benchmark's loaders give them."""
    for start in range(0, N_IMAGES, 32):
        chosen = range(start, min(start + 32, N_IMAGES))
        yield images[start : start + 32], [captions[owner == k] for k in chosen]


def test_recalls_are_those_of_clip_benchmark_with_several_captions_a_picture() -> None:
    peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    images, captions, owner = retrieval_rows()

    def tokenize(rows: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(rows))

    theirs = peer.evaluate(
        Rows(), list(batches(images, captions, owner)), tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    ours = retrieval_scores(images, captions, owner)

    for k in (1, 5, 10):
        assert ours[f"t2i_recall_at_{k}"] / 100 == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)
        assert ours[f"i2t_recall_at_{k}"] / 100 == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)
    assert 0.2 < ours["t2i_recall_at_1"] / 100 < 0.9  # neither nothing nor all: the figures could differ


def test_accuracies_are_those_of_clip_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    monkeypatch.setattr(peer, "float", lambda one: one.item(), raising=False)  # NumPy 2.4 refuses float() of (1,)
    metrics = pytest.importorskip("sklearn.metrics")
    images, classes, labels = label_rows()
    logits, target = images @ classes.T, torch.from_numpy(labels)

    acc1, acc5 = peer.accuracy(logits, target, topk=(1, 5))
    per_class = metrics.balanced_accuracy_score(target, logits.argmax(1))
    ours = label_scores(images, classes, labels, class_names=[str(c) for c in range(N_CLASSES)])

    assert ours["zero_shot_top_1"] / 100 == pytest.approx(acc1, abs=1e-6)
    assert ours["zero_shot_top_5"] / 100 == pytest.approx(acc5, abs=1e-6)
    assert ours["mean_per_class"] / 100 == pytest.approx(per_class, abs=1e-6)
    assert 0.2 < acc1 < 0.95


def test_classes_of_several_templates_are_those_of_clip_benchmark() -> None:
    peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    from colours import colour_model

    from hyperalign.use.classes import Classes, class_rows

    model = colour_model()[0]
    names, templates = ("red", "green", "snow"), ("{}", "white {}", "{} black")

    class Captions(list[str]):
        def to(self, device: str) -> "Captions":
            return self

    theirs = peer.zero_shot_classifier(
        model, Captions, list(names), [text.replace("{}", "{c}") for text in templates], "cpu", amp=False
    )
    ours = class_rows(model, Classes(names, templates))

    torch.testing.assert_close(ours, theirs.T, atol=1e-6, rtol=0)


def test_hit_rates_are_those_of_torchmetrics_with_several_captions_a_picture() -> None:
    peer = pytest.importorskip("torchmetrics.functional.retrieval")
    images, captions, owner = retrieval_rows(seed=1)
    similarity, right = captions @ images.T, torch.from_numpy(owner)[:, None] == torch.arange(N_IMAGES)

    ours = retrieval_scores(images, captions, owner)

    for k in (1, 5, 10):
        for way, queries, hits in (("t2i", similarity, right), ("i2t", similarity.T, right.T)):
            rates = [peer.retrieval_hit_rate(s, r, top_k=k) for s, r in zip(queries, hits, strict=True)]
            assert ours[f"{way}_recall_at_{k}"] / 100 == pytest.approx(float(torch.stack(rates).mean()), abs=1e-6)


def test_accuracies_are_those_of_torchmetrics() -> None:
    peer = pytest.importorskip("torchmetrics.functional.classification")
    images, classes, labels = label_rows(seed=1)
    logits, target = images @ classes.T, torch.from_numpy(labels)

    ours = label_scores(images, classes, labels, class_names=[str(c) for c in range(N_CLASSES)])

    for name, k, average in (
        ("zero_shot_top_1", 1, "micro"),
        ("zero_shot_top_5", 5, "micro"),
        ("mean_per_class", 1, "macro"),
    ):
        theirs = peer.multiclass_accuracy(logits, target, num_classes=N_CLASSES, top_k=k, average=average)
        assert ours[name] / 100 == pytest.approx(float(theirs), abs=1e-6)


def test_the_worst_group_is_that_of_torchmetrics() -> None:
    peer = pytest.importorskip("torchmetrics.functional.classification")
    images, classes, labels = label_rows(seed=2)
    groups = np.arange(len(labels)) % 4
    correct, target = (images @ classes.T).argmax(1), torch.from_numpy(labels)

    names = tuple("abcd")
    ours = label_scores(images, classes, labels, class_names=[str(c) for c in range(N_CLASSES)], groups=(groups, names))

    theirs = [
        float(peer.multiclass_accuracy(correct[groups == g], target[groups == g], N_CLASSES, average="micro"))
        for g in range(4)
    ]
    assert ours["worst_group"]["top_1"] / 100 == pytest.approx(min(theirs), abs=1e-6)
    assert ours["worst_group"]["name"] == names[int(np.argmin(theirs))]
