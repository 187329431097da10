"""Pictures embedded by processes of their own: the same rows, the same words on what went wrong."""

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from test_streams import N_EACH, N_SHARDS, shards

from hyperalign.embed import encoders, feed, spread
from hyperalign.embed.data import open_dataset
from hyperalign.embed.encoders import Encoder, embed_pictures
from hyperalign.embed.networks import PictureInput, picture_transform
from hyperalign.embed.pictures import StoredPictures, whole_files
from hyperalign.embed.spread import SHARE, can_spread, worthwhile_processes
from hyperalign.embed.zoo import EncoderSpec, Facts
from hyperalign.machine import n_cores
from hyperalign.prepare import _Lazy, _Tally

__all__ = ["shards"]  # a fixture

PICTURE = PictureInput(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear", crop_pct=1.0)


class Told(torch.nn.Module):
    """A network whose rows tell what it saw: brightness, process, threads."""

    def __init__(self, most: int = 10**6) -> None:
        """Hold so many pictures at a time."""
        super().__init__()
        self.most = most

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """One row a picture."""
        if len(pictures) > self.most:
            raise MemoryError
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


def test_rows_are_those_of_one_process_and_others_embed_them(files: StoredPictures) -> None:
    told: list[int] = []
    alone, bad = embed(files, Told(), 0)

    rows, bad_too = embed(files, Told(), 2, tell=told.append)

    np.testing.assert_array_equal(rows[:, 0], alone[:, 0])
    np.testing.assert_allclose(rows[:2, 0], [1, 2], atol=1e-3)
    assert np.isnan(rows[2]).all()
    assert bad == bad_too == [(3, "ValueError: its 4 bytes are not a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF)")]
    assert told == [16, 32, 39]
    assert set(rows[:2, 1]) == {os.getpid() % 10**6}, "the first share, to see how long one takes"
    assert os.getpid() % 10**6 not in rows[SHARE:, 1]


@pytest.mark.parametrize("n_threads", [None, 2])
def test_a_process_has_one_thread(files: StoredPictures, n_threads: int | None) -> None:
    """More of them would wait for threads that a fork does not take along."""
    rows, _ = embed(files, Told(), 2, n_threads=n_threads)

    assert set(rows[np.isfinite(rows[:, 2]), 2]) == {1}


class Pooled(Told):
    """A network that computes by threads of its own, which a fork leaves behind."""

    def __init__(self) -> None:
        """Start them."""
        super().__init__()
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(int).result()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """One row a picture, by one of the threads."""
        return self.pool.submit(super().forward, pictures).result()


class Settled(Told):
    """A network that fails in any other process than the one that made it."""

    def __init__(self) -> None:
        """Settle here."""
        super().__init__()
        self.home = os.getpid()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """One row a picture."""
        if os.getpid() != self.home:
            raise RuntimeError("cannot initialise again in a forked process")
        return super().forward(pictures)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("made", [Pooled, Settled])
def test_a_network_that_does_not_compute_in_a_fork_stays_in_this_process(
    files: StoredPictures, shards: Path, made: Callable[[], Told], streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of another library than torch do not outlive a fork: the network would wait for them without end."""
    monkeypatch.setattr(spread, "_PATIENCE", 0.5)
    begun: list[int] = []

    def embed_spread(*given: Any, n_processes: int, **more: Any) -> Any:
        begun.append(n_processes)
        return spread.embed_spread(*given, n_processes=n_processes, **more)

    monkeypatch.setattr(encoders, "embed_spread", embed_spread)
    pictures = open_dataset("memory:///world/{00..02}.tar").splits["train"].pictures if streamed else files
    network, told = made(), list[int]()
    expected, _ = embed_pictures(told_encoder(Told()), pictures, 4, 40, n_workers=0)

    for _ in range(2):
        rows, _ = embed_pictures(told_encoder(network), pictures, 4, 40, n_workers=2, tell=told.append)

        np.testing.assert_array_equal(rows[:, 0], expected[:, 0])
        assert set(rows[:, 1]) == {os.getpid() % 10**6}
    assert begun == [2], "tried once, and remembered"
    assert told == [16, 36, 36]
    ended_soon()


def test_who_watches_is_told_that_other_processes_failed(
    files: StoredPictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "worthwhile_workers", lambda n_pictures, device: 2)
    found: list[tuple[list[str], list[str]]] = []
    for network in (Told(), Settled()):
        encoder = told_encoder(network)
        lazy = _Lazy(encoder.spec, tmp_path, autocast=False, jobs=[])
        lazy.encoder = encoder
        progress = Mock()
        tally = _Tally(progress, 40)

        lazy._embed(files, 0, 35, tally)
        lazy._embed(files, 35, 40, tally)
        tally.stored("told, by another process", 5, 5)
        found.append(([call.args[0] for call in progress.call_args_list], lazy.notes))

    (helped, nothing), (alone, notes) = found
    assert set(helped) == {"embedding by told", "embedding by told (another process)"}
    assert nothing == []
    assert alone[0] == "embedding by told"  # the first share, before others are asked
    assert alone[-1] == "embedding by told, in one process since others failed (another process)"
    assert notes == ["told embeds in one process: others that were to help failed or gave no answer"]


def test_a_process_embeds_fewer_at_a_time_where_memory_is_short(files: StoredPictures) -> None:
    shrunk: list[int] = []

    rows, _ = embed(files, Told(most=5), 1, shrunk=shrunk.append)

    np.testing.assert_allclose(rows[3:, 0], range(4, 40), atol=1e-3)
    assert shrunk == [4]


def test_no_room_for_one_picture_is_one_sentence(files: StoredPictures) -> None:
    with pytest.raises(MemoryError, match=r"^encoder 'told' needs more memory than there is, with one item at a time"):
        embed(files, Told(most=0))


class Raising(Told):
    """A network that fails at the twentieth picture."""

    def __init__(self, fail: Callable[[], Any]) -> None:
        """Fail so."""
        super().__init__()
        self.fail = fail

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """One row a picture."""
        rows = super().forward(pictures)
        if 20 in rows[:, 0].round():
            self.fail()
        return rows


def raise_value() -> None:
    raise ValueError("shapes do not fit")


def raise_exit() -> None:
    sys.exit(3)


def raise_one_within() -> None:
    class WithinError(Exception):
        """No other process can be told of it."""

    raise WithinError("shapes do not fit")


def abort() -> None:
    os.abort()


def leave() -> None:
    os._exit(7)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_killed_is_a_want_of_memory(files: StoredPictures) -> None:
    with pytest.raises(MemoryError, match=r"^a process that embedded pictures was killed, most likely for want of mem"):
        embed_pictures(told_encoder(Raising(kill)), files, 0, 40, n_workers=2)


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        (raise_value, "ValueError: shapes do not fit"),
        (raise_one_within, "WithinError: shapes do not fit"),
        (raise_exit, "SystemExit: 3"),
        (abort, "RuntimeError: a process that embedded pictures ended by itself: Aborted"),
        (leave, "RuntimeError: a process that embedded pictures ended by itself: status 7"),
    ],
)
def test_another_error_comes_with_its_words_and_leaves_no_process(
    files: StoredPictures, fail: Callable[[], Any], expected: str
) -> None:
    with pytest.raises((Exception, SystemExit)) as found:
        embed_pictures(told_encoder(Raising(fail)), files, 0, 40, n_workers=2)

    assert f"{type(found.value).__name__}: {found.value}" == expected
    ended_soon()


def ended_soon() -> None:
    """No child lives, though a traceback may hold what began it."""
    end = time.monotonic() + 5
    while active_children() and time.monotonic() < end:
        time.sleep(0.05)
    assert active_children() == []


@pytest.mark.parametrize("streamed", [False, True])
def test_who_stops_waits_for_nothing_and_leaves_no_process(files: StoredPictures, shards: Path, streamed: bool) -> None:
    pictures = open_dataset("memory:///world/{00..02}.tar").splits["train"].pictures if streamed else files
    seen: list[int] = []

    def stop(done: int) -> None:
        seen.append(len(active_children()))
        if done > SHARE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as held:
        embed_pictures(told_encoder(Told()), pictures, 0, 40, n_workers=64, tell=stop)

    assert held.value.__traceback__ is not None
    assert seen[0] == 0
    assert 1 <= seen[1] <= 2, "no more processes than shares"
    ended_soon()


@pytest.mark.parametrize("error", [OSError(12, "Cannot allocate memory"), KeyboardInterrupt()])
def test_a_fork_that_fails_leaves_no_process(
    files: StoredPictures, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were started would wait for work, and the program for them when it ends."""
    fork, begun = os.fork, list[int]()

    def fail() -> int:
        begun.append(len(active_children()))
        if len(begun) == 2:
            raise error
        return fork()

    monkeypatch.setattr(os, "fork", fail)
    if isinstance(error, OSError):
        rows, _ = embed(files, Told(), 2)
        assert set(rows[np.isfinite(rows[:, 1]), 1]) == {os.getpid() % 10**6}
    else:
        with pytest.raises(KeyboardInterrupt):
            embed(files, Told(), 2)

    assert begun[:2] == [0, 1]  # others decode afterwards
    ended_soon()


def test_a_thread_beside_the_main_one_forks_nothing(files: StoredPictures) -> None:
    """Another thread may compute meanwhile, and what it holds would stay locked."""
    with ThreadPoolExecutor(1) as pool:
        rows, _ = pool.submit(embed, files, Told(), 2).result()

    assert set(rows[np.isfinite(rows[:, 1]), 1]) == {os.getpid() % 10**6}


def test_pictures_of_a_stream_are_read_here_and_embedded_there(shards: Path) -> None:
    pictures = open_dataset("memory:///world/{00..02}.tar").splits["train"].pictures
    n = len(pictures)
    assert SHARE < n <= N_SHARDS * N_EACH

    made = [embed_pictures(told_encoder(Told()), pictures, 3, n, n_workers=k)[0] for k in (0, 2)]

    np.testing.assert_array_equal(made[0][:, 0], made[1][:, 0])
    assert set(made[1][:, 2]) == {1}
    assert os.getpid() % 10**6 not in set(made[1][SHARE:, 1])
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
        assert can_spread(pictures, device=device) is expected


@pytest.mark.parametrize(
    ("n_workers", "n_threads", "expected"), [(0, 8, 0), (1, 1, 2), (1, 2, 2), (8, 64, 64), (8, 4, 12)]
)
def test_as_many_cores_are_busy_as_before(
    n_workers: int, n_threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "n_own_cores", lambda: 64 if n_workers == 8 else 2)

    assert worthwhile_processes(n_workers, n_threads) == expected


@pytest.mark.parametrize(("beside", "expected"), [("", 6), ("1", 6), ("4", 1), ("2", 3), ("16", 1), ("0", 6), ("x", 6)])
def test_processes_that_were_launched_together_share_the_cores(
    beside: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "cpu_count", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)

    assert feed.n_own_cores() == expected


def test_a_core_that_is_not_allowed_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # as a container's quota would

    assert feed.n_own_cores() == n_cores() == 1


def test_a_process_that_may_start_no_others_decodes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "n_own_cores", lambda: 6)
    assert feed.worthwhile_workers(1000, device="cpu") == 3

    monkeypatch.setattr(feed, "current_process", lambda: SimpleNamespace(daemon=True))
    assert feed.worthwhile_workers(1000, device="cpu") == 0
