"""What the harmful tests share: a world whose encoders embed, children that can be killed, and what is left looked at.

Children are forked from this process, which has imported everything: a kill then hits the work and not an import.
"""

import hashlib
import importlib
import json
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file
from small_zoo import write_world

from hyperalign.embed.shards import Part, damage, read_record
from hyperalign.run import load_run, read_result

SHARD = 16  # rows, so that the small world has many shards
WARM = (
    *("accelerate", "faiss", "optuna.storages", "pandas", "sentence_transformers", "sqlalchemy", "timm"),
    *("hyperalign.cli", "hyperalign.pipeline", "hyperalign.study.conduct", "hyperalign.use.export"),
    *("hyperalign.embed.encoders", "hyperalign.show.page", "hyperalign.show.table", "hyperalign.show.studied"),
)

_NETS = """\
import torch
from torch import nn


def _net(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(32, width))


def near():
    return _net(12, 1)


def far():
    return _net(20, 2)
"""
_ZOO = """\
[[encoder]]
name = "near"
modality = "image"
loader = "python"
factory = "nets.py:near"
input_size = 8
mean = [0, 0, 0]
std = [1, 1, 1]

[[encoder]]
name = "far"
modality = "image"
loader = "python"
factory = "nets.py:far"
input_size = 8
mean = [0, 0, 0]
std = [1, 1, 1]

[[encoder]]
name = "words"
modality = "text"
loader = "sentence-transformers"
checkpoint = "words"

[[encoder]]
name = "phrases"
modality = "text"
loader = "sentence-transformers"
checkpoint = "phrases"
"""


def warm() -> None:
    """Import what the commands import when they begin."""
    for name in WARM:
        importlib.import_module(name)


def write_embedding_world(folder: Path) -> Path:
    """The small world with a second zoo, `nets.toml`, of encoders that embed."""
    write_world(folder)
    (folder / "nets.py").write_text(_NETS)
    (folder / "nets.toml").write_text(_ZOO)
    captions = [line.split(",", 1)[1] for line in (folder / "pairs.csv").read_text().splitlines()[1:]]
    vocabulary = sorted({word for caption in captions for word in re.findall(r"\w+", caption)})
    for name, width, seed in (("words", 10, 3), ("phrases", 16, 4)):
        table = np.random.default_rng(seed).standard_normal((len(vocabulary) + 1, width)).astype(np.float32)
        write_static(folder / name, vocabulary, table)
    return folder


def asked(world: Path, zoo: str) -> list[str | Path]:
    """The options that name a zoo of the world, `nets` or `zoo`, and its pairs."""
    return ["--zoo", world / f"{zoo}.toml", "--data", world / "pairs.csv"]


def write_static(folder: Path, vocabulary: Sequence[str], table: np.ndarray[Any, Any]) -> None:
    """A sentence-transformer that averages one row per word; the last row is that of unknown words."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    numbers = {word: number for number, word in enumerate([*vocabulary, "[UNK]"])}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, table)], device="cpu").save(
        str(folder), create_model_card=False
    )


class Child(NamedTuple):
    """A process that runs one command, and the file of what it says."""

    pid: int
    said: Path

    def wait(self, seconds: float = 120) -> int:
        """Its status, negative where a signal has ended it.

        Raises:
            TimeoutError: If it is not done in time; it is killed.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise TimeoutError(f"not done after {seconds} s: {self.said.read_text()[-2000:]}")

    def kill_after(self, seconds: float) -> bool:
        """Let it work for a while and kill it; whether it was still at work."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return False
            time.sleep(min(0.002, max(0.0, end - time.monotonic())))
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == -signal.SIGKILL


def fork(does: Callable[[], object], said: Path) -> Child:
    """A child that does something and ends; its words go to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Child(pid, said)
    status = 70
    try:
        mouth = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(mouth, descriptor)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        does()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command(words: Sequence[str | Path], *, counts: Path | None = None) -> Callable[[], None]:
    """A command of the command line, in shards of `SHARD` rows; `counts` gets a line for each call of an encoder."""

    def run() -> None:
        from hyperalign import prepare
        from hyperalign.cli import main
        from hyperalign.embed import cache

        prepare.fill = partial(cache.fill, shard_rows=SHARD)  # type: ignore[attr-defined]
        if counts is not None:
            _count(prepare, counts)
        main([str(word) for word in words])

    return run


def _count(prepare: Any, counts: Path) -> None:
    """Note every embedding before it is computed, in one write of one line."""
    inner = prepare._Lazy._embed

    def noting(self: Any, items: Any, start: int, stop: int, tally: Any) -> Any:
        line = json.dumps([self.spec.name, len(items), start, stop]) + "\n"
        file = os.open(counts, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, line.encode())
        os.close(file)
        return inner(self, items, start, stop, tally)

    prepare._Lazy._embed = noting


def read_counts(counts: Path) -> list[tuple[str, int, int, int]]:
    """Encoder, rows in all, first and last of what was embedded, call by call."""
    return [tuple(json.loads(line)) for line in counts.read_text().splitlines()] if counts.exists() else []


def moments(n: int, seconds: float, seed: int) -> Iterator[float]:
    """`n` moments drawn uniformly over the length of an undisturbed run."""
    rng = random.Random(seed)
    return (rng.uniform(0, seconds) for _ in range(n))


class Fingerprint(NamedTuple):
    """What tells whether a shard was written again, and its rows."""

    n_rows: int
    inode: int
    changed: int
    digest: str


def finished_shards(cache: Path) -> dict[str, Fingerprint]:
    """The whole shards of a cache, by their path below it."""
    found = {}
    for record in cache.glob("*--*--*/part-*.json"):
        facts = read_record(record)
        if facts is not None and damage(record.parent, Part.from_record(facts)) is None:
            path, n_rows = record.with_suffix(".npy"), facts["stop"] - facts["start"]
            fact = path.stat()
            found[str(path.relative_to(cache))] = Fingerprint(n_rows, fact.st_ino, fact.st_mtime_ns, digest_of(path))
    return found


def digest_of(path: Path) -> str:
    """Of the bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unsound_in_cache(cache: Path, whole: Path) -> list[str]:
    """Files of a cache that look whole and are not those of an undisturbed one; drafts and samples aside."""
    faults = []
    for path in cache.glob("*--*--*/*"):
        if path.suffix == ".tmp":
            continue
        twin = whole / path.relative_to(cache)
        if path.suffix == ".json" and read_record(path) is None:
            faults.append(f"{path} is no record")
        if not twin.is_file() or (path.name != "manifest.json" and path.read_bytes() != twin.read_bytes()):
            faults.append(f"{path} is not what an undisturbed run writes")
        if path.name == "manifest.json" and read_record(path) != read_record(twin):
            faults.append(f"{path} is another manifest")
    faults += [f"{path} is no record" for path in cache.glob(".data/*.json") if read_record(path) is None]
    return faults


def unsound_in_runs(out: Path) -> list[str]:
    """Files of the runs of a folder that look whole and cannot be read; hidden ones are drafts and do not look so."""
    faults = []
    for path in sorted(out.rglob("*")):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        if path.name.endswith((".db-journal", ".journal", ".jsonl", ".db")):
            continue  # of SQLite, and files that grow line by line
        if (problem := _problem(path)) is not None:
            faults.append(f"{path}: {problem}")
    for result in out.glob("*/result.json"):
        if read_result(result.parent)["status"] == "finished":
            load_run(result.parent)
    return faults


def _problem(path: Path) -> str | None:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".csv" and not path.read_text().endswith("\n"):
            return "cut off"
        elif path.suffix == ".html" and not path.read_text().rstrip().endswith("</html>"):
            return "cut off"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def events(run: Path, name: str) -> list[Mapping[str, Any]]:
    """The events of one kind in a run's log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if line.endswith("}")]
    return [line for line in lines if line["event"] == name]
