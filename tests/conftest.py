"""What holds for every test: no connection, few threads, a home of its own; and a small made-up run."""

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # tiny matrices: more threads make this suite many times slower
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything that reads it at import
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import math  # noqa: E402
import socket  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pandas as pd  # noqa: E402
import pytest  # noqa: E402

from hyperalign.embed.networks import mend_torchvision  # noqa: E402
from hyperalign.ledger import Line  # noqa: E402
from hyperalign.record import LEADERBOARD_COLUMNS, Result  # noqa: E402
from hyperalign.run import Run, create_run, finish_run  # noqa: E402

mend_torchvision()  # some tests import timm themselves


@pytest.fixture(autouse=True)
def _offline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this process's machine."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise RuntimeError("this test opened a connection; mark it `network` or use a fake")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True, scope="session")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever code tests run, whoever runs them has not run it; of the whole session, for its fixtures run some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the files and settings of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("HF_HOME", str(home / ".cache" / "huggingface"))
    for name in ("HYPERALIGN_CACHE", "HYPERALIGN_REPORTS", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def made_up_leaderboard(image_names: tuple[str, ...] = ("small-vit", "tiny-net", "wide-net")) -> pd.DataFrame:
    """Two methods over three image encoders and one text encoder, and the baseline again under another seed."""
    rows: list[dict[str, Any]] = []
    for method, seed, shift in (("hypernet", 0, 0.0), ("ape", 0, 1.5), ("ape", 1, 0.5)):
        for place, name in enumerate(image_names, start=1):
            row: dict[str, Any] = dict.fromkeys(LEADERBOARD_COLUMNS, math.nan)
            score = 50.0 - 2.5 * place + shift
            row |= {"position": place, "rank": min(place, 2), "image_encoder": name, "text_encoder": "words"}
            row |= {"method": method, "sides": "text" if method == "ape" else "both", "seed": seed}
            row |= {
                "score": score,
                "score_low": score - 2,
                "score_high": score + 2,
                "p_best": float(place == 1),
            }
            row |= {"n_params_image": 1_500_000 * place, "n_params_text": 300_000, "image_dim": 96, "text_dim": 64}
            row |= {"gflops_image": 0.1 * place, "gflops_text": 0.01, "train_flops": 2_500_000_000}
            row |= {"license_image": "Apache-2.0", "license_text": ""}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(LEADERBOARD_COLUMNS))


def made_up_ledger() -> list[Line]:
    """A search of 10 GFLOP, and a verification."""
    return [
        Line("set-up", "hypernet · both", "covariances", 4_000_000_000, 0.5, 900_000_000),
        Line("training", "hypernet · both", "75 steps", 5_000_000_000, 2.0, 1_000_000_000),
        Line("validation", "hypernet · both", "2 looks", 1_000_000_000, 0.25, 1_000_000_000),
        Line("verification", "ape · text", "first pair", 20_000_000_000, 4.0, 1_100_000_000),
    ]


def made_up_result() -> Result:
    """What a search says at its end."""
    return {
        "seeds": [0, 1],
        "wall_seconds": 12.5,
        "method": "hypernet",
        "counts": ["3 of 5 image encoders have at most 30,000,000 parameters."],
        "answer": ["The best pair is small-vit + words."],
        "notes": ["2 captions were cut by the tokenizer."],
        "agreement": [
            {
                "order": "hypernet",
                "reference": "ape, text",
                "n_pairs": 3,
                "spearman": 1.0,
                "kendall": 1.0,
                "ndcg_at_5": 1.0,
                "regret_at_1": 0.0,
            }
        ],
        "ratios": [
            {
                "setting": "matched batch 512",
                "baseline": "ape, text, 10 epochs, 3 pairs, computed",
                "baseline_flops": 310_000_000_000,
                "method": "hypernet, both, 75 steps",
                "method_flops": 10_000_000_000,
            },
            {
                "setting": "each at its own best",
                "baseline": "ape, text, batch 256, 8 epochs, 3 pairs, computed",
                "baseline_flops": 150_000_000_000,
                "method": "hypernet, both, 75 steps",
                "method_flops": 10_000_000_000,
            },
        ],
    }


@pytest.fixture
def finished_run(tmp_path: Path) -> Run:
    """A small finished run; nothing in it was measured."""
    run = create_run(tmp_path / "reports", label="made up", configuration={"data": "made-up", "task": "retrieval"})
    return finish_run(run, made_up_result(), leaderboard=made_up_leaderboard(), ledger=made_up_ledger())
