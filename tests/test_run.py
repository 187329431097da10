"""A run on disk: whole or not at all, and readable to the last bit."""

import errno
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import made_up_leaderboard, made_up_ledger, made_up_result

from hyperalign.ledger import Line
from hyperalign.record import LEADERBOARD_COLUMNS
from hyperalign.run import (
    Run,
    at_work_on,
    create_run,
    find_cut_short,
    find_unfinished,
    finish_run,
    finished_stages,
    load_run,
    load_stage,
    load_tensors,
    log_event,
    read_log,
    read_result,
    resume_run,
    same_table,
    save_stage,
    write_leaderboard,
    write_ledger,
    write_result,
    write_tensors,
    write_whole,
)


def begin(folder: Path) -> Path:
    return create_run(folder, label="Scenes & more!", configuration={"seed": 3})


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    first, second = begin(tmp_path), begin(tmp_path)

    assert first != second
    assert first.name.endswith("-scenes-more")


def test_a_new_run_records_what_was_asked_and_where(tmp_path: Path) -> None:
    result = read_result(begin(tmp_path))

    assert result["configuration"] == {"seed": 3}
    assert result["status"] == "running"
    assert result["versions"]["numpy"] == np.__version__
    assert result["hardware"]["n_cores"] >= 1


def test_a_record_names_no_user_and_no_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "somebody-special")
    text = (begin(tmp_path) / "result.json").read_text()

    assert "somebody-special" not in text
    assert os.uname().nodename not in text
    assert str(tmp_path) not in text


def test_a_finished_run_comes_back_as_it_was_written(finished_run: Run) -> None:
    again = load_run(finished_run.path)

    pd.testing.assert_frame_equal(again.leaderboard, made_up_leaderboard(), check_dtype=False)
    assert again.ledger[list(Line._fields)].values.tolist() == [list(line) for line in made_up_ledger()]
    assert again.result["status"] == "finished"
    assert again.result["ratios"] == made_up_result()["ratios"]


def test_floats_come_back_to_the_last_bit(tmp_path: Path) -> None:
    run = begin(tmp_path)
    table = made_up_leaderboard().assign(score=[0.1 + 0.2, math.pi, 1 / 3] * 3)

    again = finish_run(run, made_up_result(), leaderboard=table, ledger=[])

    assert again.leaderboard["score"].tolist() == table["score"].tolist()


@pytest.mark.parametrize("name", ["NA", "nan", "null", "None", "1e5", "a,b", 'a"b', "", "zwölf"])
def test_an_encoder_may_have_any_name(tmp_path: Path, name: str) -> None:
    table = made_up_leaderboard((name,))

    again = finish_run(begin(tmp_path), made_up_result(), leaderboard=table, ledger=[])

    assert again.leaderboard["image_encoder"].tolist() == [name] * 3


def test_the_leaderboard_begins_with_the_columns_of_the_contract(finished_run: Run) -> None:
    head = (finished_run.path / "leaderboard.csv").read_text().splitlines()[0]

    assert head.startswith(
        "position,rank,image_encoder,text_encoder,method,sides,score,score_low,score_high,p_best,t2i_recall_at_1,"
        "t2i_recall_at_5,t2i_recall_at_10,i2t_recall_at_1,i2t_recall_at_5,i2t_recall_at_10,zero_shot_top_1,cka,"
        "mutual_knn,n_params_image,n_params_text,gflops_image,gflops_text,latency_ms,image_dim,text_dim,license_image,"
        "license_text,train_flops,seed,"
    )


@pytest.mark.parametrize("column", LEADERBOARD_COLUMNS)
def test_a_leaderboard_without_one_of_the_columns_is_refused(tmp_path: Path, column: str) -> None:
    with pytest.raises(ValueError, match=column):
        write_leaderboard(tmp_path, made_up_leaderboard().drop(columns=column))


def test_the_ledger_begins_with_the_columns_of_the_contract(tmp_path: Path) -> None:
    write_ledger(tmp_path, made_up_ledger())

    assert (tmp_path / "ledger.csv").read_text().startswith("stage,what,flops,seconds,peak_bytes")


def test_what_is_not_a_number_is_null_in_json(tmp_path: Path) -> None:
    run = begin(tmp_path)

    write_result(
        run, {**read_result(run), "wall_seconds": math.nan, "roofline": {"a": np.float32("inf"), "b": Path("c")}}
    )

    again = read_result(run)
    assert again["wall_seconds"] is None
    assert again["roofline"] == {"a": None, "b": "c"}


def test_a_power_cut_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path / "hits.safetensors", {"a": np.arange(3)})

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", power_cut)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path / "hits.safetensors", {"a": np.arange(4)})

    assert load_tensors(tmp_path / "hits.safetensors")["a"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["hits.safetensors"]


def test_tensors_keep_shape_type_and_values_whatever_their_layout(tmp_path: Path) -> None:
    sideways = np.arange(6, dtype=np.float32).reshape(2, 3).T

    write_tensors(tmp_path / "connectors.safetensors", {"w": sideways})

    again = load_tensors(tmp_path / "connectors.safetensors")["w"]
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, sideways)


def test_a_run_that_was_cut_short_says_how_to_go_on(tmp_path: Path) -> None:
    run = begin(tmp_path)

    with pytest.raises(ValueError, match=f"hyperalign search --resume {run}"):
        load_run(run)


def test_a_folder_that_is_no_run_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a run"):
        load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_run(tmp_path / "missing")


@pytest.mark.parametrize("name", ["leaderboard.csv", "ledger.csv"])
def test_a_run_without_its_tables_names_the_missing_one(finished_run: Run, name: str) -> None:
    (finished_run.path / name).unlink()

    with pytest.raises(FileNotFoundError, match=name):
        load_run(finished_run.path)


@pytest.mark.parametrize("content", ["{", "[]", '{"status": "finished"}', "\x00"])
def test_a_damaged_record_is_one_sentence(finished_run: Run, content: str) -> None:
    (finished_run.path / "result.json").write_text(content)

    with pytest.raises(ValueError, match=r"result\.json"):
        load_run(finished_run.path)


def test_a_stage_is_finished_only_with_its_record(tmp_path: Path) -> None:
    run = begin(tmp_path)
    save_stage(run, "training", tensors={"w": np.ones(2)}, record={"flops": 12})
    save_stage(run, "validation", tensors={"w": np.ones(2)}, record={})
    (run / "stages" / "validation.json").unlink()

    stage = load_stage(run, "training")

    assert stage is not None
    assert stage.record == {"flops": 12}
    assert stage.tensors["w"].tolist() == [1, 1]
    assert load_stage(run, "validation") is None
    assert load_stage(run, "never") is None


def test_finished_stages_are_listed_once_and_in_order(tmp_path: Path) -> None:
    run = begin(tmp_path)
    for name in ("set-up", "training", "set-up"):
        save_stage(run, name, tensors={}, record={})

    assert finished_stages(run) == ["set-up", "training"]


def test_a_finished_run_keeps_no_stages(tmp_path: Path) -> None:
    run = begin(tmp_path)
    save_stage(run, "training", tensors={"w": np.ones(2)}, record={})

    finish_run(run, made_up_result(), leaderboard=made_up_leaderboard(), ledger=[])

    assert not (run / "stages").exists()


def test_a_half_written_line_of_the_log_is_left_out(tmp_path: Path) -> None:
    run = begin(tmp_path)
    log_event(run, "note", text="zwölf\nlines")
    with (run / "log.jsonl").open("a") as log:
        log.write('{"event": "cut')

    assert [line["event"] for line in read_log(run)] == ["started", "note"]


def test_a_finished_run_cannot_be_resumed(finished_run: Run) -> None:
    with pytest.raises(ValueError, match="hyperalign rerun"):
        resume_run(finished_run.path)


def test_the_unfinished_run_of_this_process_is_found(tmp_path: Path, finished_run: Run) -> None:
    run = begin(finished_run.path.parent)

    assert find_unfinished(run.parent, pid=os.getpid()) == run
    assert find_unfinished(run.parent, pid=-1) is None
    assert find_unfinished(tmp_path / "nowhere", pid=os.getpid()) is None


def test_tables_are_the_same_whatever_the_latency(tmp_path: Path, finished_run: Run) -> None:
    slower = made_up_leaderboard().assign(latency_ms=9.0)
    better = made_up_leaderboard().assign(score=99.0)
    runs = [
        finish_run(begin(tmp_path), made_up_result(), leaderboard=table, ledger=[]).path for table in (slower, better)
    ]

    assert same_table(finished_run.path, runs[0])
    assert not same_table(finished_run.path, runs[1])


def test_an_event_behind_a_line_that_was_cut_off_is_not_lost(tmp_path: Path) -> None:
    run = create_run(tmp_path, label="x", configuration={})
    with (run / "log.jsonl").open("a") as log:
        log.write('{"time": "2026-03-01T00:00:00", "event": "losses", "curve": [1.0, 0.')

    log_event(run, "resumed")

    assert [line["event"] for line in read_log(run)] == ["started", "resumed"]


def test_a_stage_of_which_a_byte_has_changed_is_made_again(tmp_path: Path) -> None:
    run = create_run(tmp_path, label="x", configuration={})
    for name in ("tensors", "record"):
        save_stage(run, name, tensors={"w": np.ones(3)}, record={"a": 1})
    for path in (run / "stages" / "tensors.safetensors", run / "stages" / "record.json"):
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)

    assert load_stage(run, "tensors") is None
    assert load_stage(run, "record") is None
    assert [line["name"] for line in read_log(run) if line["event"] == "damaged"] == ["tensors", "record"]


def test_only_a_run_that_was_asked_for_the_same_and_that_nobody_writes_is_gone_on_with(tmp_path: Path) -> None:
    run = create_run(tmp_path, label="x", configuration={"seed": 0, "exhaustive": True})
    log_event(run, "inputs", digest="d")
    same = {"seed": 0, "exhaustive": None}

    assert find_cut_short(tmp_path, same, inputs="d") == run
    assert find_cut_short(tmp_path, same, inputs="other") is None
    assert find_cut_short(tmp_path, {**same, "seed": 1}, inputs="d") is None
    with at_work_on(run):
        assert find_cut_short(tmp_path, same, inputs="d") is None
        with pytest.raises(ValueError, match="another process is at work"), at_work_on(run):
            pass


def test_a_run_that_memory_was_short_for_is_gone_on_with(tmp_path: Path) -> None:
    """It is likely to have been cut short, and the same command may find more memory or less."""
    run = create_run(
        tmp_path, label="x", configuration={"exhaustive": True, "canonical": {"rank": 9, "store_bytes": 0}}
    )
    log_event(run, "inputs", digest="d")

    assert find_cut_short(tmp_path, {"exhaustive": None, "canonical": {"rank": 9}}, inputs="d") == run
    assert find_cut_short(tmp_path, {"exhaustive": None, "canonical": {"rank": 8}}, inputs="d") is None


def test_a_run_of_somebody_else_that_cannot_be_locked_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = create_run(tmp_path, label="x", configuration={"exhaustive": True})
    log_event(theirs, "inputs", digest="d")
    assert find_cut_short(tmp_path, {"exhaustive": True}, inputs="d") == theirs

    def refused(*_: object) -> Any:
        raise OSError("could not lock it: Permission denied")

    monkeypatch.setattr("hyperalign.run.owned_now", refused)

    assert find_cut_short(tmp_path, {"exhaustive": True}, inputs="d") is None


def test_a_disk_that_is_full_is_named_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(OSError, match=r"could not write .*table\.csv: No space left on device; make room"):
        write_whole(tmp_path / "table.csv", b"1")
