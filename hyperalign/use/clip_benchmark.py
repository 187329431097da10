"""A pair inside CLIP_benchmark, as one more of its model types.

    python -m hyperalign.use.clip_benchmark eval --model DIR --dataset wds/cifar10 --dataset_root … --no_amp

All words are CLIP_benchmark's own; `--model` is the folder of an exported pair or of a run. Install it with
`pip install 'hyperalign[clip-benchmark]'`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from hyperalign.use.dual import DualEncoder
from hyperalign.use.joint import join_images
from hyperalign.use.opened import open_model

__all__ = ["TYPE", "BenchmarkModel", "Captions", "Loaded", "as_benchmark_model", "load_pair", "main", "register"]

TYPE = "hyperalign"


class Captions(list[str]):
    """Captions that travel as tokens do elsewhere; the text encoder tokenizes them itself."""

    def to(self, device: object) -> "Captions":
        """Stay what they are: they are text."""
        return self


class BenchmarkModel(nn.Module):
    """A pair with the two methods that CLIP_benchmark calls."""

    def __init__(self, model: DualEncoder) -> None:
        """Wrap a pair."""
        super().__init__()
        self.pair = model

    @torch.no_grad()
    def encode_image(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 as the transform gives them → (B, D) unit rows."""
        return join_images(self.pair.joint, self.pair.image.encode(pictures).cpu()).to(pictures.device)

    @torch.no_grad()
    def encode_text(self, captions: Captions) -> Tensor:
        """B captions → (B, D) unit rows; zeros for one of unknown words."""
        return self.pair.encode_text(captions).to(self.pair.image.device)


class Loaded(NamedTuple):
    """What CLIP_benchmark asks of a model type.

    Attributes:
        model: With `encode_image` and `encode_text`.
        transform: An RGB picture → (3, H, W) uint8.
        tokenizer: Captions → what `encode_text` takes.
    """

    model: BenchmarkModel
    transform: Any
    tokenizer: type[Captions]


class _Preprocess:
    """The image encoder's own resize and crop; a class so that worker processes can be handed it."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, picture: Image.Image) -> Tensor:
        found: Tensor = self.transform(picture.convert("RGB"))
        return found


def as_benchmark_model(model: DualEncoder) -> Loaded:
    """A pair as CLIP_benchmark takes it."""
    return Loaded(BenchmarkModel(model), _Preprocess(model.image.preprocess), Captions)


def load_pair(model_name: str, pretrained: str = "", cache_dir: str | None = None, device: str = "cpu") -> Loaded:
    """What CLIP_benchmark calls for `--model_type hyperalign`.

    Args:
        model_name: Folder of an exported pair or of a run.
        pretrained: Of a run, which pair; empty is the first. Other words that are no pair are CLIP_benchmark's default.
        cache_dir: Not looked at.
        device: Where its loaders put pictures; the pair chooses its own.
    """
    return as_benchmark_model(open_model(Path(model_name), pretrained or None))


def register() -> None:
    """Make the type known to CLIP_benchmark in this process.

    Raises:
        ImportError: If CLIP_benchmark is not installed.
    """
    try:
        from clip_benchmark import models
        from clip_benchmark.metrics import zeroshot_classification
    except ImportError as error:
        raise ImportError(
            f"CLIP_benchmark is not installed whole ({error}); `pip install 'hyperalign[clip-benchmark]'`"
        ) from None
    models.TYPE2FUNC[TYPE] = load_pair
    if TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(TYPE)
    zeroshot_classification.float = _number  # version 1.6.2 gives float() an array of one number; NumPy 2.4 refuses it


def main(words: Sequence[str] | None = None) -> None:
    """Run CLIP_benchmark's own command with one more model type, which is then the default."""
    register()
    from clip_benchmark import cli

    given = list(sys.argv[1:] if words is None else words)
    if given[:1] == ["eval"] and "--model_type" not in given:
        given += ["--model_type", TYPE] + ([] if "--pretrained" in given else ["--pretrained", ""])
    before, sys.argv = sys.argv, ["clip_benchmark", *given]
    try:
        cli.main()
    finally:
        sys.argv = before


def _number(one: Any) -> float:
    """The number in an array of one, or in what Python's own `float` takes."""
    return float(one.item() if hasattr(one, "item") else one)


if __name__ == "__main__":
    main()
