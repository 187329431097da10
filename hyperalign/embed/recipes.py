"""The encoders of the embedded zoo: what each is made of and how it is trained.

Graded on purpose: sizes from under 100k to over 2M parameters, widths from 64 to 1280, objectives from all
attributes of a scene to none. One architecture appears trained, barely trained, self-supervised and untrained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Objective = Literal["attributes", "ground", "views", "none"]
Kind = Literal["counts", "cooccurrence", "static", "recurrent", "transformer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecipe:
    """One image encoder and how it is trained.

    Attributes:
        name: Name in the zoo.
        architecture: timm name.
        kwargs: Passed to `timm.create_model`.
        objective: What it learns; "none" leaves it as initialised.
        n_steps: Optimiser steps.
        batch_size: Pictures per step.
        learning_rate: Peak rate of AdamW, one cycle.
        input_size: Pixels a side that the encoder sees.
    """

    name: str
    architecture: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    objective: Objective = "attributes"
    n_steps: int = 800
    batch_size: int = 128
    learning_rate: float = 2e-3
    input_size: int = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRecipe:
    """One text encoder and how it is trained.

    Attributes:
        name: Name in the zoo.
        kind: What it is made of and what it learns from.
        embed_dim: Width of the embedding.
        n_steps: Optimiser steps of paraphrase contrast.
        n_masked_steps: Optimiser steps of filling in masked words before that; transformer only.
        batch_size: Captions, or pairs of paraphrases, per step.
        learning_rate: Peak rate of AdamW, one cycle.
    """

    name: str
    kind: Kind
    embed_dim: int
    n_steps: int = 0
    n_masked_steps: int = 0
    batch_size: int = 128
    learning_rate: float = 2e-3


_RESNET: Final = {"channels": [16, 32, 64, 128], "stem_width": 16}
_VIT: Final = {
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": 96,
    "depth": 3,
    "num_heads": 3,
    "class_token": False,
    "global_pool": "avg",
}

IMAGE_RECIPES: Final = (
    ImageRecipe(
        name="resnet10-64", architecture="resnet10t", kwargs={"channels": [8, 16, 32, 64], "stem_width": 8}, n_steps=900
    ),
    ImageRecipe(name="resnet10-128", architecture="resnet10t", kwargs=_RESNET, n_steps=900),
    ImageRecipe(name="resnet10-128-views", architecture="resnet10t", kwargs=_RESNET, objective="views", n_steps=300),
    ImageRecipe(name="resnet10-128-early", architecture="resnet10t", kwargs=_RESNET, n_steps=120),
    ImageRecipe(name="resnet10-128-untrained", architecture="resnet10t", kwargs=_RESNET, objective="none", n_steps=0),
    ImageRecipe(
        name="resnet18-192",
        architecture="resnet18",
        kwargs={"channels": [24, 48, 96, 192], "stem_width": 24},
        n_steps=700,
    ),
    ImageRecipe(name="mobilenetv3-1024", architecture="mobilenetv3_small_050", n_steps=900),
    ImageRecipe(name="lcnet-1280", architecture="lcnet_035", n_steps=300),
    ImageRecipe(name="mobilenetv2-1280", architecture="mobilenetv2_035", n_steps=600, input_size=48),
    ImageRecipe(
        name="convnext-192",
        architecture="convnext_atto",
        kwargs={"dims": [24, 48, 96, 192], "depths": [1, 1, 3, 1], "patch_size": 2},
        n_steps=600,
    ),
    ImageRecipe(name="regnetx-368", architecture="regnetx_002", n_steps=500),
    ImageRecipe(name="starnet-128", architecture="starnet_s050", n_steps=700),
    ImageRecipe(
        name="repvit-160",
        architecture="repvit_m0_9",
        kwargs={"embed_dim": [24, 48, 96, 160], "depth": [1, 1, 4, 1]},
        n_steps=700,
    ),
    ImageRecipe(
        name="edgenext-128",
        architecture="edgenext_xx_small",
        kwargs={"dims": [16, 32, 64, 128], "depths": [1, 1, 3, 1]},
        objective="ground",
        n_steps=300,
    ),
    ImageRecipe(name="vit-96", architecture="vit_tiny_patch16_224", kwargs=_VIT, n_steps=400, learning_rate=1e-3),
)

TEXT_RECIPES: Final = (
    TextRecipe(name="counts-128", kind="counts", embed_dim=128),
    TextRecipe(name="cooccurrence-64", kind="cooccurrence", embed_dim=64),
    TextRecipe(name="static-256", kind="static", embed_dim=256, n_steps=400),
    TextRecipe(name="lstm-192", kind="recurrent", embed_dim=192, n_steps=400),
    TextRecipe(name="bert-128", kind="transformer", embed_dim=128, n_steps=500, n_masked_steps=200, learning_rate=1e-3),
)
