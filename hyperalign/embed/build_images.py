"""How the image encoders of the embedded zoo learn: from pictures and their scene records, never from captions.

Three objectives, so that encoders know different things: all attributes of the scene, its ground alone, and
agreement of two views of a picture; and one encoder that learns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone knows it by)
from numpy.typing import NDArray
from torch import Tensor, nn

from hyperalign.embed.networks import import_timm
from hyperalign.embed.recipes import ImageRecipe, Objective
from hyperalign.embed.scenes import ScenePictures
from hyperalign.embed.world import (
    BACKGROUNDS,
    CELLS,
    CLUTTER,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    TINTS,
    UNSEEN_COLOURS,
    UNSEEN_TEXTURES,
    Scene,
    draw_scene,
)

Log = Callable[[str], None]
MEAN: Final = (0.5, 0.5, 0.5)
STD: Final = (0.25, 0.25, 0.25)


def build_encoder(recipe: ImageRecipe) -> nn.Module:
    """The network of a recipe as timm initialises it, without a classifier."""
    timm = import_timm()
    network: nn.Module = timm.create_model(recipe.architecture, pretrained=False, num_classes=0, **recipe.kwargs)
    return network.to(memory_format=torch.channels_last)


def train_image_encoder(recipe: ImageRecipe, pictures: ScenePictures, *, seed: int, log: Log) -> nn.Module:
    """Train one encoder; the same weights for the same seed, machine and number of threads.

    Args:
        recipe: What to train and how.
        pictures: Pictures of the "zoo" split.
        seed: Seeds initialisation and batch order.
        log: Takes one line of progress at a time.
    """
    torch.manual_seed(seed)
    encoder = build_encoder(recipe)
    if recipe.objective == "none" or not recipe.n_steps:
        return encoder.eval()
    pixels = torch.from_numpy(pictures.block(0, len(pictures)).copy())  # the block is read-only
    width = _width(encoder, recipe.input_size)
    task = _TASKS[recipe.objective](pictures, width)
    parameters = [*encoder.parameters(), *task.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.02)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.n_steps, pct_start=0.15
    )
    encoder.train()
    batches = torch.Generator().manual_seed(seed)
    running = 0.0
    for step in range(recipe.n_steps):
        chosen = torch.randint(len(pixels), (recipe.batch_size,), generator=batches)
        loss = task(encoder, pixels[chosen], chosen, recipe.input_size)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        cycle.step()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == recipe.n_steps:
            log(f"{recipe.name}: step {step + 1} of {recipe.n_steps}, {recipe.objective} loss {running:.4f}")
    return encoder.eval()


def prepare(pixels: Tensor, input_size: int) -> Tensor:
    """Pictures as an encoder sees them: resized, scaled, channels last in memory.

    Args:
        pixels: (B, 64, 64, 3) uint8.
        input_size: Pixels a side.

    Returns:
        (B, 3, input_size, input_size) float32; a pixel of 127.5 becomes 0.
    """
    images = pixels.permute(0, 3, 1, 2).float() / 255
    if images.shape[-1] != input_size:
        images = F.interpolate(images, size=input_size, mode="bilinear", antialias=True)
    scaled = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return scaled.contiguous(memory_format=torch.channels_last)


def _width(encoder: nn.Module, input_size: int) -> int:
    """Width of the embedding, by a forward pass: timm's `num_features` is wrong for some."""
    with torch.no_grad():
        width: int = encoder.eval()(torch.zeros(1, 3, input_size, input_size)).shape[1]
    return width


def _shift(pixels: Tensor, reach: int) -> Tensor:
    """The batch moved by up to `reach` pixels, edges repeated."""
    down, across = torch.randint(-reach, reach + 1, (2,)).tolist()
    rows = (torch.arange(pixels.shape[1]) + down).clamp(0, pixels.shape[1] - 1)
    columns = (torch.arange(pixels.shape[2]) + across).clamp(0, pixels.shape[2] - 1)
    return pixels[:, rows][:, :, columns]


def attribute_names(objective: Objective) -> tuple[str, ...]:
    """Names of the yes-or-no attributes an objective asks for, in the order of `attribute_table`."""
    ground = (
        *(f"background {word}" for word in BACKGROUNDS),
        *(f"tint {word}" for word in TINTS),
        *(f"clutter {word}" for word in CLUTTER),
    )
    if objective == "ground":
        return ground
    cells = range(CELLS)
    return (
        *ground,
        *(f"{number} things" for number in (2, 3, 4)),
        *SHAPES,
        *COLOURS,
        *(f"{c} {s}" for i, s in enumerate(SHAPES) for j, c in enumerate(COLOURS) if (i, j) not in UNSEEN_COLOURS),
        *(f"{t} {s}" for i, s in enumerate(SHAPES) for j, t in enumerate(TEXTURES) if (i, j) not in UNSEEN_TEXTURES),
        *(f"{size} {s}" for s in SHAPES for size in SIZES),
        *(f"{t} {c}" for c in COLOURS for t in TEXTURES),
        *(f"{size} {c}" for c in COLOURS for size in SIZES),
        *(f"{s} at {cell}" for s in SHAPES for cell in cells),
        *(f"{c} at {cell}" for c in COLOURS for cell in cells),
        *(f"anything at {cell}" for cell in cells),
    )


def _facts(scene: Scene) -> set[str]:
    """Every attribute name that is true of a scene."""
    facts = {
        f"background {BACKGROUNDS[scene.background]}",
        f"tint {TINTS[scene.tint]}",
        f"clutter {CLUTTER[scene.clutter]}",
        f"{len(scene.things)} things",
    }
    for thing in scene.things:
        shape, colour = SHAPES[thing.shape], COLOURS[thing.colour]
        size, texture = SIZES[thing.size], TEXTURES[thing.texture]
        facts |= {shape, colour, f"{colour} {shape}", f"{texture} {shape}", f"{size} {shape}", f"{texture} {colour}"}
        facts |= {f"{size} {colour}", f"{shape} at {thing.cell}", f"{colour} at {thing.cell}"}
        facts.add(f"anything at {thing.cell}")
    return facts


def attribute_table(scenes: Sequence[Scene], objective: Objective = "attributes") -> NDArray[np.float32]:
    """Which attributes are true: (n_scenes, n_attributes) of 0 and 1.

    Combinations kept for zero-shot classification are no attributes: nobody is taught that they never occur.
    """
    column = {name: index for index, name in enumerate(attribute_names(objective))}
    table = np.zeros((len(scenes), len(column)), np.float32)
    for row, scene in enumerate(scenes):
        table[row, [column[fact] for fact in _facts(scene) if fact in column]] = 1
    return table


class _Attributes(nn.Module):
    """Yes-or-no questions about the scene, answered by one linear layer on the embedding."""

    def __init__(self, pictures: ScenePictures, width: int, objective: Objective = "attributes") -> None:
        super().__init__()
        scenes = [draw_scene(pictures.seed, pictures.split, index) for index in range(len(pictures))]
        self._table = torch.from_numpy(attribute_table(scenes, objective))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.answer = nn.Linear(width, self._table.shape[1])
        share = self._table.mean(0).clamp(1e-3, 1 - 1e-3)
        self.answer.bias.data = torch.logit(share)

    def forward(self, encoder: nn.Module, pixels: Tensor, chosen: Tensor, input_size: int) -> Tensor:
        answers = self.answer(self.norm(encoder(prepare(_shift(pixels, 2), input_size))))
        return F.binary_cross_entropy_with_logits(answers, self._table[chosen], reduction="sum") / len(chosen)


class _Views(nn.Module):
    """Two views of a picture should embed alike and the batch should spread: VICReg, arXiv:2105.04906."""

    def __init__(self, _pictures: ScenePictures, width: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Linear(width, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 512))

    def forward(self, encoder: nn.Module, pixels: Tensor, _chosen: Tensor, input_size: int) -> Tensor:
        one, other = (self.expand(encoder(_view(pixels, input_size))) for _ in range(2))
        return 25 * F.mse_loss(one, other) + _spread(one) + _spread(other)


def _view(pixels: Tensor, input_size: int) -> Tensor:
    """Moved a little, other light, other grain, a square blanked out."""
    images = prepare(_shift(pixels, 4), input_size)
    light = 1 + 0.15 * torch.randn(len(images), 3, 1, 1)
    images = images * light + 0.15 * torch.randn(len(images), 1, 1, 1) + 0.1 * torch.randn_like(images)
    top, left = (torch.rand(2) * input_size * 0.75).long().tolist()
    images[:, :, top : top + input_size // 4, left : left + input_size // 4] = 0
    return images


def _spread(rows: Tensor) -> Tensor:
    """VICReg's variance and covariance terms."""
    centred = rows - rows.mean(0)
    variance = F.relu(1 - torch.sqrt(centred.var(0) + 1e-4)).mean()
    covariance = centred.T @ centred / (len(rows) - 1)
    apart = (covariance.pow(2).sum() - covariance.diagonal().pow(2).sum()) / rows.shape[1]
    return 25 * variance + apart


def _ground_task(pictures: ScenePictures, width: int) -> nn.Module:
    return _Attributes(pictures, width, "ground")


_TASKS: Final[dict[str, Callable[[ScenePictures, int], nn.Module]]] = {
    "attributes": _Attributes,
    "ground": _ground_task,
    "views": _Views,
}
