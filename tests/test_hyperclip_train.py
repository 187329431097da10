"""Training HyperCLIP and its baseline: what a step sees, that both learn, that a training cut short ends the same."""

import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hyperalign.embed.networks import PictureInput
from hyperalign.embed.scenes import open_scene_split
from hyperalign.hyperclip.calibration import calibrate
from hyperalign.hyperclip.hypernetwork import HyperConfig
from hyperalign.hyperclip.model import HyperClip, Rows
from hyperalign.hyperclip.pairs import Pairs, batches, likeness_of, normalise_pictures, order_of
from hyperalign.hyperclip.text import TextConfig, TextTransformer, make_tokenizer, tokenize
from hyperalign.hyperclip.train import TrainConfig, contrast, division_in_words, steps_of, train

HYPER = HyperConfig(n_layers=1, width=32, n_heads=4, feed_forward=48, bottleneck=16)
PICTURE = PictureInput(size=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear", crop_pct=1.0)
SPLIT = open_scene_split("train", seed=0, n_pictures=48)
TOKENIZER = make_tokenizer(SPLIT.captions, max_words=1000)


def pairs(**changes: Any) -> Pairs:
    """48 scenes."""
    return Pairs(pictures=SPLIT.pictures, picture=PICTURE, owner=SPLIT.owner, read=read, **changes)


def read(index: Any) -> Tensor:
    return tokenize(TOKENIZER, [SPLIT.captions[k] for k in index], context=32)


def make(hyper: HyperConfig | None = HYPER, seed: int = 0) -> HyperClip:
    torch.manual_seed(seed)
    image = nn.Sequential(
        nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 24)
    )
    text = TextTransformer(TOKENIZER.get_vocab_size(), 24, TextConfig(n_layers=1, width=16, n_heads=2, context=32))
    return HyperClip(image, text, 24, hyper)


CONFIG = TrainConfig(n_steps=6, batch_size=16, learning_rate=3e-3, checkpoint_steps=2, crop=0.8)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("hyper", [HYPER, None], ids=["hyperclip", "siglip"])
@pytest.mark.parametrize("n_parts", [1, 2])
def test_a_training_that_was_cut_short_ends_where_it_would_have_ended(
    hyper: HyperConfig | None, n_parts: int, tmp_path: Path
) -> None:
    config = replace(CONFIG, n_parts=n_parts)
    whole = make(hyper)
    record = train(whole, pairs(), config)

    def cut(stage: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(make(hyper), pairs(), config, checkpoint=checkpoint, progress=cut)
    again = make(hyper, seed=9)
    resumed = train(again, pairs(), config, checkpoint=checkpoint)

    assert resumed.resumed_at == 4
    assert resumed.n_seen == record.n_seen
    assert [look[:5] for look in resumed.looks if look.step <= 4] == [
        look[:5] for look in record.looks if look.step <= 4
    ]
    assert [look.loss for look in resumed.looks] == [look.loss for look in record.looks]
    assert all(torch.equal(value, state(whole)[name]) for name, value in state(again).items())
    assert not checkpoint.exists()


WATCHED = replace(CONFIG, n_validations=3)


def scripted(scores: list[float], seen: list[dict[str, Tensor]], network: nn.Module) -> Any:
    """A validation that gives these scores in turn and notes what it looked at."""

    def validate() -> float:
        network.eval()
        seen.append({name: value.clone() for name, value in state(network).items()})
        return scores[len(seen) - 1]

    return validate


@pytest.mark.parametrize(
    ("scores", "best"), [([1, 2, 4, 3], 2), ([5, 1, 2, 3], 0), ([1, 2, 3, 3], 3), ([float("nan"), 0, 0, -1], 2)]
)
def test_the_state_that_validates_best_is_kept(scores: list[float], best: int) -> None:
    network, seen = make(), list[dict[str, Tensor]]()

    record = train(network, pairs(), WATCHED, validate=scripted(scores, seen, network))

    steps = [0, *(round(record.n_steps * k / 3) for k in (1, 2, 3))]
    assert [step for step, _ in record.validated] == steps
    assert record.kept_step == steps[best]
    assert all(torch.equal(value, seen[best][name]) for name, value in state(network).items())
    assert not all(torch.equal(value, seen[1][name]) for name, value in state(network).items())


def test_where_no_look_gives_a_number_the_start_is_kept() -> None:
    network, seen = make(), list[dict[str, Tensor]]()

    record = train(network, pairs(), WATCHED, validate=scripted([float("nan")] * 4, seen, network))

    assert record.kept_step == 0
    assert all(torch.equal(value, seen[0][name]) for name, value in state(network).items())


def test_a_blend_lies_on_the_way_from_the_start_to_what_was_kept() -> None:
    start, end, blended = state(make()), make(), make()
    train(end, pairs(), CONFIG)

    train(blended, pairs(), replace(CONFIG, blend=0.25))

    start["logit_bias"] = torch.tensor(-math.log(16))  # where a training of batches of 16 begins
    for name, value in state(blended).items():
        if value.is_floating_point():
            expected = start[name] + 0.25 * (state(end)[name] - start[name])
            torch.testing.assert_close(value, expected)
        else:
            assert torch.equal(value, state(end)[name])


def test_looks_change_nothing_of_a_training() -> None:
    plain, watched = make(), make()

    before, after = train(plain, pairs(), CONFIG), train(watched, pairs(), WATCHED, validate=lambda: 1.0)

    assert [look.loss for look in before.looks] == [look.loss for look in after.looks]
    assert all(torch.equal(value, state(plain)[name]) for name, value in state(watched).items())
    assert (before.kept_step, before.validated) == (before.n_steps, [])


@pytest.mark.parametrize("cut_at", [2, 3, 5])
def test_a_training_that_was_cut_short_keeps_the_best_of_both_parts(cut_at: int, tmp_path: Path) -> None:
    def cut(stage: str, done: int, total: int) -> None:
        if done == cut_at:
            raise KeyboardInterrupt

    def norm(network: HyperClip) -> float:
        return float(torch.cat([p.detach().flatten() for p in network.image.parameters()]).norm())

    def score(network: HyperClip) -> Any:
        return lambda: -abs(norm(network) - middle)

    first = make()
    train(first, pairs(), replace(CONFIG, n_steps=2))
    middle = norm(first)
    config, checkpoint = replace(WATCHED, checkpoint_steps=1), tmp_path / "checkpoint.safetensors"
    whole = make()
    record = train(whole, pairs(), config, validate=score(whole))
    network = make()
    with pytest.raises(KeyboardInterrupt):
        train(network, pairs(), config, checkpoint=checkpoint, validate=score(network), progress=cut)
    again = make(seed=9)

    resumed = train(again, pairs(), config, checkpoint=checkpoint, validate=score(again))

    assert resumed.validated == record.validated
    assert resumed.kept_step == record.kept_step not in (0, record.n_steps)
    assert all(torch.equal(value, state(whole)[name]) for name, value in state(again).items())


@pytest.mark.parametrize("fault", ["short", "other settings", "other network"])
def test_a_checkpoint_that_does_not_belong_here_is_refused_and_kept(fault: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"

    def cut(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make(), pairs(), CONFIG, checkpoint=checkpoint, progress=cut)
    network, config = make(), CONFIG
    if fault == "short":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-50])
    elif fault == "other settings":
        config = replace(CONFIG, learning_rate=1e-4)
    else:
        network = make(None)
    before = checkpoint.read_bytes()

    with pytest.raises(ValueError, match="remove it to train from the start"):
        train(network, pairs(), config, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("hyper", [HYPER, None], ids=["hyperclip", "siglip"])
@pytest.mark.parametrize("loss", ["siglip", "infonce"])
def test_both_learn_under_either_loss(hyper: HyperConfig | None, loss: Any) -> None:
    config = replace(CONFIG, n_steps=40, batch_size=24, loss=loss, crop=1.0)
    network = make(hyper)

    record = train(network, pairs(), config)

    assert record.looks[-1].loss < 0.9 * record.looks[0].loss
    assert not network.training
    assert record.n_seen == 40 * 24


def test_the_hypernetwork_of_a_training_emits_something_and_the_baseline_nothing() -> None:
    looks = [train(make(hyper), pairs(), CONFIG).looks[-1] for hyper in (HYPER, None)]

    assert looks[0].emitted_norm > 0
    assert looks[1].emitted_norm == 0
    assert all(look.update_norm > 0 for look in looks)


def test_mixed_precision_learns_nearly_the_same() -> None:
    config = replace(CONFIG, n_steps=3)

    losses = [train(make(), pairs(), replace(config, precision=one)).looks[-1].loss for one in ("no", "bf16", "no")]

    assert losses[0] == losses[2]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_frozen_scales_stay_and_stored_statistics_stay_where_they_are_asked_to() -> None:
    network = make()
    before = state(network)

    train(network, pairs(), replace(CONFIG, bn="running"))

    changed = {name for name, value in state(network).items() if not torch.equal(value, before[name])}
    assert not changed & {"image.1.weight", "image.1.bias", "image.1.running_mean", "image.1.running_var"}
    assert {"image.0.weight", "image.5.weight", "log_logit_scale", "logit_bias"} <= changed


def test_a_loss_that_is_not_finite_ends_the_training_before_the_step() -> None:
    network = make()
    with torch.no_grad():
        next(network.text.parameters()).fill_(float("nan"))
    before = state(network)

    record = train(network, pairs(), CONFIG)

    assert record.diverged
    assert record.n_steps == 0
    assert torch.equal(state(network)["image.0.weight"], before["image.0.weight"])


def test_a_training_that_goes_to_pieces_ends_in_the_best_state_before() -> None:
    network = make()

    def score() -> float:
        network.eval()
        seen.append(state(network))
        return float(len(seen))

    def spoil(stage: str, done: int, total: int) -> None:
        if done == 3:
            with torch.no_grad():
                next(network.text.parameters()).fill_(float("nan"))

    seen = list[dict[str, Tensor]]()
    record = train(network, pairs(), WATCHED, validate=score, progress=spoil)

    assert (record.diverged, record.kept_step, record.n_steps) == (True, 2, 3)
    assert all(torch.equal(value, seen[1][name]) for name, value in state(network).items())


def test_a_training_leaves_the_global_generator_alone() -> None:
    network = make()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)

    train(network, pairs(), replace(CONFIG, n_steps=2))

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("n_parts", "given", "expected"), [(1, None, -math.log(16)), (4, None, -math.log(4)), (1, -7.0, -7.0)]
)
def test_the_logit_bias_starts_at_the_odds_of_a_match(n_parts: int, given: float | None, expected: float) -> None:
    network = make()

    record = train(network, pairs(), replace(CONFIG, n_steps=1, n_parts=n_parts, logit_bias=given))

    assert record.looks[0].logit_bias == pytest.approx(expected, abs=0.01)


def test_an_order_of_ones_own_is_kept() -> None:
    backwards = order_of(pairs(), batch_size=16, seed=1, epoch=0)
    own = pairs(order=lambda epoch: type(backwards)(backwards.pictures[::-1], backwards.captions[::-1]))

    (fed,) = batches(own, batch_size=48, seed=0, start=0, stop=1)

    assert torch.equal(fed.captions, read(backwards.captions[::-1]))


def test_an_epoch_sees_each_picture_once_with_one_of_its_own_captions() -> None:
    order = order_of(pairs(), batch_size=16, seed=1, epoch=2)

    assert sorted(order.pictures.tolist()) == list(range(48))
    assert (SPLIT.owner[order.captions] == order.pictures).all()
    assert (order_of(pairs(), batch_size=16, seed=1, epoch=3).pictures != order.pictures).any()


def test_batches_of_like_captions_are_alike_and_miss_no_picture() -> None:
    likeness = likeness_of(read(range(len(SPLIT.captions))))
    alike = order_of(pairs(likeness=likeness), batch_size=8, seed=1, epoch=0, n_pools=6)
    random = order_of(pairs(likeness=likeness), batch_size=8, seed=1, epoch=0)

    def nearness(order: Any) -> float:
        rows = likeness[order.captions].reshape(-1, 8, likeness.shape[1])
        return float(np.mean(rows @ rows.transpose(0, 2, 1)))

    assert sorted(alike.pictures.tolist()) == list(range(48))
    assert (SPLIT.owner[alike.captions] == alike.pictures).all()
    assert nearness(alike) > nearness(random) + 0.05


def test_any_step_can_be_made_by_itself() -> None:
    all_of_them = [*batches(pairs(), batch_size=20, seed=0, start=0, stop=5)]
    later = [*batches(pairs(), batch_size=20, seed=0, start=3, stop=5)]

    for one, other in zip(all_of_them[3:], later, strict=True):
        assert torch.equal(one.pictures, other.pictures)
        assert torch.equal(one.captions, other.captions)


def test_processes_share_a_step() -> None:
    (whole,) = batches(pairs(), batch_size=20, seed=0, start=1, stop=2)
    halves = [next(batches(pairs(), batch_size=20, seed=0, start=1, stop=2, part=(k, 2))) for k in range(2)]

    assert torch.equal(torch.cat([half.pictures for half in halves]), whole.pictures)


def test_a_picture_that_cannot_be_decoded_is_left_out_of_its_batch_and_counted() -> None:
    class Broken:
        def __len__(self) -> int:
            return 48

        def __getitem__(self, index: int) -> Any:
            if index == 7:
                raise OSError("broken")
            return SPLIT.pictures[index]

    found = replace_pictures(Broken())
    fed = [*batches(found, batch_size=48, seed=0, start=0, stop=1)]

    assert [(len(batch.pictures), len(batch.captions), batch.bad) for batch in fed] == [(47, 47, 1)]


def replace_pictures(pictures: Any) -> Pairs:
    return Pairs(pictures=pictures, picture=PICTURE, owner=SPLIT.owner, read=read)


def test_crops_keep_size_and_follow_their_generator() -> None:
    pictures = torch.from_numpy(SPLIT.pictures.block(0, 4).copy()).permute(0, 3, 1, 2)

    def crop(seed: int) -> Tensor:
        return normalise_pictures(pictures, PICTURE, crop=0.5, generator=torch.Generator().manual_seed(seed))

    assert crop(1).shape == (4, 3, 64, 64)
    assert torch.equal(crop(1), crop(1))
    assert not torch.equal(crop(1), crop(2))
    assert torch.equal(normalise_pictures(pictures, PICTURE)[0, 0], (pictures[0, 0] / 255 - 0.5) / 0.25)


def test_steps_are_counted_from_epochs_and_pictures() -> None:
    assert steps_of(TrainConfig(n_epochs=2, batch_size=10), 35) == (6, 10)
    assert steps_of(TrainConfig(n_epochs=0.1, batch_size=100), 35) == (1, 35)
    assert steps_of(TrainConfig(n_steps=7, batch_size=10, n_parts=3), 35) == (7, 9)
    with pytest.raises(ValueError, match="3 pictures are too few for a step in 2 parts"):
        steps_of(TrainConfig(n_parts=2), 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"batch_size": 6, "n_parts": 4}, "a part of a step needs two pictures"),
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"warmup_frac": 1.0}, "warmup_frac must be in"),
        ({"crop": 0.0}, "crop must be in"),
        ({"blend": 0.0}, r"blend must be in \(0, 1\], got 0.0"),
        ({"bn": "both"}, "bn must be running or batch, got 'both'"),
        ({"n_prompts": 0}, "n_prompts must be at least 1"),
    ],
)
def test_settings_that_no_training_could_use_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig(**{**asdict(TrainConfig()), **changes})


_TWO = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from torch import nn
from test_hyperclip_train import CONFIG, make_without_batch_norm, pairs, replace, train
network = make_without_batch_norm()
record = train(network, pairs(), replace(CONFIG, crop=1.0, n_steps=3))
torch.save(network.state_dict(), sys.argv[1] + "-" + __import__("os").environ.get("RANK", "0"))
"""


def make_without_batch_norm() -> HyperClip:
    network = make(None)
    network.image[1] = nn.Identity()  # type: ignore[operator]
    return network


def test_several_processes_are_told_which_negatives_are_gathered() -> None:
    assert division_in_words(TrainConfig(), 1) == []
    assert "captions of all are gathered as negatives" in division_in_words(TrainConfig(loss="siglip"), 2)[0]
    assert "negatives are not gathered" in division_in_words(TrainConfig(loss="infonce"), 2)[0]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """Each has half of a batch, and the other's captions as negatives."""
    (tmp_path / "two.py").write_text(_TWO)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    words = [str(tmp_path / "two.py"), str(tmp_path / "state"), str(Path(__file__).parent)]

    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, *words], check=False, capture_output=True, text=True, env=env, timeout=200
    )
    assert done.returncode == 0, done.stderr
    alone = make_without_batch_norm()
    train(alone, pairs(), replace(CONFIG, crop=1.0, n_steps=3))

    first, second = (torch.load(f"{tmp_path}/state-{rank}", weights_only=True) for rank in range(2))
    for name, value in state(alone).items():
        torch.testing.assert_close(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", ["siglip", "infonce"])
def test_a_calibrated_scale_has_the_least_loss_and_stands_at_the_first_step(loss: Any) -> None:
    """Of a network that has learned: at neither side of the scale, nor of the bias, is the loss lower."""
    config = replace(CONFIG, n_steps=40, loss=loss, crop=1.0)
    network = make(None)
    train(network, pairs(), config)

    found = calibrate(network, pairs(), config)

    def loss_at(scale: float, bias: float) -> float:
        values = []
        for part in batches(pairs(), batch_size=16, seed=0, start=0, stop=3):
            image = network.embed_pictures(normalise_pictures(part.pictures, PICTURE), {})
            rows = Rows(image, network.embed_captions(part.captions), torch.tensor(scale), torch.tensor(bias))
            values.append(float(contrast(rows, config)))
        return sum(values) / len(values)

    scale, bias = found
    with torch.no_grad():
        least = loss_at(scale, bias)
        around = [loss_at(scale * by, bias + off) for by in (0.8, 1.0, 1.25) for off in (-0.5, 0.0, 0.5)]
    assert 1 < scale < 100
    assert min(around) >= least - 1e-4
    if loss == "siglip":
        assert sorted(around)[1] > least + 1e-4
    record = train(make(None), pairs(), replace(config, n_steps=1, logit_scale=scale, logit_bias=bias))
    assert record.looks[0].logit_scale == pytest.approx(scale, rel=0.01)
    assert record.looks[0].logit_bias == pytest.approx(bias, abs=0.01)
