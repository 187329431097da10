"""Shards that are read as they come: from a command or a store, each once and in order, and never from a record."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from launched import write_mosaics
from PIL import Image

from hyperalign.candidates import Candidates
from hyperalign.cli import main
from hyperalign.embed import streams
from hyperalign.embed.consent import Written
from hyperalign.embed.data import open_dataset
from hyperalign.embed.feed import feed
from hyperalign.embed.networks import PictureInput
from hyperalign.embed.streams import Reading, is_stream, label, streams_of
from hyperalign.embed.tar_streams import in_order, index_stream, is_streamed
from hyperalign.embed.zoo import load_zoos
from hyperalign.prepare import embedding_jobs, fill_cache
from hyperalign.request import SearchConfig, from_record
from hyperalign.study import conduct

N_SHARDS, N_EACH = 3, 30


def silent(stage: str, done: int, total: int) -> None: ...


def picture_bytes(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def shard_bytes(shard: int) -> bytes:
    """A tar of pictures and captions."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for k in range(N_EACH):
            number = shard * N_EACH + k
            for name, data in (
                (f"{number:04}.png", picture_bytes(number)),
                (f"{number:04}.txt", b"caption %d" % number),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of shards, and the same in memory."""
    monkeypatch.setattr(streams, "_PAUSE", 0.0)
    folder, store = tmp_path / "world", fsspec.filesystem("memory")
    folder.mkdir()
    for shard in range(N_SHARDS):
        (folder / f"{shard:02}.tar").write_bytes(shard_bytes(shard))
        store.pipe_file(f"/world/{shard:02}.tar", shard_bytes(shard))
    yield folder
    store.rm("/world", recursive=True)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each stream has been opened."""
    count: Counter[str] = Counter()
    before = streams._open

    def counting(name: str) -> Any:
        count[label(name)] += 1
        return before(name)

    monkeypatch.setattr(streams, "_open", counting)
    return count


def test_braces_stand_for_shards_in_addresses_and_commands() -> None:
    assert streams_of(Written("s3://b/{00..02}.tar")) == ["s3://b/00.tar", "s3://b/01.tar", "s3://b/02.tar"]
    assert streams_of(Written("pipe:cat {a,b}.tar")) == ["pipe:cat a.tar", "pipe:cat b.tar"]
    assert is_stream("memory://x.tar")
    assert not is_stream("pictures/{0..3}.tar")


def test_what_a_stream_is_called_tells_no_secret() -> None:
    assert (
        label("pipe:curl -H 'Authorization: abc' https://me:secret@host/coco/train-000.tar")
        == "host/coco/train-000.tar"
    )
    assert label("s3://bucket/val-1.tar?signature=abc") == "bucket/val-1.tar"


@pytest.mark.parametrize("form", ["memory:///world/{00..02}.tar", "file://{}/{00..02}.tar", "pipe:cat {}/{00..02}.tar"])
def test_streams_are_the_data_set_that_their_files_are(form: str, shards: Path, tmp_path: Path) -> None:
    source = Written(form.replace("{}", str(shards)))

    found, files = open_dataset(source, memory=tmp_path / "memory"), open_dataset(str(shards))

    for name, split in files.splits.items():
        other = found.splits[name]
        assert is_streamed(other.pictures)
        assert (other.image_digest, other.text_digest) == (split.image_digest, split.text_digest)
        assert np.array_equal(np.asarray(other.pictures[0]), np.asarray(split.pictures[0]))


def test_an_index_is_kept_until_the_object_changes(shards: Path, opened: Counter[str], tmp_path: Path) -> None:
    for _ in range(2):
        index_stream("memory:///world/00.tar", memory=tmp_path / "memory")
    assert opened.total() == 1

    fsspec.filesystem("memory").pipe_file("/world/00.tar", shard_bytes(7))

    assert index_stream("memory:///world/00.tar", memory=tmp_path / "memory")[0][1].text == f"caption {7 * N_EACH}"


def test_every_part_is_embedded_while_each_shard_is_read_once_and_in_order(
    shards: Path, opened: Counter[str], tmp_path: Path
) -> None:
    zoo = write_mosaics(tmp_path / "zoo", 10) / "zoo.toml"
    images = tuple(spec for spec in load_zoos([Written(zoo)]) if spec.name == "wide")
    candidates = Candidates(images=images, texts=(), pairs=(), latencies={}, counts=())
    rows = {}
    for source in (str(shards), "memory:///world/{00..02}.tar"):
        dataset = open_dataset(source, memory=tmp_path / "cache")
        jobs = embedding_jobs(candidates, dataset, None, cache_dir=tmp_path / "cache")
        opened.clear()
        entries, *_ = fill_cache(jobs, cache_dir=tmp_path / "cache", progress=silent)
        rows[source] = {part: entries["wide", part][0][:] for part in ("train", "val", "test")}
        (tmp_path / "cache").rename(tmp_path / f"cache-{len(rows)}")

    assert opened == {f"world/{shard:02}.tar": 1 for shard in range(N_SHARDS)}
    files, stream = rows.values()
    assert sum(map(len, stream.values())) == N_SHARDS * N_EACH
    for part, own in files.items():
        np.testing.assert_allclose(stream[part], own, rtol=1e-2, atol=1e-3)


def test_workers_decode_what_one_process_reads(shards: Path) -> None:
    pictures = open_dataset("memory:///world/{00..02}.tar").splits["train"].pictures
    size = PictureInput(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", crop_pct=1.0)

    made = [[*feed(pictures, range(3, 40), _as_bytes, size, batch_size=16, n_workers=workers)] for workers in (0, 2)]

    for one, other in zip(*made, strict=True):
        assert (one.start, one.bad) == (other.start, other.bad)
        assert np.array_equal(one.pictures, other.pictures)
    assert [len(batch.pictures) for batch in made[0]] == [16, 16, 5]


def _as_bytes(picture: Image.Image) -> Any:
    import torch

    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


def test_a_shard_that_breaks_off_is_named_and_what_is_readable_of_it_kept(shards: Path) -> None:
    source = Written(f"pipe:head -c 20000 {shards}/{{00..02}}.tar")

    dataset = open_dataset(source)

    n_pictures = sum(len(split.image_ids) for split in dataset.splits.values())
    assert 0 < n_pictures < N_SHARDS * N_EACH
    assert sum("02.tar breaks off" in note and "are kept" in note for note in dataset.notes) == 1
    with pytest.raises(ValueError, match=r"--strict.*00\.tar breaks off"):
        open_dataset(source, strict=True)


def test_a_fault_of_a_command_is_met_by_trying_again_from_where_it_was(shards: Path, tmp_path: Path) -> None:
    count, tar = tmp_path / "count", shards / "00.tar"
    once = f"echo x >> {count}; if [ $(wc -l < {count}) -lt 3 ]; then head -c 9000 {tar}; exit 7; fi; cat {tar}"

    with Reading(f"pipe:{once}") as reading:
        data = reading.read(1 << 20)

    assert data == tar.read_bytes()
    assert len(count.read_text().splitlines()) == 3


def test_a_command_that_always_fails_is_given_up_with_its_own_words(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"could not be read in 4 tries: its command ended with status 1 \(cat: .*none"):
        open_dataset(Written(f"pipe:cat {tmp_path}/none.tar | cat"))


def test_a_store_that_fails_in_the_middle_is_asked_again(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, before = [True, True], streams._open

    class Shaky(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if faults and self.tell() > 5000:
                faults.pop()
                raise ConnectionError("reset by peer")
            return super().read(size)

    def shaky(name: str) -> Any:
        return Shaky(before(name).read(-1))

    monkeypatch.setattr(streams, "_open", shaky)
    with Reading("memory:///world/01.tar") as reading:
        data = b"".join(iter(lambda: reading.read(1000), b""))

    assert data == shard_bytes(1)
    assert not faults


def test_an_address_where_nothing_is_is_one_sentence(shards: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no world/09\.tar"):
        open_dataset("memory:///world/09.tar")


def test_a_shard_that_has_changed_since_it_was_indexed_is_refused(shards: Path) -> None:
    pictures = open_dataset("memory:///world/00.tar").splits["train"].pictures
    fsspec.filesystem("memory").pipe_file("/world/00.tar", shard_bytes(9))

    stream = in_order(pictures, range(0, 2))

    assert stream is not None
    with pytest.raises(ValueError, match=r"world/00\.tar is not what it was"):
        next(stream)


def test_pictures_of_a_stream_come_in_their_own_order_alone(shards: Path) -> None:
    root: Any = open_dataset("memory:///world/{00..02}.tar").splits["train"].pictures

    with pytest.raises(ValueError, match="own order alone; copy the shards to a disk"):
        next(root.pictures.stream([5, 3]))


def test_a_command_that_stands_in_a_record_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    config = from_record({"data": f"pipe:touch {mark}"})

    with pytest.raises(ValueError, match="a command is run only where you write it yourself"):
        open_dataset(config.data)

    assert not mark.exists()
    assert isinstance(SearchConfig(data=Written("pipe:cat x.tar")).data, Written)


def test_a_command_on_windows_is_left_to_its_own_shell_though_there_is_bash(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(streams, "os", SimpleNamespace(name="nt"))
    monkeypatch.setattr("shutil.which", lambda name: "C:/Git/bin/bash.exe")
    monkeypatch.setattr("subprocess.Popen", lambda command, **how: begun.append((command, how)))

    opened: Any = streams._open("pipe:type x.tar")
    opened._said.close()

    ((command, how),) = begun
    assert command == "type x.tar"
    assert how["executable"] is None


def test_a_study_of_a_command_goes_on_where_the_command_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    source = f"pipe:cat {tmp_path}/none.tar"
    record = {"format": 1, "name": "s", "storage": "journal", "configuration": {"data": source}, "asked": {}}
    (tmp_path / "study.json").write_text(json.dumps({**record, "inputs": "i"}))
    (tmp_path / "study.journal").touch()

    def opened(asked: Any, config: SearchConfig, *_: Any) -> None:
        seen.append(config.data)
        raise KeyboardInterrupt

    monkeypatch.setattr(conduct, "_open", opened)
    for more in ([], ["--data", source]):
        with pytest.raises(SystemExit):
            main(["study", "--resume", str(tmp_path), *more])

    assert [isinstance(data, Written) for data in seen] == [False, True]
