"""An image encoder that a factory builds as a module of sentence-transformers; its folder holds code and weights."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from hyperalign.embed.networks import build_network, picture_transform
from hyperalign.embed.pictures import decode, upright
from hyperalign.embed.zoo import EncoderSpec, trusted
from hyperalign.record import to_json
from hyperalign.use.weights import copy_weights

__all__ = ["PictureModule"]


class PictureModule(InputModule):  # type: ignore[misc]
    """The encoder: pictures in, `sentence_embedding` out.

    sentence-transformers loads it with `trust_remote_code=True` alone, for loading runs the factory.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        """Build the network of an encoder."""
        super().__init__()
        network = build_network(spec)
        self.spec, self.network, self.picture = spec, network.module, network.picture
        self.transform = picture_transform(network.picture)

    @property
    def modalities(self) -> list[str]:
        """What it takes."""
        return ["image"]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Paths or PIL pictures as bytes, (B, 3, H, W)."""
        pictures = [upright(one) if isinstance(one, Image.Image) else decode(Path(one).read_bytes()) for one in inputs]
        return {"pixel_values": torch.stack([self.transform(picture) for picture in pictures])}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Normalise and embed."""
        pixels: Tensor = features["pixel_values"]
        mean, std = (torch.tensor(x, device=pixels.device).view(3, 1, 1) for x in (self.picture.mean, self.picture.std))
        features["sentence_embedding"] = self.network(pixels.float().div(255).sub(mean).div(std))
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the factory, what it reads and how it is called."""
        folder = Path(output_path)
        spec = copy_weights(self.spec, folder / "encoder")
        values = {entry.name: getattr(spec, entry.name) for entry in fields(spec) if entry.name != "folder"}
        record = {name: value for name, value in values.items() if value not in (None, {})}
        (folder / self.config_file_name).write_text(to_json(record, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> "PictureModule":
        """Build it again from its folder."""
        names = ("token", "cache_folder", "revision", "local_files_only")
        given = {name: kwargs[name] for name in names if name in kwargs}
        folder = Path(cls.load_dir_path(model_name_or_path, subfolder=subfolder, **given))
        record = json.loads((folder / cls.config_file_name).read_text(encoding="utf-8"))
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in record.items()}
        spec = EncoderSpec(**values, folder=folder / "encoder")
        return cls(trusted(spec) if kwargs.get("trust_remote_code") else spec)
