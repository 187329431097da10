"""A finished run over a grid of any size, made of drawn hits: what a page is drawn from, without a search."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hyperalign.ledger import Line
from hyperalign.rank.ranking import rank_pairs
from hyperalign.rank.resampling import bootstrap, per_image
from hyperalign.record import LEADERBOARD_COLUMNS
from hyperalign.run import Run, create_run, finish_run, write_tensors

_CAPTIONS = 2  # of each picture


def made_up_grid(
    folder: Path, n_images: int, n_texts: int, *, n_test: int = 120, name: str = "image-{k:03}", seed: int = 0
) -> Run:
    """Write a run of `hypernet` over n_images × n_texts encoders, scored on `n_test` pictures.

    Args:
        folder: Of all runs.
        n_images: Image encoders.
        n_texts: Text encoders.
        n_test: Test pictures.
        name: Of an image encoder, k being its number.
        seed: Of the hits.
    """
    rng = np.random.default_rng(seed)
    n_pairs, owner = n_images * n_texts, np.repeat(np.arange(n_test), _CAPTIONS)
    level = (rng.normal(0, 0.8, n_images)[:, None] + rng.normal(0, 0.8, n_texts) - 1).reshape(-1, 1)
    hard = rng.normal(0, 1, n_test)
    i2t = (rng.logistic(size=(n_pairs, n_test)) < level + hard).astype(np.uint8)
    t2i = (rng.logistic(size=(n_pairs, len(owner))) < level + hard[owner]).astype(np.uint8)
    found = bootstrap(per_image(t2i.astype(np.float32), i2t.astype(np.float32), owner), seed=seed)
    encoders = [_encoder("image", name.format(k=k), k, n_images) for k in range(n_images)]
    encoders += [_encoder("text", f"text-{k}", k, n_texts) for k in range(n_texts)]
    rows = [_row(encoders[i], encoders[n_images + j], rng) for i in range(n_images) for j in range(n_texts)]
    table = pd.DataFrame(rows).assign(validation_score=found.score + rng.normal(0, 0.5, n_pairs))
    ranked = rank_pairs(table, found)
    run = create_run(folder, label="made up grid", configuration={"data": "made-up", "task": "retrieval", "seed": seed})
    write_tensors(run / "hits.safetensors", {"hypernet-both-0/t2i": t2i, "hypernet-both-0/i2t": i2t, "owner": owner})
    split = {"n_images": n_test, "n_captions": len(owner), "image_digest": "i", "text_digest": "t"}
    result: Any = {
        "method": "hypernet",
        "answer": ["The answer."],
        "encoders": encoders,
        "data": {"name": "made-up", "splits": {"test": split}, "label_set": None},
        "totals": {"search_flops": 10_000_000_000, "all_flops": 12_000_000_000},
    }
    ledger = [Line("training", "hypernet · both", "75 steps", 5_000_000_000, 2.0, 1_000_000_000)]
    return finish_run(run, result, leaderboard=ranked[list(LEADERBOARD_COLUMNS)], ledger=ledger)


def _encoder(modality: str, name: str, k: int, n: int) -> dict[str, Any]:
    """An encoder as a run records it; sizes rise with its number."""
    return {
        "name": name,
        "modality": modality,
        "loader": "rows",
        "checkpoint": f"rows/{modality}-{k}.npy",
        "embed_dim": (384, 768, 1024)[3 * k // n],
        "n_params": 1_000_000 * (k + 1),
        "gflops": 0.123456789 * (k + 1),
        "license": ("Apache-2.0", "MIT")[k % 2],
    }


def _row(image: dict[str, Any], text: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(LEADERBOARD_COLUMNS, math.nan)
    row |= {"image_encoder": image["name"], "text_encoder": text["name"], "method": "hypernet", "sides": "both"}
    for side, spec in (("image", image), ("text", text)):
        row |= {f"n_params_{side}": spec["n_params"], f"gflops_{side}": spec["gflops"]}
        row |= {f"{side}_dim": spec["embed_dim"], f"license_{side}": spec["license"]}
    row |= {f"{way}_recall_at_{k}": float(rng.uniform(10, 90)) for way in ("t2i", "i2t") for k in (1, 5, 10)}
    row |= {"train_flops": 1_000_000, "seed": 0, "n_train": 5_000, "latency_ms": 1.5 * image["n_params"] / 1e6}
    return {
        key: value
        for key, value in row.items()
        if key not in ("position", "rank", "p_best", "score_low", "score_high", "score")
    }
