"""Models on disk: a folder of `model.json`, `model.safetensors` and, where the text side is its own, `tokenizer.json`.

Weights are written first and the record last, each whole, so a folder with a record is a model. Weights must fit the
record to the last key; what is cut short or of another architecture is refused in words.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from safetensors import SafetensorError
from safetensors.torch import load, save
from tokenizers import Tokenizer
from torch import Tensor, nn

from hyperalign.config import build
from hyperalign.embed.networks import PictureInput, first_line, misfit, picture_transform
from hyperalign.embed.plain import parse_json
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.hyperclip.architectures import build_encoder, picture_of
from hyperalign.hyperclip.hypernetwork import HyperConfig
from hyperalign.hyperclip.model import HyperClip
from hyperalign.hyperclip.text import TextConfig, TextTransformer, tokenize
from hyperalign.run import write_whole

__all__ = [
    "Captions",
    "Model",
    "ModelRecord",
    "build_model",
    "find_model",
    "load_model",
    "save_model",
]

_FORMAT = 1
_RECORD, _WEIGHTS, _TOKENIZER = "model.json", "model.safetensors", "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What a model is made of.

    Attributes:
        image: Its image encoder; what stands there of weights is where training began.
        embed_dim: Width D of an embedding.
        head: Whether the image encoder has a head of that width, or gives its pooled embedding.
        hyper: Shape of the hypernetwork; None for the SigLIP baseline.
        text: Frozen text encoder, whose rows a linear connector maps; None for a transformer of its own.
        text_dim: Width of that encoder's rows.
        text_config: Shape of the model's own transformer, where it has one.
        unit_rows: Whether rows of the frozen encoder are made unit vectors first.
    """

    image: EncoderSpec
    embed_dim: int
    head: bool
    hyper: HyperConfig | None
    text: EncoderSpec | None = None
    text_dim: int | None = None
    text_config: TextConfig | None = None
    unit_rows: bool = False


class Captions:
    """Captions as a model's text side takes them: tokens, or rows of a frozen encoder."""

    def __init__(self, record: ModelRecord, tokenizer: Tokenizer | None, *, device: str | None = None) -> None:
        """Take the tokenizer of the model's own transformer, or build the frozen encoder when it is first needed."""
        self.record, self.tokenizer, self.device = record, tokenizer, device
        self._encoder: Any = None

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, L) tokens or (B, D_txt) rows."""
        if self.tokenizer is not None and self.record.text_config is not None:
            return tokenize(self.tokenizer, captions, context=self.record.text_config.context)
        if self._encoder is None:
            from hyperalign.embed.encoders import load_encoder

            assert self.record.text is not None, "a model without a tokenizer has a frozen text encoder"
            self._encoder = load_encoder(self.record.text, device=self.device)
        rows: Tensor = self._encoder.encode(list(captions))
        return self.prepared(rows.clone())  # a copy, for they were made in inference mode

    def prepared(self, rows: Tensor) -> Tensor:
        """Rows of the frozen encoder as the text side takes them."""
        rows = rows.nan_to_num(0.0, 0.0, 0.0)
        return F.normalize(rows, dim=1) if self.record.unit_rows else rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A model and what goes with it.

    Attributes:
        network: The model.
        record: What it is made of.
        captions: Captions → what the text side takes.
        picture: The picture that the image encoder wants.
    """

    network: HyperClip
    record: ModelRecord
    captions: Captions
    picture: PictureInput

    def transform(self, *, normalised: bool = True) -> Any:
        """An RGB picture → (3, H, W), as the image encoder wants it."""
        return picture_transform(self.picture, normalised=normalised)


def build_model(record: ModelRecord, tokenizer: Tokenizer | None) -> Model:
    """A model without trained weights.

    Raises:
        ValueError: If a hypernetwork is asked for and the image encoder has no normalisation layer.
    """
    image = build_encoder(record.image, record.embed_dim if record.head else None)
    text: nn.Module
    if record.text_config is not None and tokenizer is not None:
        text = TextTransformer(tokenizer.get_vocab_size(), record.embed_dim, record.text_config)
    elif record.text_dim is not None:
        text = nn.Linear(record.text_dim, record.embed_dim)
    else:
        raise ValueError("a model needs a frozen text encoder or a transformer of its own with a tokenizer")
    network = HyperClip(image, text, record.embed_dim, record.hyper)
    return Model(network=network, record=record, captions=Captions(record, tokenizer), picture=picture_of(record.image))


def save_model(folder: Path, model: Model) -> None:
    """Write a model; the record comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    write_whole(folder / _WEIGHTS, save(state))
    if model.captions.tokenizer is not None:
        write_whole(folder / _TOKENIZER, model.captions.tokenizer.to_str().encode())
    record = {"format": _FORMAT, **asdict(model.record)}
    write_whole(folder / _RECORD, (json.dumps(record, indent=2, default=str) + "\n").encode())


def load_model(folder: Path) -> Model:
    """Read a model, in evaluation mode on the CPU.

    Raises:
        FileNotFoundError: If the folder holds no model, or a file of it is missing.
        ValueError: If a file is damaged, or the weights are of another architecture.
    """
    record = _read_record(folder)
    tokenizer = None
    if record.text_config is not None:
        path = folder / _TOKENIZER
        try:
            tokenizer = Tokenizer.from_str(_existing(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise
        except Exception as error:  # the library has no error of its own
            raise ValueError(f"{path} is no tokenizer: {first_line(error)}; adapt again") from None
    model = build_model(record, tokenizer)
    _fill(model.network, _read_weights(folder / _WEIGHTS), folder / _WEIGHTS, str(record.image.name))
    model.network.eval()
    return model


def find_model(folder: Path) -> Path:
    """The model in a folder: the folder itself, or HyperCLIP's of an adaptation."""
    for found in (folder, folder / "hyperclip", folder / "hyperclip-flat"):
        if (found / _RECORD).is_file():
            return found
    return folder


def _fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path, of: str) -> None:
    """Load weights that must fit to the last key.

    Raises:
        ValueError: If they do not; the first differences are named.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    fault = misfit(expected, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    if fault is not None:
        raise ValueError(f"{path} does not fit a model of {of}: {fault}; give the folder that `adapt` has written")
    network.load_state_dict(dict(weights), strict=False)  # counters that a conversion dropped may be missing


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; one that was cut short is refused."""
    try:
        weights: dict[str, Tensor] = load(_existing(path).read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or was cut short ({first_line(error)}); adapt again") from None
    return weights


def _read_record(folder: Path) -> ModelRecord:
    path = folder / _RECORD
    if not path.is_file():
        raise FileNotFoundError(f"no model in {folder}: it has no {_RECORD}; give a folder that `adapt` has written")
    try:
        words = parse_json(path.read_bytes())
        if not isinstance(words, dict) or words.pop("format", None) != _FORMAT:
            raise ValueError(f"it is not of format {_FORMAT}")
        return build(ModelRecord, words)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a model: {first_line(error)}; adapt again") from None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"the model in {path.parent} has no {path.name}; adapt again")
    return path
