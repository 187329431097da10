"""HyperCLIP against its baseline on class sets that were never seen as sets: same encoder, data, order and steps.

A small trained encoder of the embedded zoo goes on learning on scenes, a class set at a time, behind a frozen text
encoder. Beside both stand the hypernetwork without its transformer, the start, and the upper bound: scales and biases
tuned on training pictures of each held-out set.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.embed.encoders import load_encoder
from hyperalign.embed.networks import build_network
from hyperalign.embed.pictures import choose
from hyperalign.embed.scenes import ScenePictures, open_scene_split
from hyperalign.embed.zoo import find_encoder, load_zoo
from hyperalign.hyperclip.bound import BoundConfig, tune_normalisation
from hyperalign.hyperclip.class_sets import N_TOGETHER, ClassSet, class_sets, order_of_sets, prompts_of
from hyperalign.hyperclip.hypernetwork import HyperConfig
from hyperalign.hyperclip.measure import embed_pictures
from hyperalign.hyperclip.pairs import Pairs
from hyperalign.hyperclip.stored import Model, ModelRecord, build_model
from hyperalign.hyperclip.train import TrainConfig, train

__all__ = ["HYPER", "TRAIN", "World", "measure", "open_world", "score_on"]

IMAGE, TEXT = "resnet10-64", "static-256"
N_TRAIN, N_TEST = 12_000, 1_500
LEAST = 20  # test pictures of a held-out set that is scored on
HYPER: Final = HyperConfig(n_layers=2, width=128, n_heads=4, feed_forward=256, bottleneck=64, dropout=0.0)
TRAIN: Final = TrainConfig(
    n_steps=1200,
    batch_size=8 * N_TOGETHER,
    n_parts=8,
    learning_rate=1e-3,
    text_rate=3.0,
    bn="running",
)
BOUND: Final = BoundConfig(n_epochs=5)
_METHODS: Final = {  # name: hypernetwork, and its rate in shares of the learning rate (measured in reports/LOG.md)
    "SigLIP": (None, 1.0),
    "HyperCLIP": (HYPER, 0.5),
    "HyperCLIP, no transformer": (replace(HYPER, transformer=False), 3.0),
}


class World(NamedTuple):
    """What every method sees.

    Attributes:
        train: Pictures that are learned from.
        test: Pictures that are scored on.
        seen: Class sets that are trained on.
        held: Class sets that are held out and have test pictures enough, among the training pictures; only the bound
            looks at them.
        held_test: The same sets among the test pictures.
        prompts: Every prompt.
        rows: Their rows by the frozen text encoder.
    """

    train: ScenePictures
    test: ScenePictures
    seen: list[ClassSet]
    held: list[ClassSet]
    held_test: list[ClassSet]
    prompts: list[str]
    rows: Tensor

    def read(self, index: NDArray[np.int64]) -> Tensor:
        """Rows of prompts by their places."""
        return self.rows[torch.from_numpy(np.ascontiguousarray(index))]

    def of(self, one: ClassSet) -> Tensor:
        """Rows of a set's prompts."""
        return self.read(np.array([self.prompts.index(prompt) for prompt in one.prompts]))


def measure(asked: Asked) -> list[Sheet]:
    """Train every method with every seed, the upper bound with the first; `--limit` bounds the pictures."""
    world = open_world(asked.config.limit)
    rows, hits = [], {}
    for seed in asked.seeds():
        for name, (hyper, rate) in _METHODS.items():
            model = _start(world, hyper, seed)
            record = train(
                model.network,
                _pairs(world, model, seed),
                replace(TRAIN, seed=seed, hyper_rate=rate),
                progress=asked.progress,
                stage=f"{name}, seed {seed}",
            )
            hits[name, seed] = score_on(model, world, world.held_test)
            rows.append(_row(name, seed, hits[name, seed], record.seconds, record.looks[-1].emitted_norm))
            asked.say(f"{name}, seed {seed}: {rows[-1]['held_out_score']:.2f} % on held-out class sets")
            if hyper is HYPER and seed == asked.seeds()[0]:  # tuning every set takes longer than a training
                bound = score_on(model, world, world.held_test, tuned=True, progress=asked.progress)
                rows.append(_row("upper bound", seed, bound, 0.0, 0.0))
        hits["start", seed] = score_on(_start(world, None, seed), world, world.held_test)
        rows.append(_row("start, no connector", seed, hits["start", seed], 0.0, 0.0))
    seeds = [*asked.seeds()]
    gains = [_gain(name, [hits[name, s] - hits["SigLIP", s] for s in seeds]) for name in [*_METHODS][1:]]
    n_sets, chance = len(world.held_test), 100 * np.mean([1 / len(one.prompts) for one in world.held_test])
    notes = [
        f"{len(hits['SigLIP', seeds[0]]):,} pictures of {n_sets} class sets that were never trained on as sets, mean "
        f"over pictures; chance is about {chance:.0f} %",
        f"{IMAGE} with {TEXT}, {TRAIN.n_steps} steps of {TRAIN.batch_size} pictures, {N_TOGETHER} of a set at a time",
    ]
    return [Sheet("held-out class sets of scenes", rows, notes), Sheet("over the SigLIP baseline", gains, [_HOW])]


_HOW: Final = "the interval is Student's over seeds, 95 %; the same pictures are compared"
_STUDENT: Final = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def open_world(limit: int | None = None) -> World:
    """Scenes, class sets and the prompts' rows.

    Args:
        limit: At most so many pictures of each split.

    Raises:
        ValueError: Where no held-out set has test pictures enough.
    """
    pictures = [
        open_scene_split(name, seed=0, n_pictures=min(n, limit or n)).pictures
        for name, n in (("train", N_TRAIN), ("test", N_TEST))
    ]
    seen, held = class_sets(pictures[0])
    _, held_test = class_sets(pictures[1])
    scored = [k for k, one in enumerate(held_test) if len(one.places) >= min(LEAST, len(pictures[1]) // 10)]
    if not scored:
        raise ValueError(f"no held-out class set has {LEAST} test pictures; give more pictures with --limit")
    held, held_test = [held[k] for k in scored], [held_test[k] for k in scored]
    prompts = prompts_of([*seen, *held])
    rows = load_encoder(find_encoder(load_zoo("embedded"), TEXT), device="cpu").encode(prompts).clone()
    return World(pictures[0], pictures[1], seen, held, held_test, prompts, rows)


def score_on(
    model: Model, world: World, sets: Sequence[ClassSet], *, tuned: bool = False, progress: Any = None
) -> NDArray[np.float64]:
    """(n,) in per cent whether each picture's class is recognised among its set's, the encoder adapted to each set.

    Args:
        model: In evaluation mode.
        world: Its test pictures are used.
        sets: Class sets among them.
        tuned: Tune scales and biases on the training pictures of each held-out set instead: the upper bound.
        progress: Told `(stage, done, total)` of the tuning.
    """
    found = []
    for one, trained in zip(sets, world.held if tuned else sets, strict=True):
        if len(one.places):
            with torch.no_grad():
                classes = model.network.embed_captions(world.of(one))
                parameters: Any = model.network.emit(classes)
            if tuned and len(trained.places):
                pictures = choose(world.train, trained.places)
                tell = {} if progress is None else {"progress": progress}
                parameters = tune_normalisation(model, pictures, trained.labels, classes, BOUND, **tell)
            seen = embed_pictures(model, choose(world.test, one.places), parameters)
            found.append(100.0 * ((seen @ classes.T).argmax(1).numpy() == one.labels))
    return np.concatenate(found)


def _start(world: World, hyper: HyperConfig | None, seed: int) -> Model:
    """The trained encoder with a connector that is drawn; the same for every method."""
    zoo = load_zoo("embedded")
    image, text = find_encoder(zoo, IMAGE), find_encoder(zoo, TEXT)
    trained: Any = build_network(image).module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = int(image.embed_dim or 0)
        record = ModelRecord(
            image=image, embed_dim=width, head=False, hyper=hyper, text=text, text_dim=world.rows.shape[1]
        )
        model = build_model(record, None)
    model.network.image.load_state_dict(trained.network.state_dict())
    model.network.eval()
    return model


def _pairs(world: World, model: Model, seed: int) -> Pairs:
    n = len(world.train)
    return Pairs(
        pictures=world.train,
        picture=model.picture,
        owner=np.arange(n, dtype=np.int64),
        read=world.read,
        order=order_of_sets(world.seen, world.prompts, n_pictures=n, seed=seed),
    )


def _row(name: str, seed: int, hits: NDArray[np.float64], seconds: float, emitted: float) -> dict[str, Any]:
    return {
        "method": name,
        "seed": seed,
        "held_out_score": float(hits.mean()),
        "emitted_norm": emitted,
        "train_seconds": seconds,
    }


def _gain(name: str, gains: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """Mean gain over seeds, in points, with its interval."""
    means = np.array([float(gain.mean()) for gain in gains])
    half = float("nan") if len(means) < 2 else _STUDENT.get(len(means), 1.96) * means.std(ddof=1) / len(means) ** 0.5
    middle = float(means.mean())
    return {"method": name, "gain_score": middle, "low_score": middle - half, "high_score": middle + half}
