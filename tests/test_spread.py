"""Pictures embedded by processes of their own: the same rows, the same words on what went wrong."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_streams import N_EACH, N_SHARDS, shards

from hyperalign.embed import feed, spread
from hyperalign.embed.consent import Written
from hyperalign.embed.data import open_dataset
from hyperalign.embed.encoders import Encoder, embed_pictures
from hyperalign.embed.networks import PictureInput, picture_transform
from hyperalign.embed.pictures import StoredPictures, whole_files
from hyperalign.embed.spread import SHARE, can_spread, worthwhile_processes
from hyperalign.embed.zoo import EncoderSpec, Facts

__all__ = ["shards"]  # a fixture

PICTURE = PictureInput(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear", crop_pct=1.0)


class Told(torch.nn.Module):
    """A network whose rows tell what it saw: brightness, process, threads."""

    def __init__(self, most: int = 10**6, fails: str = "") -> None:
        """Hold so many pictures at a time; fail at the darkest picture by that name."""
        super().__init__()
        self.most, self.fails = most, fails

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """One row a picture."""
        if len(pictures) > self.most:
            raise MemoryError
        if self.fails and float(pictures.mean((1, 2, 3)).min()) == 0:
            if self.fails == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError(self.fails)
        facts = torch.tensor([os.getpid() % 10**6, torch.get_num_threads()]).expand(len(pictures), 2)
        return torch.cat([255 * pictures.mean((1, 2, 3))[:, None], facts], 1)


def told_encoder(network: torch.nn.Module, n_threads: int | None = None) -> Encoder:
    return Encoder(
        spec=EncoderSpec(name="told", modality="image", loader="timm", architecture="made-up"),
        facts=Facts(3, 0, None),
        network=network,
        picture=PICTURE,
        transform=picture_transform(PICTURE),
        device=torch.device("cpu"),
        n_threads=n_threads,
        autocast=False,
    )


@pytest.fixture
def files(tmp_path: Path) -> StoredPictures:
    """Forty pictures, each a little brighter than the last, the fourth torn."""
    names = []
    for number in range(40):
        names.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(names[-1])
    Path(names[3]).write_bytes(b"torn")
    return whole_files(names)


def embed(files: Any, network: torch.nn.Module, n: int = 2, **more: Any) -> tuple[Any, list[tuple[int, str]]]:
    return embed_pictures(told_encoder(network, more.pop("n_threads", None)), files, 1, 40, n_workers=n, **more)


def test_rows_are_those_of_one_process_and_every_process_takes_a_share(files: StoredPictures) -> None:
    told: list[int] = []
    alone, bad = embed(files, Told(), 0)

    rows, bad_too = embed(files, Told(), 2, tell=told.append)

    np.testing.assert_array_equal(rows[:, 0], alone[:, 0])
    np.testing.assert_allclose(rows[:2, 0], [1, 2], atol=1e-3)
    assert np.isnan(rows[2]).all()
    assert bad == bad_too == [(3, "ValueError: its 4 bytes are not a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF)")]
    assert told == [16, 32, 39]
    own = set(rows[np.isfinite(rows[:, 1]), 1])
    assert len(own) == 2
    assert os.getpid() % 10**6 not in own


@pytest.mark.parametrize("n_threads", [None, 2])
def test_a_process_has_one_thread(files: StoredPictures, n_threads: int | None) -> None:
    """More of them would wait for threads that a fork does not take along."""
    rows, _ = embed(files, Told(), 2, n_threads=n_threads)

    assert set(rows[np.isfinite(rows[:, 2]), 2]) == {1}


@pytest.mark.parametrize("foreign", [False, True])
def test_a_network_that_may_compute_by_another_library_stays_in_this_process(
    files: StoredPictures, tmp_path: Path, foreign: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of that library do not outlive a fork."""
    for name in spread._RUNTIMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    if foreign:
        monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    (tmp_path / "factory.py").write_text("")
    own: dict[str, Any] = {"factory": Written("factory.py:told"), "input_size": 8, "mean": (0, 0, 0), "std": (1, 1, 1)}
    spec = EncoderSpec(name="own", modality="image", loader="python", folder=tmp_path, **own)

    rows, _ = embed_pictures(replace(told_encoder(Told()), spec=spec), files, 4, 40, n_workers=2)

    assert (os.getpid() % 10**6 in rows[:, 1]) == foreign
    assert os.getpid() % 10**6 not in embed(files, Told(), 2)[0][:, 1], "a network of timm computes by torch"


def test_a_process_embeds_fewer_at_a_time_where_memory_is_short(files: StoredPictures) -> None:
    shrunk: list[int] = []

    rows, _ = embed(files, Told(most=5), 1, shrunk=shrunk.append)

    np.testing.assert_allclose(rows[3:, 0], range(4, 40), atol=1e-3)
    assert shrunk == [4]


def test_no_room_for_one_picture_is_one_sentence(files: StoredPictures) -> None:
    with pytest.raises(MemoryError, match=r"^encoder 'told' needs more memory than there is, with one item at a time"):
        embed(files, Told(most=0))


def test_a_process_that_was_killed_is_a_want_of_memory(files: StoredPictures) -> None:
    with pytest.raises(MemoryError, match=r"^a process that embedded pictures was killed, most likely for want of mem"):
        embed_pictures(told_encoder(Told(fails="killed")), files, 0, 40, n_workers=2)


def test_another_error_of_a_network_comes_with_its_words(files: StoredPictures) -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        embed_pictures(told_encoder(Told(fails="shapes do not fit")), files, 0, 40, n_workers=2)


def test_pictures_of_a_stream_are_read_here_and_embedded_there(shards: Path) -> None:
    pictures = open_dataset("memory:///world/{00..02}.tar").splits["train"].pictures
    n = len(pictures)
    assert SHARE < n <= N_SHARDS * N_EACH

    made = [embed_pictures(told_encoder(Told()), pictures, 3, n, n_workers=k)[0] for k in (0, 2)]

    np.testing.assert_array_equal(made[0][:, 0], made[1][:, 0])
    assert set(made[1][:, 2]) == {1}
    assert os.getpid() % 10**6 not in set(made[1][:, 1])
    with pytest.raises(MemoryError, match="with one item at a time"):
        embed_pictures(told_encoder(Told(most=0)), pictures, 3, n, n_workers=2)


def test_processes_embed_where_they_are_forked_on_a_cpu(files: StoredPictures, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rendered:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Image.Image:
            raise NotImplementedError

        def block(self, start: int, stop: int) -> Any:
            raise NotImplementedError

    for method, pictures, device, expected in (
        ("fork", files, "cpu", True),
        ("fork", files, "cuda", False),
        ("fork", Rendered(), "cpu", False),
        ("spawn", files, "cpu", False),
    ):
        monkeypatch.setattr(spread, "get_start_method", lambda allow_none, method=method: method)
        assert can_spread(pictures, device=device, own_code=False) is expected


@pytest.mark.parametrize(
    ("n_workers", "n_threads", "expected"), [(0, 8, 0), (1, 1, 2), (1, 2, 2), (8, 64, 64), (8, 4, 12)]
)
def test_as_many_cores_are_busy_as_before(
    n_workers: int, n_threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "n_cores", lambda: 64 if n_workers == 8 else 2)

    assert worthwhile_processes(n_workers, n_threads) == expected


@pytest.mark.parametrize(("beside", "expected"), [("", 6), ("1", 6), ("4", 1), ("2", 3), ("16", 1), ("0", 6), ("x", 6)])
def test_processes_that_were_launched_together_share_the_cores(
    beside: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "cpu_count", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)

    assert feed.n_cores() == expected


def test_a_core_that_is_not_allowed_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # as a container's quota would

    assert feed.n_cores() == 1
