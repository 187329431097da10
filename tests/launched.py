"""Launches, forked from a parent that has imported everything: `launched.py 1,2 words …` is one process, then two.

In the words, {n} is the number of processes.

`accelerate launch` takes seconds for each process before anything of ours begins; what these processes see is the
same: RANK, WORLD_SIZE and where to meet. The tests marked `trust` use the real one.
"""

import csv
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TESTS = Path(__file__).parent

_FACTORY = '''
import os, time
import torch
from torch import nn


class Mosaic(nn.Module):
    """A fixed random view of a picture's cells; it notes each batch, and is slow where a test wants to stop it."""

    def __init__(self, width, seed):
        super().__init__()
        self.cells = nn.AdaptiveAvgPool2d(2)
        self.view = nn.Linear(12, width, bias=False)
        with torch.no_grad():
            self.view.weight.copy_(torch.randn(width, 12, generator=torch.Generator().manual_seed(seed)))

    def forward(self, pictures):
        if "EMBEDDED" in os.environ and len(pictures) > 1:
            with open(os.environ["EMBEDDED"], "a") as file:
                file.write(f"{os.environ.get('RANK', '0')} {os.getpid()} {self.view.out_features} {len(pictures)}\\n")
            time.sleep(float(os.environ.get("SLOW", "0")))
        return self.view(self.cells(pictures).flatten(1))


def wide():
    return Mosaic(16, 0)


def narrow():
    return Mosaic(6, 1)


def middle():
    return Mosaic(10, 2)
'''


def write_mosaics(folder: Path, n_pictures: int, *, seed: int = 0) -> Path:
    """Write pictures of a few coloured cells, captions that are rows of the same latent, and a zoo of tiny networks."""
    rng = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True)
    (folder / "rows").mkdir()
    (folder / "mosaic.py").write_text(_FACTORY, encoding="utf-8")
    lines = [("image", "caption", "split")]
    for split, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        latent = rng.random((round(share * n_pictures), 12))
        for number, cells in enumerate(latent):
            path = f"pictures/{split}-{number:05}.png"
            pixels = (255 * cells.reshape(3, 2, 2).transpose(1, 2, 0)).astype(np.uint8)
            Image.fromarray(pixels).resize((8, 8), Image.Resampling.NEAREST).save(folder / path)
            lines.append((path, f"{split} {number}", split))
        for name, width, noise in (("words", 9, 0.05), ("phrases", 14, 0.3)):
            view = np.random.default_rng(width).standard_normal((12, width))
            rows = (latent - 0.5) @ view + noise * rng.standard_normal((len(latent), width))
            np.save(folder / "rows" / f"{name}-{split}.npy", rows.astype(np.float32))
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    tables = [
        f'[[encoder]]\nname = "{name}"\nmodality = "image"\nloader = "python"\nfactory = "mosaic.py:{name}"\n'
        "input_size = 8\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n"
        for name in ("wide", "narrow", "middle")
    ]
    tables += [
        f'[[encoder]]\nname = "{name}"\nmodality = "text"\nloader = "rows"\nn_params = 1000\n'
        f'checkpoint = "rows/{name}-{{split}}.npy"\n'
        for name in ("words", "phrases")
    ]
    (folder / "zoo.toml").write_text("\n".join(tables), encoding="utf-8")
    return folder


def words_of_search(world: Path, cache: Path, out: Path, *more: str) -> list[str]:
    """`search` over what `write_mosaics` has written, with the baseline's grid."""
    words = ["search", "--zoo", str(world / "zoo.toml"), "--data", str(world / "pairs.csv"), "--cache-dir", str(cache)]
    return [*words, "--out", str(out), "--method", "ape,hypernet", "--baseline-seeds", "1", *more]


def launch(sizes: Sequence[int], words: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `hyperalign WORDS` as so many processes, one launch after the other."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent), **environment}
    command = [sys.executable, str(TESTS / "launched.py"), ",".join(map(str, sizes)), *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=240)


def _main(sizes: list[int], words: list[str]) -> int:
    """Import everything once and launch; the first status that is not 0."""
    import accelerate  # noqa: F401 - imported once for all

    for n in sizes:
        print(f"launch of {n}", flush=True)  # noqa: T201
        if status := _fork(n, [word.replace("{n}", str(n)) for word in words]):
            return status
    return 0


def _fork(n: int, words: list[str]) -> int:
    """Fork n processes that run a command together; one that fails ends the others, as a launcher does."""
    from hyperalign.cli import main

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(n):
        if child := os.fork():
            children.append(child)
            continue
        if n > 1:
            os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            main(words)
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(end.code or 0))
        os._exit(0)
    status = 0
    while children:
        child, ended = os.wait()
        children.remove(child)
        if ended and not status:
            status = os.waitstatus_to_exitcode(ended) % 256
            for other in children:
                os.kill(other, signal.SIGTERM)
    return status


if __name__ == "__main__":
    sys.exit(_main([int(size) for size in sys.argv[1].split(",")], sys.argv[2:]))
