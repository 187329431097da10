"""Input that a fuzzer broke the program with, each written small; now it ends in one sentence, and touches nothing."""

import io
import json
import shlex
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import made_up_leaderboard, made_up_ledger, made_up_result
from made_up_grid import made_up_grid
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from safetensors.numpy import save
from small_zoo import read_rows, small_search, write_rows, write_world

from hyperalign.align.residual import RESIDUAL
from hyperalign.cli.manners import _sentence
from hyperalign.config import place_words, read_words
from hyperalign.embed.cache import CacheKey, fill, find_entries, open_folder, verify
from hyperalign.embed.clip_retrieval import import_clip_retrieval
from hyperalign.embed.partial import find_stored
from hyperalign.embed.plain import misfit, parse_json
from hyperalign.embed.samples import cut_short, expand
from hyperalign.embed.sentences import build_sentence_encoder
from hyperalign.embed.shards import Part, read_array, read_record, write_part
from hyperalign.embed.tables import plain_rows
from hyperalign.embed.zoo import EncoderSpec, load_zoo
from hyperalign.hyperclip.filtering import filter_data
from hyperalign.hyperclip.rules import FilterConfig
from hyperalign.relimit import open_run
from hyperalign.request import from_record
from hyperalign.run import create_run, earlier_seconds, finish_run, load_run, load_tensors, log_event, read_log
from hyperalign.show.view import draw_board
from hyperalign.study.asked import StudyConfig
from hyperalign.study.conduct import best_commands
from hyperalign.study.kept import read_study
from hyperalign.study.outcome import write_best
from hyperalign.study.seats import WORKER, _is_lost
from hyperalign.study.space import read_space, turned
from hyperalign.study.storage import open_storage, shown
from hyperalign.use.classes import read_classes
from hyperalign.use.folder import read_folder
from hyperalign.use.likeness import is_like
from hyperalign.use.stock import read_stock

TEXT_ENCODER = '[[encoder]]\nname = "x"\nmodality = "text"\nloader = "sentence-transformers"\narchitecture = "a"\n'
DEEP = "[" * 3000
CUT_HEADER = b"\x93NUMPY\x01\x00\x16\x00{'descr': ('<f4', 'for"


# Words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"budget": ["30M"]}, "a limit is a number or words"),
        ({"budget": True}, "a limit is a number or words"),
        ({"method": 5}, "a list of words is wanted"),
        ({"train": 5, "steps": 3}, "train must be a table"),
        ({"limits": "x"}, "limits must be a table"),
        ({"train": [1]}, "train must be a table"),
    ],
)
def test_words_of_another_kind_than_an_option_wants_are_refused(words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_record(place_words(words))


def test_a_number_is_as_good_a_limit_as_its_word() -> None:
    assert place_words({"budget": 30_000_000}) == place_words({"budget": "30M"})


@pytest.mark.parametrize("word", ["inf:2", "1:inf", "1,nan", "1e999,2"])
def test_a_space_without_end_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="must"):
        read_space({"batch_size": word}, RESIDUAL)


@pytest.mark.parametrize("pattern", ["{0..9999}{0..9999}.tar", "{a,b}" * 40, "{" * 5000])
def test_braces_that_stand_for_more_files_than_there_are_are_refused_at_once(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"can be named|at most 1,024 letters"):
        expand(pattern)


def test_a_sentence_is_cut_in_the_middle_where_a_value_fills_pages() -> None:
    said = _sentence(ValueError(f"name must be short, got {'a ' * 9000}; give another"))

    assert said is not None
    assert len(said) < 1010
    assert said.startswith("name must be short")
    assert said.endswith("give another")


# Zoos and configurations


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"x = {DEEP}", "nested too deep"),
        (f"x = {'9' * 5000}", "not a TOML file"),
        (TEXT_ENCODER + 'prompt = "a\\u0000b"\n', "without zero bytes"),
        (TEXT_ENCODER + f"n_params = {10**400}\n", "must be below"),
        (TEXT_ENCODER + f"gflops = {10**400}\n", "gflops must be below"),
        (TEXT_ENCODER + "kwargs = 5\n", "kwargs must be a table"),
        (TEXT_ENCODER + "kwargs = { model_kwargs = { weights_only = false } }\n", "may not hold 'weights_only'"),
        (
            TEXT_ENCODER + "kwargs = { a = [{ trust_remote_code = true }] }\n",
            "no code that comes with them is ever run",
        ),
        (
            TEXT_ENCODER.replace("text", "image").replace("sentence-transformers", "timm")
            + 'kwargs = { checkpoint_path = "evil.pt" }\n',
            "weights come from 'checkpoint'",
        ),
    ],
)
def test_a_zoo_that_asks_for_the_impossible_or_for_code_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "zoo.toml").write_text(text)

    with pytest.raises(ValueError, match=sentence):
        load_zoo(tmp_path / "zoo.toml")


@pytest.mark.parametrize("text", [f"x = {DEEP}", f"seed = {'9' * 5000}", "seed = \x00"])
def test_a_configuration_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)

    with pytest.raises(ValueError, match="not a TOML file"):
        read_words(tmp_path / "run.toml", ["seed", "x"])


def test_a_folder_whose_modules_are_code_of_its_own_is_refused_before_any_is_run(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n\nclass Evil: pass\n")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    spec = EncoderSpec(name="x", modality="text", loader="sentence-transformers", checkpoint="model", folder=tmp_path)

    with pytest.raises(ValueError, match="code that comes with weights is never run"):
        build_sentence_encoder(spec)
    assert not (tmp_path / "ran").exists()


# Arrays and tables


def test_an_array_whose_header_ends_in_the_middle_is_refused_wherever_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "img_emb").mkdir()
    (tmp_path / "img_emb" / "img_emb_0.npy").write_bytes(CUT_HEADER)

    with pytest.raises(ValueError, match=r"no whole \.npy of numbers"):
        read_array(tmp_path / "img_emb" / "img_emb_0.npy")
    with pytest.raises(ValueError, match=r"no whole \.npy of numbers"):
        import_clip_retrieval(tmp_path)


@pytest.mark.parametrize("value", [np.array(["text"]), np.array([1j]), np.zeros(2, dtype=[("a", "f4")])])
def test_an_array_of_anything_but_numbers_is_refused(tmp_path: Path, value: Any) -> None:
    np.save(tmp_path / "a.npy", value)

    with pytest.raises(ValueError, match="it holds something else"):
        read_array(tmp_path / "a.npy")


def test_damage_in_a_parquet_is_one_sentence_wherever_it_lies(tmp_path: Path) -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"image": ["a.png"] * 50, "caption": [f"caption {k}" for k in range(50)]}), out)
    whole, path = out.getvalue(), tmp_path / "pairs.parquet"
    for at in range(4, len(whole) - 8, 37):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            list(plain_rows(path))
            filter_data(
                str(path), tmp_path / f"out-{at}", FilterConfig(language=None, score="s", min_score=0), progress=_silent
            )
        except ValueError as error:
            assert "not a parquet file that can be read" in str(error) or "no column" in str(error), (at, error)  # noqa: PT017


def test_a_date_beyond_those_of_python_is_one_sentence(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a.png"], "caption": pa.array([2**30], pa.date32())}), tmp_path / "x.parquet")

    with pytest.raises(ValueError, match="not a parquet file that can be read"):
        list(plain_rows(tmp_path / "x.parquet"))


def test_a_caption_of_any_length_is_a_few_words_in_the_notes_of_a_run(tmp_path: Path) -> None:
    world, endless = write_world(tmp_path), "very long " * 5_000
    rows = read_rows(world, "words", "test")
    rows[:2] = 0
    write_rows(world, "words", "test", rows)
    table = world / "pairs.csv"
    table.write_text(table.read_text().replace("test picture 0, caption 0", endless))

    notes = load_run(small_search(world)).result["notes"]

    quoted = f"{'very long ' * 5}very long…, test picture 0, caption 1"
    assert notes == [f"test: words has no usable row for 2 captions, which count as misses: {quoted}"]


@pytest.mark.parametrize("n_letters", [59, 60, 61])
def test_a_text_is_cut_at_sixty_letters_and_says_so(n_letters: int) -> None:
    text = "ab" * 40

    assert cut_short(text[:n_letters]) == (text[:n_letters] if n_letters <= 60 else f"{text[:59]}…")


def test_half_a_surrogate_pair_in_a_caption_can_be_copied(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"image": "a.png", "caption": "a cat \\ud800", "s": 1}\n')

    filter_data(
        str(tmp_path / "pairs.jsonl"),
        tmp_path / "out",
        FilterConfig(language=None, score="s", min_score=0),
        progress=_silent,
    )

    assert [row["caption"] for _, row in plain_rows(tmp_path / "out" / "pairs.jsonl")] == ["a cat \ud800"]


def test_classes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(b"cat\n\xff\xfe\n")

    with pytest.raises(ValueError, match="must be UTF-8 text"):
        read_classes(str(tmp_path / "classes.txt"))


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 8, (2**63).to_bytes(8, "little") + b"{}", save({"a": np.zeros(3)})[:-1]]
)
def test_tensors_that_are_none_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "hits.safetensors").write_bytes(data)

    with pytest.raises(ValueError, match="is damaged"):
        load_tensors(tmp_path / "hits.safetensors")


# Plain data


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (DEEP, "too deep"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "no number"),
        (b"\xff", "UTF-8"),
        ("{", "Expecting"),
    ],
)
def test_json_that_is_none_is_a_value_error(text: str | bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_json(text)


@pytest.mark.parametrize(
    ("value", "kind", "fault"),
    [
        (1, int, None),
        (True, int, "must be a whole number"),
        (10**40, int, "must be a whole number"),
        (1, float, None),
        (None, float, None),
        (float("inf"), float, "must be a number"),
        ("1", float, "must be a number"),
        ([1, 2], list[int], None),
        ([1, "x"], list[int], "it[1] must be a whole number, got 'x'"),
        ([1, "a"], tuple[int, str], None),
        ([1], tuple[int, str], "a list of 2"),
        ({"a": 1}, list[int], "must be a list"),
        ({"a": 1}, dict[str, int], None),
        ({"a": None}, dict[str, int], "a must be a whole number"),
        (None, int | None, None),
        ("x", int | None, "must be a whole number"),
        ({}, Any, None),
    ],
)
def test_plain_data_is_held_against_its_type(value: Any, kind: Any, fault: str | None) -> None:
    found = misfit(value, kind)

    assert found is None if fault is None else found is not None and fault in found


# The cache


KEY = CacheKey(
    encoder="e", weights="w", revision="", preprocess="", pooling="", prompt="", dataset="d", content="c", split="s"
)
ROWS = np.arange(32, dtype=np.float16).reshape(8, 4)


def sealed(path: Path, record: dict[str, Any]) -> None:
    """Write a record as someone does who knows how it is sealed."""
    plain = {key: value for key, value in record.items() if key != "seal"}
    path.write_text(json.dumps({**plain, "seal": zlib.crc32(json.dumps(plain, sort_keys=True).encode())}))


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../outside.npy"},
        {"file": "/etc/passwd"},
        {"file": 5},
        {"start": "0"},
        {"stop": -1},
        {"stop": 10**30},
        {"dim": 0},
        {"dtype": "object"},
        {"bad": [[1]]},
        {"bad": [["x", "y"]]},
        {"n_bytes": None},
        {"more": 1},
    ],
)
def test_a_record_that_says_what_no_shard_is_counts_as_damaged_and_is_made_again(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    entry = tmp_path / KEY.folder
    fill(tmp_path, KEY, n_rows=8, embed=lambda a, b: (ROWS[a:b], []), shard_rows=4)
    own, manifest = read_record(entry / "part-00000.json"), read_record(entry / "manifest.json")
    assert own is not None
    assert manifest is not None
    with pytest.raises(ValueError, match="the record of a shard is damaged"):
        Part.from_record({**own, **change})

    sealed(entry / "part-00000.json", {**own, **change})
    sealed(entry / "manifest.json", {**manifest, "parts": [{**manifest["parts"][0], **change}, manifest["parts"][1]]})

    assert verify(tmp_path)
    assert find_entries(tmp_path)[0].shape is None
    assert np.array_equal(fill(tmp_path, KEY, n_rows=8, embed=lambda a, b: (ROWS[a:b], []), shard_rows=4).rows[:], ROWS)


def test_a_shard_that_is_not_what_its_record_says_is_made_again(tmp_path: Path) -> None:
    entry = tmp_path / KEY.folder
    fill(tmp_path, KEY, n_rows=8, embed=lambda a, b: (ROWS[a:b], []), shard_rows=4)
    own = read_record(entry / "part-00000.json")
    assert own is not None
    sealed(entry / "part-00000.json", {**own, "dim": 2})
    (entry / "manifest.json").unlink()

    assert np.array_equal(fill(tmp_path, KEY, n_rows=8, embed=lambda a, b: (ROWS[a:b], []), shard_rows=4).rows[:], ROWS)


@pytest.mark.parametrize("items", [None, 5, [1], ["x", 2], [-1, 2], [2**70, 1], [[1], 2]])
def test_rows_of_a_sample_that_belong_to_nothing_count_as_not_there(tmp_path: Path, items: Any) -> None:
    write_part(tmp_path, 0, 0, ROWS[:2], [], stem="some", items=[1, 2])
    own = read_record(tmp_path / "some-00000.json")
    assert own is not None
    sealed(tmp_path / "some-00000.json", {**own, "items": items})

    assert len(find_stored(tmp_path, shards=False).items) == 0


def test_a_manifest_with_another_key_is_no_entry(tmp_path: Path) -> None:
    fill(tmp_path, KEY, n_rows=8, embed=lambda a, b: (ROWS[a:b], []))
    path = tmp_path / KEY.folder / "manifest.json"
    manifest = read_record(path)
    assert manifest is not None
    sealed(path, {**manifest, "key": {"encoder": "e"}})

    with pytest.raises(FileNotFoundError, match="no finished entry"):
        open_folder(tmp_path / KEY.folder)


# Runs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = create_run(tmp_path, label="x", configuration={"data": "made-up"})
    return finish_run(path, made_up_result(), leaderboard=made_up_leaderboard(), ledger=made_up_ledger()).path


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"configuration": 5}, "configuration must be an object"),
        ({"status": "done"}, "status must be 'running' or 'finished'"),
        ({"answer": "x"}, "answer must be a list"),
        ({"ratios": [{"setting": "x"}]}, "ratios[0] lacks baseline"),
        ({"totals": {"search_flops": "1"}}, "totals.search_flops must be a whole number"),
        ({"encoders": [{"name": 5, "modality": "image", "loader": "timm"}]}, "encoders[0].name must be text"),
        ({"hardware": {"memory_bytes": {}}}, "hardware.memory_bytes must be a whole number"),
        ({"wall_seconds": "1"}, "wall_seconds must be a number"),
        ({"method": "nobody"}, "has no row of its method"),
    ],
)
def test_a_run_that_says_something_else_than_a_run_is_refused(run: Path, change: dict[str, Any], sentence: str) -> None:
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, **change}))

    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the sentence holds brackets
        load_run(run)
    assert sentence in str(refused.value)


def test_a_leaderboard_without_places_is_refused(run: Path) -> None:
    text = (run / "leaderboard.csv").read_text()
    (run / "leaderboard.csv").write_text(text.replace("\n1,", "\n,", 1))

    with pytest.raises(ValueError, match="position must be whole numbers"):
        load_run(run)


def test_a_leaderboard_that_lost_all_its_rows_is_drawn_without_any(run: Path) -> None:
    head = (run / "leaderboard.csv").read_text().splitlines()[0]
    (run / "leaderboard.csv").write_text(head + "\n")

    assert draw_board(load_run(run)).rows == ()


def test_lines_of_a_log_that_nobody_here_has_written_are_passed_over(run: Path) -> None:
    before = list(read_log(run))
    with (run / "log.jsonl").open("ab") as log:
        for line in (
            b"5",
            b"[]",
            b'{"event": 5}',
            b'{"event": "look", "step": "x"}',
            b"\xff",
            DEEP.encode(),
            b'{"time": 5}',
        ):
            log.write(line + b"\n")
    log_event(run, "note", text="half\u2028a line\x85and more")

    after = list(read_log(run))

    assert after[:-1] == before
    assert after[-1]["text"] == "half\u2028a line\x85and more"
    assert earlier_seconds(run) >= 0


def test_hits_and_a_leaderboard_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    run = made_up_grid(tmp_path, 3, 2, n_test=12)
    text = (run.path / "leaderboard.csv").read_text()
    (run.path / "leaderboard.csv").write_text(text.replace("image-000", "image-999"))

    with pytest.raises(ValueError, match="are not of one run"):
        open_run(load_run(run.path))


# Exported pairs, indexes and studies


def test_an_exported_pair_that_is_none_is_refused(tmp_path: Path) -> None:
    encoder = {"name": "x", "modality": "image", "loader": "timm", "folder": ".", "weights": "", "preprocess": ""}
    whole = {
        "format": 1,
        "pair": "a+b",
        "image": encoder,
        "text": encoder,
        "connector": {"images": [None], "texts": [None]},
    }
    for change, sentence in (
        ({"image": 5}, "image must be an object"),
        ({"image": {**encoder, "folder": 5}}, "image.folder must be text"),
        ({"connector": {"images": 5, "texts": []}}, "connector.images must be a list"),
        ({"image": {**encoder, "embed_dim": "x", "architecture": "a"}}, "embed_dim must be a whole number"),
        ({"image": {**encoder, "architecture": "resnet10t"}}, "comes from a hub and names no commit"),
    ):
        (tmp_path / "hyperalign.json").write_text(json.dumps({**whole, **change}))
        with pytest.raises(ValueError, match=sentence):
            read_folder(tmp_path)


def test_a_stock_with_pictures_beyond_its_folders_counts_as_damaged(tmp_path: Path) -> None:
    for name, member in (("../secret.png", ""), ("/etc/secret.png", ""), ("a.tar", "../b.png")):
        write_part(tmp_path, 0, 0, ROWS[:1], [], items=[[0, name, member, "s"]])
        assert read_stock(tmp_path).rows is None
        assert list(tmp_path.iterdir()) == []


STUDY = {"format": 1, "name": "s", "storage": "journal", "configuration": {}, "asked": {}, "inputs": "i"}
FOUND: dict[str, Any] = {  # of one trial, that failed
    **{"objectives": ["score"], "directions": ["maximize"], "n_trials": {"failed": 1}, "n_given_back": 0, "best": []},
    "trials": [{"number": 0, "state": "failed", "values": None, "params": {}, "seconds": 1.0}],
    **{"history": [], "importances": {}, "spent_tflop": {}, "stopped": ""},
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"storage": 5}, "storage must be text"),
        ({"asked": []}, "asked must be an object"),
        ({"warm": 5}, "warm must be text"),
        ({"trials": []}, "it lacks"),
        ({"status": "gone"}, "status must be"),
        ({"status": "finished"}, "it has ended and lacks trials"),
        ({**FOUND, "best": [0]}, "its best trials are not among its trials, or have no values"),
    ],
)
def test_a_record_that_is_none_of_a_study_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    (tmp_path / "study.json").write_text(json.dumps({**STUDY, **change}))

    with pytest.raises(ValueError, match=sentence):
        read_study(tmp_path)


def test_a_study_whose_trials_all_failed_is_read(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({**STUDY, **FOUND, "status": "finished"}))

    assert read_study(tmp_path)["best"] == []


def test_a_trial_of_fields_that_no_training_has_is_refused() -> None:
    with pytest.raises(ValueError, match="a trial is of learning, and no training has such a field"):
        turned(RESIDUAL, {"learning": 1.0})


def test_a_database_whose_tables_have_no_names_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as file:
        file.execute("CREATE TABLE plain (x int)")
        file.commit()
    (tmp_path / "x.db").write_bytes((tmp_path / "x.db").read_bytes().replace(b"plain", b"pl\x92in"))

    with pytest.raises(ValueError, match="is not a study's storage"):
        open_storage(f"sqlite:///{tmp_path / 'x.db'}", tmp_path)


def test_rows_of_several_lengths_are_like_no_model() -> None:
    known = {"rows": [[1.0, 0.0], [0.0, 1.0]]}

    assert is_like(known, known)
    assert not is_like({"rows": [[1.0, 0.0], [0.0]]}, known)


@pytest.mark.parametrize("storage", ["sqlite:///{}/new.db", "journal:{}/new.journal"])
def test_a_record_cannot_have_a_storage_made_elsewhere(tmp_path: Path, storage: str) -> None:
    (tmp_path / "study").mkdir()
    record = {**STUDY, "storage": storage.format(tmp_path)}
    (tmp_path / "study" / "study.json").write_text(json.dumps(record))

    with pytest.raises(FileNotFoundError, match="where nothing is"):
        best_commands(tmp_path / "study")
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_a_command_in_a_record_is_not_made_one_of_a_configuration_file(tmp_path: Path) -> None:
    """What a user's own file says is run."""
    trial = optuna.create_trial(
        value=1.0, params={"learning_rate": 0.1}, distributions={"learning_rate": FloatDistribution(1e-3, 1.0)}
    )
    data = "pipe:touch 'a b'.tar"

    said = write_best(tmp_path, trial, StudyConfig(), from_record({"data": data}))

    (file,) = tmp_path.iterdir()
    assert "pipe" not in file.read_text()
    assert said == f"hyperalign search --config {file} --data {shlex.quote(data)}"


def test_a_worker_of_a_name_that_leads_elsewhere_has_no_lock_looked_at(tmp_path: Path) -> None:
    (tmp_path / "own" / ".locks").mkdir(parents=True)
    (tmp_path / "other.lock").write_text("precious")
    trial = optuna.create_trial(state=TrialState.RUNNING, user_attrs={WORKER: "../../other"})

    assert _is_lost(trial, tmp_path / "own", local=True)
    assert (tmp_path / "other.lock").read_text() == "precious"


@pytest.mark.parametrize("url", ["mysql://[::1", "postgresql://[zz]/x"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is a URL such as"):
        shown(url)


def test_a_journal_that_breaks_off_in_an_operation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.journal").write_text('{"op_code": 99, "worker_id": "w"}\n')

    with pytest.raises(ValueError, match="is not a study's journal"):
        open_storage(f"journal:{tmp_path / 'x.journal'}", tmp_path)


def _silent(stage: str, done: int, total: int) -> None: ...
