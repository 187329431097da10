"""An index of pictures: made, resumed, brought up to date, moved, searched."""

import errno
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import colour_model, write_colour, write_colours

from hyperalign.embed.shards import read_record, write_record
from hyperalign.use.gallery import ABOUT, open_gallery
from hyperalign.use.index import IndexConfig
from hyperalign.use.retrieve import retrieve
from hyperalign.use.stock import read_stock
from hyperalign.use.update import Updated, update_gallery

BY = {"path": "/models/eye", "pair": None}
GRAPH = IndexConfig(flat_values=0, links=8)


def update(folder: Path, *, photos: Sequence[Path] | None = None, model: Any = None, **given: Any) -> Updated:
    """Bring `folder/index` up to date with `folder/photos`, eight rows a shard."""
    roots = photos or [folder / "photos"]
    return update_gallery(model or colour_model()[0], roots, folder / "index", made_by=BY, shard_rows=8, **given)


def first(folder: Path, words: str, *, k: int = 1) -> list[str]:
    """Names of the first pictures for some words."""
    found = retrieve(open_gallery(folder / "index"), colour_model()[0], captions=[words], k=k)
    return [Path(record["path"]).name for record in found]


def test_words_find_the_picture_that_they_describe(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 30)
    write_colour(tmp_path / "photos" / "deep" / "er" / "rose.png", (250, 2, 2))

    made = update(tmp_path)

    assert (made.n_pictures, made.n_new, made.n_gone, made.bad) == (31, 31, 0, [])
    assert first(tmp_path, "red") == ["rose.png"]


def test_a_picture_finds_itself_first(tmp_path: Path) -> None:
    paths = write_colours(tmp_path / "photos", 30)
    update(tmp_path)

    found = list(retrieve(open_gallery(tmp_path / "index"), colour_model()[0], pictures=[paths[7]], k=3))

    assert found[0]["path"] == str(paths[7])
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-3)  # stored as float16
    assert [record["position"] for record in found] == [1, 2, 3]


@pytest.mark.parametrize("config", [IndexConfig(), GRAPH])
def test_again_embeds_only_what_is_new_or_changed_and_forgets_what_is_gone(tmp_path: Path, config: IndexConfig) -> None:
    paths = write_colours(tmp_path / "photos", 30)
    rose = write_colour(tmp_path / "photos" / "rose.png", (250, 2, 2))
    update(tmp_path, config=config)
    write_colour(paths[0], (2, 2, 251))
    write_colour(tmp_path / "photos" / "leaf.png", (2, 250, 2))
    rose.unlink()
    model, fake = colour_model()

    made = update(tmp_path, model=model, config=config)

    assert fake.seen == 2
    assert (made.n_pictures, made.n_new, made.n_gone) == (31, 2, 2)  # the rose, and the picture as it was
    assert first(tmp_path, "green") == ["leaf.png"]
    assert first(tmp_path, "blue") == [paths[0].name]
    assert "rose.png" not in first(tmp_path, "red", k=40)
    assert len(first(tmp_path, "red", k=40)) == 31


def test_codes_are_put_in_order_by_the_rows_themselves(tmp_path: Path) -> None:
    paths = write_colours(tmp_path / "photos", 320)
    config = IndexConfig(flat_values=0, graph_values=0, code_dims=1)
    update(tmp_path, config=config)
    for path in paths[:5]:
        path.unlink()

    made = update(tmp_path, config=config)
    found = list(retrieve(open_gallery(tmp_path / "index"), colour_model()[0], pictures=[paths[99]], k=4))

    assert made.manifest["kind"] == "ivf-pq"
    assert found[0]["path"] == str(paths[99])
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert sorted(record["similarity"] for record in found) == [record["similarity"] for record in found][::-1]


def test_when_nothing_has_changed_nothing_is_written(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 10)
    update(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("[lmo]*")}

    made = update(tmp_path)

    assert (made.n_new, made.n_gone) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("[lmo]*")} == before


def test_a_run_that_is_killed_goes_on_from_the_last_whole_shard(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 30)
    with pytest.raises(KeyboardInterrupt):
        update(tmp_path, model=colour_model(stop_after=20)[0])
    with pytest.raises(ValueError, match="was never finished; the same `hyperalign index` goes on"):
        open_gallery(tmp_path / "index")
    model, fake = colour_model()

    made = update(tmp_path, model=model)

    assert fake.seen == 30 - 16
    assert made.n_pictures == 30


def test_an_update_that_is_killed_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 20)
    update(tmp_path)
    write_colours(tmp_path / "photos" / "more", 20, seed=1)

    with pytest.raises(KeyboardInterrupt):
        update(tmp_path, model=colour_model(stop_after=10)[0])

    assert len(first(tmp_path, "red", k=100)) == 20


def test_a_broken_picture_is_named_and_not_tried_again(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 10)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    update(tmp_path)
    model, fake = colour_model()

    made = update(tmp_path, model=model)

    assert fake.seen == 0
    assert [Path(name).name for name, _ in made.bad] == ["broken.jpg"]
    assert "not a picture" in made.bad[0][1]
    assert "broken.jpg" not in first(tmp_path, "red", k=100)


def test_strict_stops_at_a_broken_picture(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 3)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")

    with pytest.raises(ValueError, match=r"--strict every picture must be readable, and .*broken\.jpg is not"):
        update(tmp_path, strict=True)


def test_pictures_are_found_inside_tars(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 5)
    rose = write_colour(tmp_path / "rose.png", (250, 2, 2))
    with tarfile.open(tmp_path / "photos" / "shard-0.tar", "w") as tar:
        tar.add(rose, "a/rose.png")
    update(tmp_path)

    found = list(retrieve(open_gallery(tmp_path / "index"), colour_model()[0], captions=["red"], k=1))

    assert found[0]["path"].endswith("photos/shard-0.tar")
    assert found[0]["member"] == "a/rose.png"


def test_an_index_that_is_moved_works_and_so_does_one_that_is_moved_with_its_pictures(tmp_path: Path) -> None:
    write_colour(tmp_path / "a" / "photos" / "rose.png", (250, 2, 2))
    write_colours(tmp_path / "a" / "photos", 5)
    update(tmp_path / "a")
    (tmp_path / "a" / "index").rename(tmp_path / "elsewhere")
    model = colour_model()[0]

    alone = next(retrieve(open_gallery(tmp_path / "elsewhere"), model, captions=["red"]))
    (tmp_path / "elsewhere").rename(tmp_path / "a" / "index")
    (tmp_path / "a").rename(tmp_path / "b")
    both = next(retrieve(open_gallery(tmp_path / "b" / "index"), model, captions=["red"]))

    assert alone["path"] == str(tmp_path / "a" / "photos" / "rose.png")
    assert both["path"] == str(tmp_path / "b" / "photos" / "rose.png")


def test_pictures_that_were_moved_are_not_embedded_again(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 10)
    update(tmp_path)
    (tmp_path / "photos").rename(tmp_path / "pictures")
    model, fake = colour_model()

    made = update(tmp_path, photos=[tmp_path / "pictures"], model=model)

    assert (fake.seen, made.n_pictures, made.n_gone) == (0, 10, 0)
    found = list(retrieve(open_gallery(tmp_path / "index"), model, captions=["red"]))
    assert all(Path(record["path"]).is_file() for record in found)


def test_another_folder_can_join_but_none_that_is_there_may_be_left_out(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 10)
    write_colours(tmp_path / "more", 10, seed=1)
    update(tmp_path)

    made = update(tmp_path, photos=[tmp_path / "photos", tmp_path / "more"])

    assert (made.n_pictures, made.n_new) == (20, 10)
    with pytest.raises(ValueError, match=r"is of .*photos too; name it as well, or choose another --to"):
        update(tmp_path, photos=[tmp_path / "more"])


def test_a_damaged_shard_is_embedded_again(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 20)
    update(tmp_path)
    shard = tmp_path / "index" / "rows" / "part-00001.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    model, fake = colour_model()

    made = update(tmp_path, model=model)

    assert (fake.seen, made.n_pictures) == (8, 20)
    assert len(first(tmp_path, "red", k=100)) == 20


def test_when_a_quarter_is_gone_the_stock_is_written_anew(tmp_path: Path) -> None:
    paths = write_colours(tmp_path / "photos", 30)
    update(tmp_path)
    for path in paths[:10]:
        path.unlink()
    model, fake = colour_model()

    made = update(tmp_path, model=model)

    stock = read_stock(tmp_path / "index" / "rows")
    assert (fake.seen, made.n_pictures, made.n_gone, len(stock.places)) == (0, 20, 10, 20)
    assert sorted(first(tmp_path, "red", k=100)) == sorted(path.name for path in paths[10:])


def test_what_a_search_finds_is_measured_for_both_kinds_of_query_and_recorded(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 60)

    made = update(tmp_path, config=GRAPH)

    quality = json.loads((tmp_path / "index" / "manifest.json").read_text())["quality"]
    assert quality == made.manifest["quality"]
    assert set(quality["recall"]) == {"pictures", "captions"}
    assert min(quality["recall"].values()) >= 0.95
    assert quality["n_queries"]["pictures"] == 15


def test_another_model_is_refused_whatever_it_is_called(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 5)
    update(tmp_path)
    other = colour_model(sign=-1.0)[0]

    with pytest.raises(ValueError, match=r"was made with eye\+words and knows no other model's rows, this is another"):
        list(retrieve(open_gallery(tmp_path / "index"), other, captions=["red"]))
    with pytest.raises(ValueError, match="knows no other model's rows"):
        update(tmp_path, model=other)


def test_the_same_model_under_another_name_is_not(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 5)
    update(tmp_path)

    found = list(retrieve(open_gallery(tmp_path / "index"), colour_model(name="winner")[0], captions=["red"]))

    assert len(found) == 5


def test_words_that_the_model_does_not_know_find_nothing(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 5)
    update(tmp_path)

    found = list(retrieve(open_gallery(tmp_path / "index"), colour_model()[0], captions=["zygote", "red"], k=1))

    assert [record["query"] for record in found] == ["red"]


def test_a_folder_that_is_something_else_is_not_written_into(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 3)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.txt").write_text("work of years")

    with pytest.raises(ValueError, match="is there and is no index; choose another folder with --to"):
        update(tmp_path)

    assert [path.name for path in (tmp_path / "index").iterdir()] == ["thesis.txt"]


def test_an_index_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 3)
    update(tmp_path)
    about = read_record(tmp_path / "index" / ABOUT)
    assert about is not None
    write_record(tmp_path / "index" / ABOUT, {**about, "version": 99})

    with pytest.raises(ValueError, match=r"written by a newer release .*upgrade hyperalign"):
        open_gallery(tmp_path / "index")
    with pytest.raises(ValueError, match="written by a newer release"):
        update(tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"), [("nowhere", "there is no such folder"), ("photos", "it has no index.json")]
)
def test_a_folder_that_is_no_index_cannot_be_searched(tmp_path: Path, name: str, sentence: str) -> None:
    write_colours(tmp_path / "photos", 1)

    with pytest.raises(FileNotFoundError, match=f"is no index of pictures: {sentence}; `hyperalign index` makes one"):
        open_gallery(tmp_path / name)


def test_an_index_of_broken_pictures_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")

    with pytest.raises(ValueError, match=r"none of the 1 pictures can be decoded, the first because .*not a picture"):
        update(tmp_path)


def test_two_processes_do_not_write_one_index(tmp_path: Path) -> None:
    from hyperalign.embed.locks import owned_now

    write_colours(tmp_path / "photos", 3)
    update(tmp_path)

    with owned_now(tmp_path / "index", "index"), pytest.raises(ValueError, match="another process is writing"):
        update(tmp_path)


def test_an_index_that_cannot_be_written_is_named_with_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    write_colours(tmp_path / "photos", 3)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "mkdir", refuse)
        with pytest.raises(OSError, match=r"could not make \S+/index: Read-only file system; .* with --to$"):
            update(tmp_path)
    update(tmp_path)
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)

    with pytest.raises(OSError, match=r"could not write into \S+/index: Read-only file system; .* with --to$"):
        update(tmp_path)


def test_rows_are_kept_as_float16(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 3)
    update(tmp_path)

    stock = read_stock(tmp_path / "index" / "rows")

    assert stock.rows is not None
    assert stock.rows.dtype == np.float16


def test_a_handful_of_pictures_is_measured_although_no_caption_means_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_colours(tmp_path / "photos", 3)
    monkeypatch.setattr("hyperalign.use.update._captions", lambda model: np.empty((0, 3), np.float32))

    made = update(tmp_path)

    assert made.manifest["quality"]["n_queries"] == {"pictures": 3}


def test_a_picture_that_comes_back_is_found_again_and_not_embedded(tmp_path: Path) -> None:
    paths = write_colours(tmp_path / "photos", 20)
    update(tmp_path)
    paths[4].rename(tmp_path / "aside.png")
    update(tmp_path)
    (tmp_path / "aside.png").rename(paths[4])
    model, fake = colour_model()

    made = update(tmp_path, model=model)

    assert (fake.seen, made.n_pictures) == (0, 20)
    assert paths[4].name in first(tmp_path, "red", k=100)
