"""`adapt` and `specialise` from end to end: on scenes, with encoders so small that they learn nothing much."""

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from small_zoo import write_world
from typer.testing import CliRunner

from hyperalign.cli import app
from hyperalign.config import build
from hyperalign.embed.networks import import_timm
from hyperalign.hyperclip import adapt as stage
from hyperalign.hyperclip.adapt import METHODS, AdaptConfig, adapt, open_tables, read_record, start
from hyperalign.hyperclip.architectures import find_architecture
from hyperalign.hyperclip.hypernetwork import HyperConfig
from hyperalign.hyperclip.measure import retrieve, score_watched, watch
from hyperalign.hyperclip.stored import load_model
from hyperalign.hyperclip.train import Training
from hyperalign.hyperclip.winner import _kept_connectors
from hyperalign.pipeline import SearchConfig, search
from hyperalign.run import load_run
from hyperalign.show.adapted import adapted_table

ROOT = Path(__file__).resolve().parent.parent
TRAIN = {"n_steps": 3, "batch_size": 16, "checkpoint_steps": 2}
SMALL: dict[str, Any] = {"n_layers": 1, "width": 16, "n_heads": 2, "feed_forward": 16, "bottleneck": 8}
TEXT = {"n_layers": 1, "width": 16, "n_heads": 2, "context": 24}


def quiet(*_: object) -> None:
    """Report to nobody."""


def shown(record: Any) -> str:
    """A record as the terminal shows it."""
    page = io.StringIO()
    Console(width=250, file=page).print(adapted_table(record, width=250))
    return page.getvalue()


def from_scratch(**changes: Any) -> AdaptConfig:
    """M1 at 32 pixels, on 40 scenes."""
    record = {
        "arch": "M1",
        "input_size": 32,
        "embed_dim": 12,
        "limit": 40,
        "train": TRAIN,
        "hyper": SMALL,
        "text": TEXT,
    }
    return build(AdaptConfig, {**record, **changes})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over two small embedded encoders and one that is rows alone."""
    folder = tmp_path_factory.mktemp("run")
    zoo = folder / "zoo.toml"
    embedded = (ROOT / "zoo" / "embedded.toml").read_text()
    blocks = [f"[[encoder]]{block}" for block in embedded.split("[[encoder]]")[1:]]
    chosen = [block.split("\n#")[0] for block in blocks if 'name = "resnet10-64"' in block or '"counts-128"' in block]
    (folder / "embedded").symlink_to(ROOT / "zoo" / "embedded")
    zoo.write_text("\n".join(chosen))
    config = SearchConfig(zoo=(str(zoo),), data="scenes", limit=60, verify=0, methods=("closed-form",), scores=False)
    return search(config, cache_dir=folder / "cache", out=folder / "reports", progress=quiet, say=quiet)


@pytest.fixture(scope="module")
def adapted(found: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run's winner, adapted by all three methods."""
    config = build(
        AdaptConfig,
        {"run": found, "train": TRAIN, "hyper": SMALL, "methods": ("siglip", "hyperclip", "hyperclip-flat")},
    )
    return adapt(config, cache_dir=found.parents[1] / "cache", out=tmp_path_factory.mktemp("adapted"))


def test_the_winner_is_adapted_by_every_method_from_the_same_start(adapted: Path) -> None:
    record = read_record(adapted)

    assert record["status"] == "finished"
    assert record["pair"] == "resnet10-64+counts-128"
    assert list(record["scores"]) == ["start", "siglip", "hyperclip", "hyperclip-flat"]
    assert record["trainings"]["siglip"]["n_adapted"] == 0
    assert record["trainings"]["hyperclip"]["n_adapted"] == record["trainings"]["hyperclip-flat"]["n_adapted"] > 0
    assert {tuple(one["n_seen"] for one in record["trainings"].values())} == {(48, 48, 48)}


def test_every_method_is_held_against_the_winner_before_and_against_the_baseline(adapted: Path) -> None:
    record = read_record(adapted)
    scores = record["scores"]

    rows = {(one["method"], one["over"]) for one in record["compared"]}

    assert rows == {(m, "start") for m in METHODS} | {(m, "siglip") for m in METHODS[1:]}
    assert len(record["compared"]) == len(rows) * (1 + len(scores["start"]["classes"]))
    for one in record["compared"]:
        own, other = (scores[one[role]] for role in ("method", "over"))
        name = one["classes"]
        before, after = (s["retrieval"]["score"] if name is None else s["classes"][name]["top_1"] for s in (other, own))
        assert one["gain"] == pytest.approx(after - before, abs=1e-3)
        assert one["low"] <= one["gain"] <= one["high"]
    for one in scores.values():
        assert one["retrieval"]["score_low"] <= one["retrieval"]["score"] <= one["retrieval"]["score_high"]
        for own in one["classes"].values():
            assert own["top_1_low"] <= own["top_1"] <= own["top_1_high"]
            assert own["top_5_low"] <= own["top_5"] <= own["top_5_high"]


def test_the_interval_of_a_gain_is_that_of_the_same_pictures() -> None:
    """Of four pictures one is won in both directions: by hand 25 ± 1.96 · 50 / √4, widened by n / (n − 1)."""
    owner = np.array([0, 1, 2, 3])
    lost, won = [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]
    scores = {
        method: {"classes": {}, "retrieval": {"hits": {"t2i": hits, "i2t": hits}}}
        for method, hits in (("start", lost), ("siglip", won))
    }

    (one,) = stage._compare({"scores": scores}, owner)

    assert (one["method"], one["over"], one["classes"], one["gain"]) == ("siglip", "start", None, 25.0)
    half = 1.96 * 100 * math.sqrt(np.var([0, 1, 0, 0]) / 4 * 4 / 3)
    assert (one["low"], one["high"]) == pytest.approx((25 - half, 25 + half))


def test_settings_are_chosen_on_pictures_that_the_test_has_not(tmp_path: Path) -> None:
    config = from_scratch(methods=("siglip",))

    val, test = (
        adapt(replace(config, split=split), cache_dir=tmp_path / "cache", out=tmp_path / split)
        for split in ("val", "test")
    )

    one, other = (read_record(folder)["scores"]["siglip"] for folder in (val, test))
    splits = open_tables(config, cache_dir=tmp_path / "cache", progress=quiet, say=quiet).dataset.splits
    assert len(one["retrieval"]["hits"]["t2i"]) == len(splits["val"].captions)
    assert len(other["retrieval"]["hits"]["t2i"]) == len(splits["test"].captions)
    assert one["classes"] == other["classes"]
    assert one["retrieval"]["hits"] != other["retrieval"]["hits"]


def test_every_method_begins_at_the_scale_that_fits_the_winner(adapted: Path) -> None:
    record = read_record(adapted)

    assert record["start"]["logit_scale"] > 1
    for one in record["trainings"].values():
        first = one["looks"][0]
        assert first["logit_scale"] == pytest.approx(record["start"]["logit_scale"], rel=0.02)
        assert first["logit_bias"] == pytest.approx(record["start"]["logit_bias"], abs=0.02)


def test_a_record_in_the_terminal_names_its_split_and_who_is_held_against_whom(adapted: Path) -> None:
    record = read_record(adapted)
    words = shown(record) + shown({**record, "configuration": {"split": "val"}, "compared": []})

    assert "test R@1" in words
    assert "val R@1" in words
    assert words.count("HyperCLIP over SigLIP baseline") == 1
    assert words.count("HyperCLIP over the winner before") == 1
    gain = next(o["gain"] for o in record["compared"] if (o["method"], o["over"]) == ("hyperclip", "siglip"))
    assert f"{gain:+.1f} (".replace("-", "−") in words


def test_what_was_asked_for_comes_back_from_the_record(found: Path, adapted: Path) -> None:
    config = build(AdaptConfig, read_record(adapted)["configuration"])

    assert config.run == found
    assert config.methods == ("siglip", "hyperclip", "hyperclip-flat")
    assert config.training().n_steps == 3
    assert config.shape("hyperclip-flat") == build(HyperConfig, {**SMALL, "transformer": False})


def test_the_start_scores_nearly_what_the_run_says_of_its_winner(found: Path, adapted: Path) -> None:
    """Nearly: a head of plain weights divides rows by their mean length, and chance would be 2 %."""
    board = (found / "leaderboard.csv").read_text().splitlines()
    column = board[0].split(",").index("score")
    claimed = float(board[1].split(",")[column])

    assert read_record(adapted)["scores"]["start"]["retrieval"]["score"] == pytest.approx(claimed, abs=5)
    assert claimed > 10


def test_an_adapted_model_is_specialised_and_loads_in_timm_alone(adapted: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("red circle\nblue star\n")
    words = ["specialise", str(adapted), "--prompts", str(tmp_path / "classes.txt"), "--out", str(tmp_path / "out")]

    done = CliRunner().invoke(app, [*words, "--template", "a {}", "--json"])

    assert done.exit_code == 0, done.output
    page = json.loads((tmp_path / "out" / "specialised.json").read_text())
    encoder = import_timm().create_model(
        page["architecture"],
        num_classes=page["num_classes"],
        checkpoint_path=str(tmp_path / "out" / "encoder.safetensors"),
        **page["kwargs"],
    )
    with torch.no_grad():
        assert encoder.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, page["num_classes"])
    assert load_file(tmp_path / "out" / "classes.safetensors")["classes"].shape == (2, page["num_classes"])
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2
    assert "nothing is overwritten" in again.output


def test_an_architecture_is_trained_from_scratch_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole = adapt(from_scratch(), cache_dir=tmp_path / "cache", out=tmp_path / "whole")

    def cut(name: str, done: int, total: int) -> None:
        if name == "training hyperclip" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(from_scratch(), cache_dir=tmp_path / "cache", out=tmp_path / "cut", progress=cut)
    (folder,) = (tmp_path / "cut").iterdir()
    assert read_record(folder)["status"] == "running"
    adapt(from_scratch(), cache_dir=tmp_path / "cache", out=tmp_path / "cut", resume=folder)

    assert read_record(folder)["scores"] == read_record(whole)["scores"]
    assert read_record(folder)["trainings"]["hyperclip"]["resumed_at"] == 2
    one, other = (load_model(path / "hyperclip").network.state_dict() for path in (whole, folder))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_methods_that_are_compared_are_trained_alike_whoever_resumes(adapted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapted, tmp_path / "begun"))
    record = read_record(folder)
    del record["scores"]["hyperclip-flat"]
    record["training"]["learning_rate"] = 1e-3  # the default of another release
    (folder / "adapted.json").write_text(json.dumps(record))
    config = build(AdaptConfig, {**record["configuration"], "run": Path(record["configuration"]["run"])})

    with pytest.raises(ValueError, match="begun with other settings of training"):
        adapt(
            config, cache_dir=config.run.parents[1] / "cache" if config.run else tmp_path, out=tmp_path, resume=folder
        )
    assert read_record(folder)["scores"].keys() == record["scores"].keys()


@pytest.mark.parametrize(("diverged", "words"), [(True, "not finite at step 7"), (False, "step 4 of 7")])
def test_the_output_says_which_step_is_kept(diverged: bool, words: str) -> None:
    looks = [(0, 1.0), (4, 2.0)] + ([] if diverged else [(7, 1.5)])

    (sentence,) = stage._kept_in_words("siglip", Training(n_steps=7, validated=looks, diverged=diverged))

    assert words in sentence


def test_captions_without_a_usable_row_are_not_looked_at(tmp_path: Path) -> None:
    split = open_tables(from_scratch(), cache_dir=tmp_path, progress=quiet, say=quiet).dataset.splits["val"]
    ok = np.ones(len(split.captions), bool)
    ok[split.owner == 1] = False
    ok[0] = False

    watched = watch(split, lambda index: torch.from_numpy(index)[:, None], ok)

    assert watched is not None
    assert len(watched.pictures) == len(split.image_ids) - 1
    assert watched.captions[:, 0].tolist() == np.flatnonzero(ok).tolist()
    assert watched.owner.tolist() == [owner - (owner > 1) for owner in split.owner[ok]]
    assert watch(split, lambda index: torch.from_numpy(index), np.zeros(len(split.captions), bool)) is None


def test_the_baseline_and_the_method_start_from_the_same_weights(tmp_path: Path) -> None:
    config = from_scratch()
    tables = open_tables(config, cache_dir=tmp_path, progress=quiet, say=quiet)

    one, other = (start(config, tables, method).network.state_dict() for method in ("siglip", "hyperclip"))

    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert any(name.startswith("hyper.") for name in other)


@pytest.mark.parametrize(("gain", "method"), [(1.0, "ape"), (0.0, "closed-form"), (-1.0, "closed-form")])
def test_adapting_begins_with_the_connector_that_validates_best(found: Path, gain: float, method: str) -> None:
    run = load_run(found)
    table = run.leaderboard.copy()
    pair = table["image_encoder"].eq("resnet10-64") & table["text_encoder"].eq("counts-128")
    (answers,) = table.loc[pair & table["method"].eq(run.result["method"]) & table["sides"].eq("both")].to_dict(
        "records"
    )
    own = answers["validation_score"]
    table.loc[pair & table["method"].eq("polished"), "validation_score"] = own + gain

    solution, n = _kept_connectors(replace(run, leaderboard=table))["resnet10-64+counts-128"]

    assert solution.method == method  # what is polished is trained as ape trains
    assert solution.pairs[n] == (0, 0)


def test_a_winner_keeps_its_statistics_and_what_is_trained_from_scratch_takes_the_batchs() -> None:
    run = Path("a-run")

    asked = [AdaptConfig(arch="M1"), AdaptConfig(run=run), AdaptConfig(run=run, train={"bn": "batch"})]

    assert [one.training().bn for one in asked] == ["batch", "running", "batch"]
    assert [one.training().n_validations for one in asked] == [0, 4, 4]
    assert asked[1].training().learning_rate < asked[0].training().learning_rate / 10


def test_a_winner_that_no_step_makes_better_stays_as_it_was_and_the_output_says_so(found: Path, tmp_path: Path) -> None:
    train = {**TRAIN, "learning_rate": 0.3, "warmup_frac": 0.0}
    said = list[str]()

    config = build(AdaptConfig, {"run": found, "train": train, "methods": ("siglip",), "split": "val"})
    folder = adapt(config, cache_dir=found.parents[1] / "cache", out=tmp_path, say=said.append)

    record = read_record(folder)
    assert record["trainings"]["siglip"]["kept_step"] == 0
    assert record["scores"]["siglip"]["retrieval"] == record["scores"]["start"]["retrieval"]
    assert any("siglip: no step validates better than the start" in one and "--learning-rate" in one for one in said)
    assert any(one.startswith("the start is the winner") and one.endswith("beside what the run says") for one in said)
    assert "0 of 3" in shown(record)


def test_a_watched_training_sees_validation_alone(found: Path) -> None:
    config = build(AdaptConfig, {"run": found, "train": TRAIN})

    tables = open_tables(config, cache_dir=found.parents[1] / "cache", progress=quiet, say=quiet)

    val = tables.dataset.splits["val"]
    assert tables.watched is not None
    assert len(tables.watched.pictures) == len(val.image_ids)  # fewer than are looked at
    assert np.array_equal(tables.watched.owner, val.owner)
    model = start(config, tables, "siglip")
    assert score_watched(model, tables.watched) == pytest.approx(retrieve(model, val)["score"])


def test_one_of_the_eight_has_the_papers_hypernetwork_and_bottleneck() -> None:
    shapes = [AdaptConfig(arch=arch, hyper=given).shape("hyperclip") for arch, given in _ASKED]

    assert [(one.n_layers, one.width, one.bottleneck) for one in shapes if one] == [
        (12, 768, 577),
        (12, 768, 99),
        (2, 768, 512),
    ]


_ASKED: list[tuple[str, dict[str, Any]]] = [("m1", {}), ("M1", {"bottleneck": 99}), ("resnet18", {"n_layers": 2})]


def test_a_winner_without_normalisation_layers_gives_way_and_the_output_says_so(
    found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = write_world(tmp_path / "world")
    config = SearchConfig(
        zoo=(str(world / "zoo.toml"),), data=str(world / "pairs.csv"), verify=0, methods=("closed-form",), scores=False
    )
    rows_alone = search(config, cache_dir=tmp_path / "cache", out=tmp_path / "reports", progress=quiet, say=quiet)
    said: list[str] = []

    with pytest.raises(ValueError, match=r"no pair of .* whose connector is kept can be adapted"):
        adapt(
            AdaptConfig(run=rows_alone, train=TRAIN),
            cache_dir=tmp_path / "cache",
            out=tmp_path / "out",
            say=said.append,
        )

    assert len(said) == 6
    assert all(
        "gives way: its image encoder is a file of rows, and there is no network to adapt" in one for one in said
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "adapt the winner of a RUN or train an --arch from scratch, got neither; give one of them"),
        (["--arch", "Q7"], "no architecture 'Q7'"),
        (["nowhere"], "no run at nowhere: there is no such folder"),
        (["--arch", "M1", "--bn", "both"], "bn must be running or batch, got 'both'"),
        (["--arch", "M1", "--method", "clip"], "a method is one of siglip, hyperclip, hyperclip-flat, got 'clip'"),
        (["--arch", "M1", "--pair", "a+b"], "a pair belongs to a run"),
        (["--arch", "M1", "--weight-scale", "big"], "--weight-scale takes auto, none or a number, got 'big'"),
        (["--arch", "M1", "--split", "train"], "models are scored on test, or on val to choose settings by"),
        (["--resume", "nowhere"], "nothing was adapted in nowhere"),
        (["--arch", "M1", "--data", "nowhere.csv"], "there is no nowhere.csv"),
    ],
)
def test_a_slip_is_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    done = CliRunner().invoke(app, ["adapt", *words])

    assert done.exit_code == 2, done.output
    assert sentence in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert not (tmp_path / "reports").exists()


def test_a_pair_that_the_run_has_not_is_refused(found: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"no pair 'a\+b' in .*; the best are resnet10-64\+counts-128"):
        adapt(AdaptConfig(run=found, pair="a+b"), cache_dir=tmp_path, out=tmp_path)


def test_what_is_finished_is_not_resumed(adapted: Path) -> None:
    done = CliRunner().invoke(app, ["adapt", "--resume", str(adapted)])

    assert done.exit_code == 2
    assert "is finished, there is nothing to go on with" in done.output


def test_a_damaged_model_is_refused_before_anything_is_written(adapted: Path, tmp_path: Path) -> None:
    model = shutil.copytree(adapted / "hyperclip", tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "classes.txt").write_text("red circle\n")
    words = ["specialise", str(model), "--prompts", str(tmp_path / "classes.txt"), "--out", str(tmp_path / "out")]

    done = CliRunner().invoke(app, words)

    assert done.exit_code == 2
    assert "is damaged or was cut short" in done.output
    assert not (tmp_path / "out").exists()


def test_captions_without_a_usable_row_and_their_pictures_are_kept_out_of_training(tmp_path: Path) -> None:
    config = from_scratch()
    split = open_tables(config, cache_dir=tmp_path, progress=quiet, say=quiet).dataset.splits["train"]
    ok = np.ones(len(split.captions), bool)
    ok[:5] = False  # all captions of the first picture
    ok[7] = False

    pairs = stage._pairs(split, find_architecture("M1"), config, lambda index: torch.from_numpy(index), ok)

    assert len(pairs.pictures) == 39
    assert len(pairs.owner) == len(split.captions) - 6
    assert pairs.read(np.array([0, 2])).tolist() == [5, 8]
    assert pairs.owner[:5].tolist() == [0, 0, 0, 0, 1]
