"""The last stage: a run's winner, or an architecture from scratch, trained as SigLIP's baseline and as HyperCLIP.

Both see the same pictures and captions in the same order for the same number of steps, from the same start. What is
finished stays: a folder that was cut short goes on with the method, and the step, at which it stopped.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyperalign.align.grid import Gather, usable
from hyperalign.candidates import Candidates
from hyperalign.config import build
from hyperalign.embed.data import Dataset, open_dataset
from hyperalign.embed.pictures import choose
from hyperalign.embed.splits import Split
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.hyperclip.architectures import BOTTLENECKS, find_architecture, picture_of
from hyperalign.hyperclip.calibration import calibrate
from hyperalign.hyperclip.hypernetwork import HyperConfig
from hyperalign.hyperclip.measure import Watched, classify, retrieve, score_classes, score_watched, watch
from hyperalign.hyperclip.pairs import Pairs, likeness_of
from hyperalign.hyperclip.stored import Model, ModelRecord, build_model, load_model, save_model
from hyperalign.hyperclip.text import TextConfig, count_cut, make_tokenizer, tokenize
from hyperalign.hyperclip.train import TrainConfig, Training, train
from hyperalign.hyperclip.winner import Winner, find_winner, start_model
from hyperalign.machine import find_commits, find_hardware, find_versions
from hyperalign.prepare import embedding_jobs, fill_cache
from hyperalign.processes import is_first, same_everywhere
from hyperalign.rank.resampling import find_linear, find_scores, per_image, per_picture
from hyperalign.record import to_json
from hyperalign.run import make_folder, write_whole

__all__ = ["METHODS", "RECORD", "SMALL", "AdaptConfig", "Tables", "adapt", "open_tables", "read_record", "start"]

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]

METHODS = ("siglip", "hyperclip", "hyperclip-flat")  # the baseline, the method, the method without a transformer
RECORD = "adapted.json"
_WINNER: Final = {  # how what knows something already is trained; measured in reports/LOG.md
    "n_epochs": 4,
    "learning_rate": 3e-5,  # from scratch 1e-3, which takes a winner apart
    "bn": "running",  # an epoch by batch statistics lost nearly all that one knew
    "n_validations": 4,
    "blend": 0.5,  # half of the gain in recall, and two fifths or less of the loss in zero-shot accuracy
}
_Z: Final = 1.96  # of a 95 % interval
SMALL = HyperConfig(n_layers=2, width=256, n_heads=4, feed_forward=1024, bottleneck=128)  # beside a small encoder


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """What is adapted and how; the one home of these defaults.

    Attributes:
        run: Folder of a finished run whose winner is adapted; None to train an architecture from scratch.
        pair: "IMAGE+TEXT" of that run; None for the best that has normalisation layers.
        arch: Architecture that is trained from scratch: one of the eight, or a timm name.
        input_size: Of that architecture; None for the paper's.
        embed_dim: Of that architecture's head.
        data: Pictures and captions; None for those of the run, or `scenes`.
        labels: Class sets to score on, beside those that the data has.
        limit: At most so many pictures of each split; None for the run's own limit.
        split: Whose captions are searched when models are scored: "test", or "val" to choose settings by.
        methods: Of `METHODS`.
        hyper: Fields of `HyperConfig`; what is left out is the paper's from scratch, and `SMALL`'s for a winner.
        text: Fields of `TextConfig`, from scratch.
        train: Fields of `TrainConfig`, for every method alike; a winner has a smaller rate, fewer epochs and running
            statistics, and of it the state that validates best is kept.
    """

    run: Path | None = None
    pair: str | None = None
    arch: str | None = None
    input_size: int | None = None
    embed_dim: int = 512
    data: str | None = None
    labels: tuple[str, ...] = ()
    limit: int | None = None
    split: str = "test"
    methods: tuple[str, ...] = ("siglip", "hyperclip")
    hyper: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be adapted."""
        if (self.run is None) == (self.arch is None):
            given = "both" if self.run is not None else "neither"
            raise ValueError(
                f"adapt the winner of a RUN or train an --arch from scratch, got {given}; give one of them"
            )
        if self.pair is not None and self.run is None:
            raise ValueError(f"a pair belongs to a run, got {self.pair!r} and no run; give the RUN too")
        if self.split not in ("val", "test"):
            raise ValueError(f"models are scored on test, or on val to choose settings by, got {self.split!r}")
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"a method is one of {', '.join(METHODS)}, got {method!r}")
        if not self.methods:
            raise ValueError(f"adapting needs a method: {', '.join(METHODS)}")
        if self.embed_dim < 2:
            raise ValueError(f"embed_dim must be at least 2, got {self.embed_dim}")
        self.training()
        self.shape("hyperclip")
        self.text_shape()

    def training(self) -> TrainConfig:
        """How every method is trained; a winner more carefully than what is trained from scratch."""
        base = TrainConfig() if self.run is None else build(TrainConfig, _WINNER)
        return build(TrainConfig, self.train, base=base)

    def text_shape(self) -> TextConfig:
        """The model's own text transformer."""
        return build(TextConfig, self.text)

    def shape(self, method: str) -> HyperConfig | None:
        """The hypernetwork of a method, None of the baseline; one of the eight has the paper's bottleneck."""
        if method == "siglip":
            return None
        base = HyperConfig() if self.run is None else SMALL
        named = BOTTLENECKS.get(str(self.arch).upper())
        base = base if named is None else replace(base, bottleneck=named)
        flat = {"transformer": False} if method == "hyperclip-flat" else {}
        return build(HyperConfig, {**self.hyper, **flat}, base=base)


class Tables(NamedTuple):
    """Everything that a model is trained and scored on.

    Attributes:
        dataset: Splits and class sets.
        winner: The pair that is adapted; None from scratch.
        pairs: What training draws from.
        watched: What it is validated on; None where it is not.
        tokenizer: Of the model's own text transformer; None where the text encoder is frozen.
        image: The image encoder.
    """

    dataset: Dataset
    winner: Winner | None
    pairs: Pairs
    watched: Watched | None
    tokenizer: Any
    image: EncoderSpec


def adapt(
    config: AdaptConfig,
    *,
    cache_dir: Path,
    out: Path,
    resume: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
    say: Say = lambda sentence: None,
) -> Path:
    """Train every method that is asked for, score it, and write models and scores.

    Args:
        config: What is asked.
        cache_dir: Where embeddings are kept.
        out: Where results are kept.
        resume: Folder of an adaptation that was cut short, of the same configuration.
        progress: Told `(stage, done, total)`.
        say: Told sentences meanwhile.

    Returns:
        The folder: a model for each method, and `adapted.json`.
    """
    tables = open_tables(config, cache_dir=cache_dir, progress=progress, say=say)
    folder = resume or same_everywhere(lambda: _new_folder(out, tables))
    record = read_record(folder) if resume is not None else _new_record(config, tables)
    _hold_to_training(record, config, folder)
    _write(folder, record)
    if tables.winner is not None and "start" not in record["scores"]:
        beside = "; its unit rows are all divided by one mean length, so it scores a little beside what the run says"
        say(f"the start is the winner with its connector, before any step{beside * tables.winner.unit_images}")
        winner = start(config, tables, "siglip")
        found = same_everywhere(lambda: calibrate(winner.network, tables.pairs, config.training()))
        record["start"] = found._asdict()
        say(
            f"its loss is least at scale {found.logit_scale:.1f} and bias {found.logit_bias:.1f}; training begins there"
        )
        record["scores"]["start"] = _score(winner, tables, "start", config.split, progress)
        _write(folder, record)
    for method in config.methods:
        if method in record["scores"]:
            continue
        begin = time.perf_counter()
        model = _train(config, tables, method, folder, record, progress, say)
        record["scores"][method] = _score(model, tables, method, config.split, progress)
        record["seconds"][method] = round(time.perf_counter() - begin, 1)
        _write(folder, record)
    record["compared"] = _compare(record, tables.dataset.splits[config.split].owner)
    record["status"] = "finished"
    _write(folder, record)
    return folder


def open_tables(config: AdaptConfig, *, cache_dir: Path, progress: Progress, say: Say) -> Tables:
    """Open the data and find what is adapted; a user's mistakes come to light here.

    Raises:
        ValueError: If nothing can be learned from the data, or nothing of the run can be adapted.
    """
    winner = None
    if config.run is not None:
        winner = find_winner(config.run, pair=config.pair, cache_dir=cache_dir, say=say)
        say(f"adapting {winner.name}")
    own = None if winner is None else winner.config
    dataset = open_dataset(
        config.data or (own.data if own is not None else "scenes"),
        strict=False if own is None else own.strict,
        seed=config.training().seed if own is None else own.seed,
        limit=config.limit if own is None or config.limit is not None else own.limit,
        labels=config.labels,
        memory=cache_dir,
        progress=progress,
    )
    for note in dataset.notes:
        say(note)
    split, val = dataset.splits["train"], dataset.splits["val"]
    validated = config.training().n_validations > 0
    if winner is None:
        image = find_architecture(str(config.arch), input_size=config.input_size)
        shape = config.text_shape()
        tell = _teller(progress, "reading captions")
        tokenizer = make_tokenizer(split.captions, max_words=shape.max_words, tell=tell)
        if n_cut := count_cut(tokenizer, split.captions, context=shape.context):
            say(f"{n_cut:,} training captions are longer than {shape.context} tokens and are cut there")
        reader = _Words(split, tokenizer, shape.context)
        watched = watch(val, _Words(val, tokenizer, shape.context)) if validated else None
        return Tables(dataset, None, _pairs(split, image, config, reader, None), watched, tokenizer, image)
    parts = _caption_rows(winner.text, dataset, ("train", "val") if validated else ("train",), cache_dir, progress)
    rows = parts["train"]
    ok = usable(rows)
    if not ok.all():
        say(f"{int((~ok).sum()):,} captions without a usable row are kept out of training")
    rows_reader = _Rows(rows, unit=winner.unit_rows)
    watched = None
    if validated:
        watched = watch(val, _Rows(parts["val"], unit=winner.unit_rows), usable(parts["val"]))
    return Tables(dataset, winner, _pairs(split, winner.image, config, rows_reader, ok), watched, None, winner.image)


def start(config: AdaptConfig, tables: Tables, method: str) -> Model:
    """The model that a method begins with; without its hypernetwork it is the same for all of them."""
    hyper = config.shape(method)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training().seed)
        if tables.winner is not None:
            return start_model(tables.winner, tables.pairs.pictures, hyper)
        record = ModelRecord(
            image=tables.image, embed_dim=config.embed_dim, head=True, hyper=hyper, text_config=config.text_shape()
        )
        return build_model(record, tables.tokenizer)


def read_record(folder: Path) -> dict[str, Any]:
    """`adapted.json` of a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"nothing was adapted in {folder}: it has no {RECORD}; give a folder of `adapt`")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); adapt again") from None
    if not isinstance(record, dict) or not {"configuration", "scores", "seconds", "trainings"} <= {*record}:
        raise ValueError(f"{path} is not the record of an adaptation; adapt again")
    return record


class _Words:
    """Captions of a split as tokens."""

    def __init__(self, split: Split, tokenizer: Any, context: int) -> None:
        self.captions, self.tokenizer, self.context = split.captions, tokenizer, context

    def __call__(self, index: NDArray[np.int64]) -> torch.Tensor:
        return tokenize(self.tokenizer, [self.captions[k] for k in index.tolist()], context=self.context)


class _Rows:
    """Captions of a split as rows of a frozen encoder."""

    def __init__(self, rows: Any, *, unit: bool) -> None:
        self.rows, self.unit = Gather(rows), unit

    def __call__(self, index: NDArray[np.int64]) -> torch.Tensor:
        found = self.rows[index]
        return torch.nn.functional.normalize(found, dim=1) if self.unit else found


def _pairs(
    split: Split, image: EncoderSpec, config: AdaptConfig, read: Callable[..., Any], ok: NDArray[np.bool_] | None
) -> Pairs:
    """What training draws from: captions that are usable, and the pictures that have one."""
    captions = np.arange(len(split.captions)) if ok is None else np.flatnonzero(ok)
    kept, owner = np.unique(split.owner[captions], return_inverse=True)
    if len(kept) < 2:
        raise ValueError(f"training needs at least 2 pictures with a usable caption, got {len(kept)}")
    pictures = split.pictures if len(kept) == len(split.image_ids) else choose(split.pictures, kept)
    likeness = likeness_of(read(captions)) if config.training().n_pools > 1 else None
    return Pairs(
        pictures=pictures,
        picture=picture_of(image),
        owner=owner.astype(np.int64),
        read=lambda index: read(captions[index]),
        likeness=likeness,
    )


def _caption_rows(
    text: EncoderSpec, dataset: Dataset, parts: Sequence[str], cache_dir: Path, progress: Progress
) -> dict[str, Any]:
    """Rows of the captions of some splits by a frozen encoder, from the cache where they are there."""
    alone = Candidates(images=(), texts=(text,), pairs=(), latencies={}, counts=())
    jobs = [job for job in embedding_jobs(alone, dataset, None, cache_dir=cache_dir) if job.part in parts]
    entries, _, _ = fill_cache(jobs, cache_dir=cache_dir, progress=progress)
    every: dict[str, Any] = {part: entries[text.name, part] for part in parts}
    return {part: getattr(entry, "rows", entry) for part, entry in every.items()}


def _calibrated(config: AdaptConfig, record: Mapping[str, Any]) -> TrainConfig:
    """How a method is trained, from the scale and bias that the winner was found to have where none was asked for."""
    asked = config.training()
    found = {name: value for name, value in record.get("start", {}).items() if getattr(asked, name) is None}
    return replace(asked, **found)


def _train(  # noqa: PLR0913 - what is trained, where it is kept, and who is told
    config: AdaptConfig,
    tables: Tables,
    method: str,
    folder: Path,
    record: dict[str, Any],
    progress: Progress,
    say: Say,
) -> Model:
    """The trained model of a method; one that is in the folder already is read."""
    if method in record["trainings"]:
        return load_model(folder / method)
    model = start(config, tables, method)
    watched = tables.watched
    made = train(
        model.network,
        tables.pairs,
        _calibrated(config, record),
        checkpoint=folder / f"{method}-checkpoint.safetensors",
        validate=None if watched is None else lambda: score_watched(model, watched),
        progress=progress,
        stage=f"training {method}",
    )
    if made.diverged and not (made.validated and made.kept_step):
        raise ValueError(
            f"the loss of {method} was not finite at step {made.n_steps}; lower --learning-rate, or give --precision no"
        )
    if made.n_bad:
        say(f"{method}: a picture that cannot be decoded was drawn {made.n_bad:,} times and left out")
    for sentence in _kept_in_words(method, made):
        say(sentence)
    if is_first():
        save_model(folder / method, model)
    hyper = model.network.hyper
    record["trainings"][method] = {
        **asdict(made),
        "kept_step": made.kept_step,
        "looks": [look._asdict() for look in made.looks],
        "images_per_second": made.n_seen / made.seconds if made.seconds else None,
        "n_params_image": sum(p.numel() for p in model.network.image.parameters()),
        "n_params_hypernetwork": 0 if hyper is None else sum(p.numel() for p in hyper.parameters()),
        "n_adapted": 0 if model.network.adapted is None else model.network.adapted.n_numbers,
    }
    _write(folder, record)
    return model


def _kept_in_words(method: str, made: Training) -> list[str]:
    """Which state was kept, where it is not the last."""
    scores = dict(made.validated)
    if not scores or made.kept_step == made.n_steps:
        return []
    best = scores[made.kept_step]
    if made.diverged:
        return [
            f"{method}: the loss was not finite at step {made.n_steps:,}; step {made.kept_step:,} validates best "
            f"({best:.1f}) and is kept; lower --learning-rate"
        ]
    last = scores[made.n_steps]
    if made.kept_step == 0:
        return [
            f"{method}: no step validates better than the start ({best:.1f}; {last:.1f} at the end), so it stays as it "
            "began; lower --learning-rate"
        ]
    return [f"{method}: step {made.kept_step:,} of {made.n_steps:,} validates best ({best:.1f}; {last:.1f} at the end)"]


def _score(model: Model, tables: Tables, method: str, searched: str, progress: Progress) -> dict[str, Any]:
    """Scores on the split that is searched and on every class set."""
    hits = {}
    for name, labels in tables.dataset.label_sets.items():
        found = classify(model, labels, tell=_teller(progress, f"{method} on {name}"))
        hits[name] = {**score_classes(found, labels), "hits": found[:, 0].tolist()}
    split = tables.dataset.splits[searched]
    return {"retrieval": retrieve(model, split, tell=_teller(progress, f"{method} on {searched}")), "classes": hits}


def _teller(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)


def _compare(record: Mapping[str, Any], owner: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Each method against the winner before and against the baseline, the same pictures against each other.

    Args:
        record: With the scores of all of them.
        owner: (n_captions,) picture of each caption that is searched.

    Returns:
        A gain in points with its 95 % interval for each class set, and for the captions, whose `classes` is None.
    """
    found = []
    for method, over in _compared(record["scores"]):
        own, other = record["scores"][method], record["scores"][over]
        parts = {
            name: per_picture(np.array([one["classes"][name]["hits"] for one in (own, other)], np.float32))
            for name in own["classes"]
        }
        t2i, i2t = (
            np.array([one["retrieval"]["hits"][way] for one in (own, other)], np.float32) for way in ("t2i", "i2t")
        )
        for name, each in {None: per_image(t2i, i2t, owner), **parts}.items():
            scores, rows = find_scores(each), find_linear(each)
            gain, spread = scores[0] - scores[1], float(np.linalg.norm(rows[:, 0] - rows[:, 1]))
            ends = {"low": gain - _Z * spread, "high": gain + _Z * spread}
            found.append({"method": method, "over": over, "classes": name, "gain": float(gain), **ends})
    return found


def _compared(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who is held against whom: what was trained against the start, and HyperCLIP against the baseline too."""
    trained = [method for method in scores if method != "start"]
    pairs = [(method, over) for method in trained for over in ("start", "siglip") if over in scores and over != method]
    return [
        pair for pair in pairs if all("hits" in scores[one]["retrieval"] for one in pair)
    ]  # older records have none


def _new_record(config: AdaptConfig, tables: Tables) -> dict[str, Any]:
    winner = tables.winner
    return {
        "status": "running",
        "configuration": asdict(config),
        "training": json.loads(to_json(asdict(config.training()))),
        "pair": None if winner is None else winner.name,
        "image_encoder": tables.image.name,
        "data": tables.dataset.name,
        "n_train": len(tables.pairs.pictures),
        "versions": find_versions(),
        "hardware": find_hardware(),
        "commit": find_commits(),
        "trainings": {},
        "scores": {},
        "seconds": {},
    }


def _hold_to_training(record: Mapping[str, Any], config: AdaptConfig, folder: Path) -> None:
    """Methods are compared, so all of them are trained alike: by the defaults that the first one had, too.

    Raises:
        ValueError: If a folder was begun with others, as by another release.
    """
    if record.get("training") != json.loads(to_json(asdict(config.training()))) and record["scores"]:
        raise ValueError(f"{folder} was begun with other settings of training, by another release; adapt anew")


def _new_folder(out: Path, tables: Tables) -> Path:
    """`out/2026-03-01-142501-adapt-<image encoder>`."""
    return make_folder(out, f"{datetime.now().astimezone():%Y-%m-%d-%H%M%S}-adapt-{tables.image.name}")


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    if is_first():
        write_whole(folder / RECORD, (to_json(record, indent=1) + "\n").encode())
