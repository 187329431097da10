"""Probe, bound, parts of a label set, and what the hypernetwork costs: against values known by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hyperalign.embed.label_sets import LabelSet
from hyperalign.embed.networks import PictureInput
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.hyperclip import overhead
from hyperalign.hyperclip.architectures import BOTTLENECKS, NAMES, build_encoder, find_architecture
from hyperalign.hyperclip.bound import BoundConfig, tune_normalisation
from hyperalign.hyperclip.hypernetwork import HyperConfig
from hyperalign.hyperclip.model import HyperClip
from hyperalign.hyperclip.overhead import Overhead, Shape, count_step, largest_batch, measure_overhead
from hyperalign.hyperclip.parts import split_labels, worst_group
from hyperalign.hyperclip.probe import Probe, ProbeConfig, train_probe
from hyperalign.hyperclip.stored import Captions, Model, ModelRecord
from hyperalign.hyperclip.text import TextConfig

PICTURE = PictureInput(size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="nearest", crop_pct=1.0)
HYPER = HyperConfig(n_layers=1, width=16, n_heads=2, feed_forward=24, bottleneck=8)


class Colours:
    """Pictures of one colour each."""

    def __init__(self, colours: list[tuple[int, int, int]], *, broken: bool = False) -> None:
        """With `broken` the last one cannot be decoded."""
        self.colours, self.broken = colours, broken

    def __len__(self) -> int:
        """Return their number."""
        return len(self.colours)

    def __getitem__(self, index: int) -> Image.Image:
        """Give one."""
        if self.broken and index == len(self) - 1:
            raise ValueError("torn")
        return Image.new("RGB", (8, 8), self.colours[index])


def label_set(labels: list[int], groups: list[int] | None = None) -> LabelSet:
    return LabelSet(
        name="colours",
        class_names=("red", "green"),
        templates=("{}",),
        image_ids=[str(i) for i in range(len(labels))],
        pictures=Colours([(200, 40, 40) if label == 0 else (40, 200, 40) for label in labels]),
        labels=np.array(labels),
        image_digest="",
        text_digest="",
        groups=None if groups is None else np.array(groups),
        group_names=() if groups is None else ("day", "night", "dusk"),
    )


def small_model(hyper: HyperConfig | None = None) -> Model:
    """Mean colour → BatchNorm → two numbers: what it takes for red is decided by the layer's scales and biases."""
    torch.manual_seed(0)
    image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3), nn.Linear(3, 4, bias=False))
    spec = EncoderSpec(name="colours", modality="image", loader="timm", architecture="none")
    record = ModelRecord(image=spec, embed_dim=4, head=True, hyper=hyper)
    network = HyperClip(image, nn.Identity(), 4, hyper).eval()
    return Model(network=network, record=record, captions=Captions(record, None), picture=PICTURE)


# --- parts and groups ----------------------------------------------------------------------------------------------


def test_a_label_set_is_cut_in_every_class_alike_and_a_lone_picture_is_tested() -> None:
    labels = label_set([0] * 6 + [1] * 4 + [0])
    lone = replace(labels, class_names=("a", "b", "c"), labels=np.array([0] * 6 + [1] * 4 + [2]))

    parts = split_labels(lone, train_share=0.5, seed=3)

    assert sorted([*parts.train, *parts.test]) == list(range(11))
    assert np.bincount(lone.labels[parts.train], minlength=3).tolist() == [3, 2, 0]
    assert 10 in parts.test
    again = split_labels(lone, train_share=0.5, seed=3)
    assert np.array_equal(parts.train, again.train)
    assert not np.array_equal(parts.train, split_labels(lone, train_share=0.5, seed=4).train)


def test_the_planted_worst_group_is_found_in_the_part_that_is_scored() -> None:
    labels = label_set([0, 1, 0, 1, 0, 1], groups=[0, 0, 1, 1, 2, 2])
    hits = np.array([[1, 1], [1, 1], [1, 1], [0, 1], [0, 1], [0, 1]], dtype=np.float32)

    assert worst_group(hits, labels, np.arange(6)) == (0.0, "dusk")
    assert worst_group(hits[:4], labels, np.arange(4)) == (50.0, "night")
    assert worst_group(hits, label_set([0] * 6), np.arange(6)) is None


# --- probe ---------------------------------------------------------------------------------------------------------


def test_a_probe_without_a_step_is_the_zero_shot_classifier() -> None:
    classes = F.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    rows = F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(1)), dim=1)

    probe = train_probe(rows, torch.zeros(7, dtype=torch.long), classes, 10.0, ProbeConfig(n_epochs=0))

    torch.testing.assert_close(probe.logits(rows), 10 * rows @ classes.T)


def test_one_step_of_a_probe_moves_every_weight_by_the_rate_and_decays_it() -> None:
    """AdamW's first step is the rate times the sign of the gradient, behind a decay by rate · 0.1."""
    classes = torch.eye(2)
    rows, labels = torch.tensor([[0.6, 0.8]]), torch.tensor([0])

    probe = train_probe(rows, labels, classes, 1.0, ProbeConfig(n_epochs=1, learning_rate=0.01))

    decayed = classes * (1 - 0.01 * 0.1)
    torch.testing.assert_close(
        probe.weight, decayed + 0.01 * torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(probe.bias, torch.tensor([0.01, -0.01]), atol=1e-6, rtol=0)


def test_a_probe_learns_what_the_classes_rows_do_not_know() -> None:
    """Two classes whose rows are swapped: zero-shot is never right, a probe that is trained long enough always."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    rows = F.normalize(torch.eye(2)[1 - labels] + 0.1 * torch.randn(200, 2, generator=generator), dim=1)
    config = ProbeConfig(n_epochs=60, learning_rate=0.05)

    start = Probe(torch.eye(2), torch.zeros(2), 10.0)
    probe = train_probe(rows, labels, torch.eye(2), 10.0, config)

    assert (start.logits(rows).argmax(1) == labels).float().mean() == 0
    assert (probe.logits(rows).argmax(1) == labels).float().mean() == 1


# --- upper bound ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hyper", [None, HYPER], ids=["siglip", "hyperclip"])
def test_tuned_scales_and_biases_tell_apart_what_the_model_did_not(hyper: HyperConfig | None) -> None:
    model = small_model(hyper)
    labels = label_set([0, 1] * 16)
    classes = F.normalize(torch.randn(2, 4, generator=torch.Generator().manual_seed(2)), dim=1)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}

    config = BoundConfig(n_epochs=40, batch_size=8, learning_rate=0.1)
    tuned = tune_normalisation(model, labels.pictures, labels.labels, classes, config)

    assert set(tuned) == {"2.weight", "2.bias"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.network.parameters())
    pixels = torch.stack([torch.tensor([c / 255 for c in colour]) for colour in labels.pictures.colours])  # type: ignore[attr-defined]
    pictures = ((pixels - 0.5) / 0.25)[:, :, None, None].expand(-1, 3, 8, 8)
    with torch.no_grad():
        right = (model.network.embed_pictures(pictures, tuned) @ classes.T).argmax(1) == torch.tensor(labels.labels)
    assert right.all()


def test_tuning_without_a_step_gives_what_the_model_has_or_emits() -> None:
    classes = F.normalize(torch.randn(2, 4, generator=torch.Generator().manual_seed(2)), dim=1)
    pictures, none = Colours([(0, 0, 0)] * 2), BoundConfig(n_epochs=0)

    for model in (small_model(), small_model(HYPER)):
        tuned = tune_normalisation(model, pictures, np.array([0, 1]), classes, none)
        with torch.no_grad():
            expected: Any = model.network.emit(classes) or dict(model.network.image.named_parameters())
        assert all(torch.equal(value, expected[name]) for name, value in tuned.items())


def test_a_picture_that_cannot_be_decoded_does_not_stop_the_tuning() -> None:
    pictures = Colours([(200, 40, 40), (40, 200, 40), (0, 0, 0)], broken=True)
    classes = torch.eye(4)[:2]

    tuned = tune_normalisation(
        small_model(), pictures, np.array([0, 1, 0]), classes, BoundConfig(n_epochs=2, batch_size=1)
    )

    assert all(value.isfinite().all() for value in tuned.values())


# --- overhead ------------------------------------------------------------------------------------------------------


def shape(name: str = "M1", **changes: Any) -> Shape:
    hyper = HyperConfig(bottleneck=BOTTLENECKS[name], n_layers=2, width=64, n_heads=4, feed_forward=96)
    text = TextConfig(n_layers=1, width=32, n_heads=2)
    spec = find_architecture(name, input_size=64)
    return Shape(
        **{"image": spec, "hyper": hyper, "text": text, "embed_dim": 48, "n_tokens": 100, "length": 8, **changes}
    )


@pytest.mark.parametrize("n_prompts", [None, 5])
def test_what_the_hypernetwork_adds_is_what_its_shapes_say(n_prompts: int | None) -> None:
    """Forward, and twice as much backward: prompts have a gradient as weights have."""
    one, batch = shape(n_prompts=n_prompts), 12
    k, width, inner, narrow, n_adapted = n_prompts or batch, 64, 96, BOTTLENECKS["M1"], 12_112

    added = count_step(one, batch, with_hyper=True) - count_step(one, batch, with_hyper=False)

    layer = 2 * k * (4 * width * width + 2 * width * inner) + 2 * 2 * k * k * width
    forward = 2 * k * 48 * width + 2 * layer + 2 * k * width * narrow + 2 * narrow * n_adapted
    assert added == 3 * forward


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_hypernetwork_of_each_of_the_eight_adds_a_small_share(name: str) -> None:
    one = Shape(image=find_architecture(name), hyper=HyperConfig(bottleneck=BOTTLENECKS[name]), text=TextConfig())

    found = measure_overhead(one, batch_size=512, device="cpu", n_rounds=0)

    assert 0 < found.added_flops < 0.08
    assert found.slower is None


@pytest.mark.parametrize("n_groups", [1, 4, 8])
def test_a_step_of_a_grouped_convolution_is_counted_as_three_times_its_forward(n_groups: int) -> None:
    """By hand: 2 · 16 · 8² outputs of 8 / groups · 3² products for each of two pictures, and two gradients."""
    layer = nn.Conv2d(8, 16, 3, groups=n_groups, bias=False)
    pictures = torch.randn(2, 8, 10, 10, requires_grad=True)
    own = {torch.ops.aten.convolution_backward: overhead._convolution_backward_flops}

    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        layer(pictures).sum().backward()

    assert counter.get_total_flops() == 3 * 2 * (2 * 16 * 8 * 8) * (8 // n_groups) * 9


def test_what_a_depthwise_encoder_costs_is_what_its_layers_say() -> None:
    """M1 with nothing else to speak of: three times its forward, less the gradient that no picture wants."""
    one, batch = shape(text=None, text_dim=2), 4
    encoder = build_encoder(one.image, 48).eval()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        encoder(torch.zeros(batch, 3, 64, 64))

    found = count_step(one, batch, with_hyper=False)

    assert found == pytest.approx(3 * forward.get_total_flops(), rel=0.05)


def test_steps_are_timed_in_turn() -> None:
    told: list[tuple[str, int, int]] = []

    found = measure_overhead(
        shape(), batch_size=2, device="cpu", n_rounds=1, progress=lambda *words: told.append(words)
    )

    assert found.baseline_per_second is not None
    assert found.hyper_per_second is not None
    assert told == [("timing steps of hyperclip-m1", 1, 2), ("timing steps of hyperclip-m1", 2, 2)]
    assert found.n_params_hyper > 12_112 * BOTTLENECKS["M1"]


def test_shares_are_of_the_baseline() -> None:
    found = Overhead(8, 1, 1, 1, 200, 250, 100.0, 80.0)

    assert found.added_flops == 0.25
    assert found.slower == pytest.approx(0.2)


def test_the_largest_batch_is_the_last_power_that_fits() -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= 100

    assert largest_batch(fits) == 64
    assert asked == [8, 16, 32, 64, 128]
    assert largest_batch(lambda size: True, most=32) == 32
    with pytest.raises(ValueError, match="does not fit"):
        largest_batch(lambda size: False)
