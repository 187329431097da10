"""Make the embedded zoo again: train its encoders, store their weights, declare their facts.

Pictures and sentences come from the "zoo" split, which shares no arrangement of things with any split a
user opens, and from different seeds of it: no encoder meets a picture together with a caption.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file

from hyperalign.embed.build_images import MEAN, STD, train_image_encoder
from hyperalign.embed.build_texts import write_text_encoder
from hyperalign.embed.declaring import toml_lines
from hyperalign.embed.encoders import load_encoder
from hyperalign.embed.recipes import IMAGE_RECIPES, TEXT_RECIPES, ImageRecipe, TextRecipe
from hyperalign.embed.scenes import ScenePictures, open_scene_split
from hyperalign.embed.zoo import EncoderSpec

Progress = Callable[[str, int, int], None]
Log = Callable[[str], None]
Recipe = ImageRecipe | TextRecipe

_HEADER: Final = """\
# The embedded zoo: made by `hyperalign zoo build embedded`, never by hand; the log of the shipped run is in reports/.
# Trained on pictures alone or on sentences alone, of scenes that no split of a user shares; never on pairs.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What is built and from how much.

    Attributes:
        images: Recipes of the image encoders.
        texts: Recipes of the text encoders.
        n_pictures: Pictures that image encoders learn from.
        n_descriptions: Scenes whose captions, five each, text encoders learn from.
        n_processes: Encoders trained side by side; the weights do not depend on it.
    """

    images: Sequence[ImageRecipe] = IMAGE_RECIPES
    texts: Sequence[TextRecipe] = TEXT_RECIPES
    n_pictures: int = 16_000
    n_descriptions: int = 6_000
    n_processes: int = 2

    @property
    def recipes(self) -> list[Recipe]:
        """Image encoders, then text encoders."""
        return [*self.images, *self.texts]


def build_zoo(
    out: Path,
    *,
    seed: int = 0,
    only: Sequence[str] = (),
    plan: BuildPlan | None = None,
    progress: Progress = lambda stage, done, total: None,
    log: Log = lambda line: None,
) -> Path:
    """Train encoders and write `embedded.toml` with their weights in the folder `embedded` beside it.

    Args:
        out: Folder to write into.
        seed: The same seed gives the same weights on the same machine.
        only: Names of the encoders to train; all when empty. The others are declared where their weights lie.
        plan: What is built and from how much; the shipped plan by default.
        progress: Called with a stage, how many encoders are done, and of how many.
        log: Takes lines of text.

    Returns:
        Path of the TOML file.
    """
    plan = plan or BuildPlan()
    recipes = plan.recipes
    unknown = sorted(set(only) - {recipe.name for recipe in recipes})
    if unknown:
        raise KeyError(f"no recipe {unknown[0]!r}; there are {', '.join(recipe.name for recipe in recipes)}")
    chosen = [recipe for recipe in recipes if not only or recipe.name in only]
    (out / "embedded").mkdir(parents=True, exist_ok=True)
    progress("train", 0, len(chosen))
    for done, lines in enumerate(_train_all(chosen, out, seed, plan), start=1):
        for line in lines:
            log(line)
        progress("train", done, len(chosen))
    return _write_toml(out, plan, log)


def _train_all(chosen: Sequence[Recipe], out: Path, seed: int, plan: BuildPlan) -> Iterator[list[str]]:
    """Train and store each encoder; gives what it has to say when it is done."""
    jobs = [(recipe, out, seed, plan.n_pictures, plan.n_descriptions) for recipe in chosen]
    if plan.n_processes == 1 or len(jobs) == 1:
        yield from (_train(*job) for job in jobs)
        return
    with ProcessPoolExecutor(plan.n_processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_train, *job) for job in jobs]):
            yield future.result()


def _train(recipe: Recipe, out: Path, seed: int, n_pictures: int, n_descriptions: int) -> list[str]:
    """Train and store one encoder; what it has to say."""
    begin = time.perf_counter()
    own_seed = zlib.crc32(f"{seed} {recipe.name}".encode())
    path = out / _checkpoint(recipe)
    lines: list[str] = []
    with _one_thread():
        if isinstance(recipe, ImageRecipe):
            encoder = train_image_encoder(recipe, _pictures(2 * seed, n_pictures), seed=own_seed, log=lines.append)
            _write_weights(encoder, path)
        else:
            captions = open_scene_split("zoo", seed=2 * seed + 1, n_pictures=n_descriptions).captions
            write_text_encoder(recipe, captions, path, seed=own_seed, log=lines.append)
    return [*lines, f"{recipe.name}: done in {time.perf_counter() - begin:.0f} s"]


@cache
def _pictures(seed: int, n_pictures: int) -> ScenePictures:
    """The pictures image encoders learn from, rendered once in a process."""
    return ScenePictures(seed=seed, split="zoo", n_pictures=n_pictures)


def _checkpoint(recipe: Recipe) -> str:
    return f"embedded/{recipe.name}" + (".safetensors" if isinstance(recipe, ImageRecipe) else "")


def _write_weights(encoder: torch.nn.Module, path: Path) -> None:
    """Store weights as float16; running statistics too, counters of batches not at all."""
    state = {
        name: tensor.half().contiguous()
        for name, tensor in encoder.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(state, path)
    path.chmod(0o644)  # safetensors keeps its files to their owner


def _write_toml(out: Path, plan: BuildPlan, log: Log) -> Path:
    """Declare every encoder of the plan whose weights are there, its facts measured from them."""
    entries = [_HEADER]
    for recipe in plan.recipes:
        if not (out / _checkpoint(recipe)).exists():
            continue
        entry = _image_entry(recipe) if isinstance(recipe, ImageRecipe) else _text_entry(recipe)
        facts = load_encoder(EncoderSpec(**entry, folder=out), device="cpu").facts
        gflops = float(f"{facts.gflops or 0:.4g}")
        entry |= {"embed_dim": facts.embed_dim, "n_params": facts.n_params, "gflops": gflops, "license": "Apache-2.0"}
        log(f"{recipe.name}: {facts.n_params:,} parameters, width {facts.embed_dim}, {gflops} GFLOP")
        lines = "\n".join(toml_lines(entry))
        entries.append(f"# {_how(recipe, plan)}\n[[encoder]]\n{lines}\n")
    path = out / "embedded.toml"
    draft = out / "embedded.toml.tmp"
    draft.write_text("\n".join(entries), encoding="utf-8")
    return draft.replace(path)


def _image_entry(recipe: ImageRecipe) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": recipe.name,
        "modality": "image",
        "loader": "timm",
        "architecture": recipe.architecture,
        "checkpoint": _checkpoint(recipe),
    }
    if recipe.kwargs:
        entry["kwargs"] = dict(recipe.kwargs)
    return entry | {
        "input_size": recipe.input_size,
        "mean": MEAN,
        "std": STD,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }


def _text_entry(recipe: TextRecipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "modality": "text",
        "loader": "sentence-transformers",
        "checkpoint": _checkpoint(recipe),
    }


def _how(recipe: Recipe, plan: BuildPlan) -> str:
    """How an encoder was trained, in one line."""
    if isinstance(recipe, TextRecipe):
        return f"{recipe.kind}, on the captions of {plan.n_descriptions:,} scene descriptions. {_text_steps(recipe)}"
    if recipe.objective == "none":
        return "Not trained: the control."
    return (
        f"Objective: {recipe.objective}. {recipe.n_steps:,} steps of {recipe.batch_size} pictures "
        f"out of {plan.n_pictures:,}."
    )


def _text_steps(recipe: TextRecipe) -> str:
    said = [
        f"{n:,} steps of {what}"
        for n, what in ((recipe.n_masked_steps, "masked words"), (recipe.n_steps, "paraphrase contrast"))
        if n
    ]
    return (" and ".join(said) or "Counted, no gradient") + "."


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread, then as before: small networks gain nothing by a second, and sums keep their order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
