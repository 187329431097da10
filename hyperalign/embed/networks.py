"""A spec of a picture encoder becomes a network with its classifier off, and the picture that it wants.

Local weights must fit to the last key: only a classifier, and the counters of batch normalisation,
may differ. Nothing is downloaded unless a hub tag asks for it.
"""

import difflib
import hashlib
import importlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from PIL import Image
from torch import Tensor, nn

from hyperalign.embed.clips import build_clip_pictures
from hyperalign.embed.factories import run_factory
from hyperalign.embed.plain import first_line as first_line
from hyperalign.embed.zoo import EncoderSpec

Shapes = dict[str, tuple[int, ...]]
_MOST_OPERATORS = 50  # of a torchvision without its binary


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureInput:
    """The picture that an encoder wants.

    Attributes:
        size: Height and width.
        mean: Subtracted from each channel in [0, 1].
        std: Divides each channel.
        interpolation: Of the resize.
        crop_pct: Share of the resized side that the centre crop keeps.
        crop_mode: timm's word for how a picture that is not square is treated.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"


class PictureNetwork(NamedTuple):
    """A frozen network, (B, 3, H, W) normalised pictures → (B, D), and its input."""

    module: nn.Module
    picture: PictureInput


def build_network(spec: EncoderSpec, *, weights: bool = True) -> PictureNetwork:
    """Build the network of an image encoder, frozen and in evaluation mode.

    Args:
        spec: Of loader "timm", "open-clip" or "python".
        weights: Whether a network of a library gets its weights. Without them it lies on the meta device: it has
            shapes and costs nothing. A factory always loads its own.
    """
    if spec.loader == "open-clip":
        module, own = build_clip_pictures(spec, weights=weights)
        network = PictureNetwork(module, PictureInput(**own))
    else:
        network = _build_timm(spec, weights=weights) if spec.loader == "timm" else _build_factory(spec)
    network.module.eval().requires_grad_(False)
    return network


def picture_transform(picture: PictureInput, *, normalised: bool = False) -> Callable[[Image.Image], Tensor]:
    """Resize and crop as `picture` says, by timm's own evaluation transform: an RGB picture → (3, H, W) uint8.

    Args:
        picture: What the encoder wants.
        normalised: Give float32 less the mean, over the deviation, as timm's transform does where nobody asks it for
            bytes.
    """
    transform = import_timm().data.create_transform(
        input_size=(3, *picture.size),
        interpolation=picture.interpolation,
        mean=picture.mean,
        std=picture.std,
        crop_pct=picture.crop_pct,
        crop_mode=picture.crop_mode,
        use_prefetcher=not normalised,  # bytes are a quarter of the traffic, normalised on the device
    )
    return transform if normalised else _Bytes(transform)


def hub_source(spec: EncoderSpec) -> tuple[str, str]:
    """Repository on the hub that a timm tag names, and its small file that tells the commit."""
    timm = import_timm()
    config = timm.models.get_pretrained_cfg(_known_architecture(spec), allow_unregistered=False)
    if config is None or not config.hf_hub_id:
        raise ValueError(f"encoder {spec.name!r}: timm has no weights on the hub for {spec.architecture!r}")
    return str(config.hf_hub_id), "config.json"


def hub_license(spec: EncoderSpec) -> str | None:
    """Licence that timm records for a tag."""
    config = import_timm().models.get_pretrained_cfg(_known_architecture(spec), allow_unregistered=True)
    return None if config is None else config.license


def misfit(expected: Shapes, given: Shapes) -> str | None:
    """How the weights that are `given` fail to be those `expected`, in words; None where they fit."""
    missing = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    unknown = [key for key in given if key not in expected]
    reshaped = [
        f"{key} {given[key]} for {expected[key]}" for key in given if given[key] != expected.get(key, given[key])
    ]
    faults = (("missing", missing), ("unknown", unknown), ("of another shape", reshaped))
    return ", ".join(f"{word}: {_few(keys)}" for word, keys in faults if keys) or None


def checkpoint_misfit(spec: EncoderSpec, module: nn.Module) -> str | None:
    """How the local checkpoint fails to fit the network without reading its weights; None where it fits or is none."""
    path = spec.local_checkpoint()
    if path is None:
        return None
    module = module.network if isinstance(module, _Pooled) else module
    if path.suffix != ".safetensors":
        return misfit(_shapes(module.state_dict()), _shapes(_without_head(spec, module, _read_weights(spec, path))))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(_existing(spec, path), framework="pt") as file:
            given = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"encoder {spec.name!r}: {path} cannot be read: {first_line(error)}") from None
    return misfit(_shapes(module.state_dict()), _without_head(spec, module, given))


class _Pooled(nn.Module):
    """A timm network up to its pooled embedding, before the classifier."""

    def __init__(self, network: nn.Module, width: int | None) -> None:
        """Wrap `network`; `width` keeps the first dimensions only."""
        super().__init__()
        self.network, self.width = network, width

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, D)."""
        network: Any = self.network
        embedding: Tensor = network.forward_head(network.forward_features(pictures), pre_logits=True)
        return embedding if self.width is None else embedding[:, : self.width]


class _Truncated(nn.Module):
    """The first dimensions of a factory's network."""

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network, self.width = network, width

    def forward(self, pictures: Tensor) -> Tensor:
        embedding: Tensor = self.network(pictures)
        return embedding[:, : self.width]


class _Bytes:
    """timm's transform, ending in a uint8 tensor in every version of it; can be sent to a worker."""

    def __init__(self, transform: Callable[[Image.Image], Any]) -> None:
        self.transform = transform

    def __call__(self, picture: Image.Image) -> Tensor:
        return torch.as_tensor(self.transform(picture if picture.mode == "RGB" else picture.convert("RGB")))


def _build_timm(spec: EncoderSpec, *, weights: bool) -> PictureNetwork:
    """A timm network with its classifier off."""
    timm, checkpoint = import_timm(), spec.local_checkpoint()
    if checkpoint is not None:
        _existing(spec, checkpoint)
    from_hub = weights and checkpoint is None
    with torch.device("cpu" if weights else "meta"):
        module = _create(spec, 0, pretrained=from_hub)
    if weights and checkpoint is not None:
        _fill(spec, module, _read_weights(spec, checkpoint))
    own = timm.data.resolve_model_data_config(module)
    picture = PictureInput(
        size=tuple(own["input_size"][1:]) if spec.input_size is None else (spec.input_size, spec.input_size),
        mean=tuple(spec.mean or own["mean"]),
        std=tuple(spec.std or own["std"]),
        interpolation=spec.interpolation or own["interpolation"],
        crop_pct=spec.crop_pct or own["crop_pct"],
        crop_mode=own["crop_mode"],
    )
    return PictureNetwork(_Pooled(module, spec.truncate_dim), picture)


def _create(spec: EncoderSpec, n_classes: int, *, pretrained: bool) -> nn.Module:
    """Call timm's constructor; its complaints become one sentence."""
    name, kwargs = _known_architecture(spec), dict(spec.kwargs)
    if spec.pooling is not None:
        kwargs["global_pool"] = spec.pooling
    if pretrained and spec.revision is not None:
        kwargs["pretrained_cfg_overlay"] = {"hf_hub_id": f"{hub_source(spec)[0]}@{spec.revision}"}
    try:
        module: nn.Module = import_timm().create_model(name, pretrained=pretrained, num_classes=n_classes, **kwargs)
    except Exception as error:  # anything a constructor or a download may raise
        if pretrained and not isinstance(error, TypeError | AssertionError):
            raise FileNotFoundError(
                f"encoder {spec.name!r}: the weights of {name} are not in the hub's local cache and could not be "
                f"fetched ({first_line(error)}); connect once, or declare a local 'checkpoint'"
            ) from None
        given = f" with {kwargs}" if kwargs else ""
        raise ValueError(f"encoder {spec.name!r}: timm cannot build {name}{given}: {first_line(error)}") from None
    return module


def _known_architecture(spec: EncoderSpec) -> str:
    """The architecture, its name and tag known to timm."""
    timm, name = import_timm(), str(spec.architecture)
    base, _, tag = name.partition(".")
    if ":" in name:  # timm's own prefixes, such as hf-hub:
        return name
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"encoder {spec.name!r}: timm knows no architecture {base!r}{hint}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise ValueError(f"encoder {spec.name!r}: timm has no weights {tag!r} of {base}; it has {', '.join(tags)}")
    return name


def _fill(spec: EncoderSpec, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights that must fit, in float32; counters that a conversion dropped stay at zero."""
    state = _without_head(spec, module, state)
    fault = misfit(_shapes(module.state_dict()), _shapes(state))
    if fault is not None:
        raise ValueError(f"encoder {spec.name!r}: {spec.checkpoint} does not fit {spec.architecture}: {fault}")
    module.load_state_dict(state, strict=False)


def _without_head(spec: EncoderSpec, module: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` without what belongs to a classifier, of however many classes."""
    headless = module.state_dict()
    if all(key in headless for key in given):
        return dict(given)
    with torch.device("meta"):
        with_head = _create(spec, 10, pretrained=False).state_dict()
    return {key: value for key, value in given.items() if key in headless or key not in with_head}


def _read_weights(spec: EncoderSpec, path: Path) -> dict[str, Tensor]:
    """A state dict from a file, without running any code in it."""
    _existing(spec, path)
    try:
        state = import_timm().models.load_state_dict(str(path), weights_only=True)  # knows wrappers and averages
    except Exception as error:  # safetensors, zip and pickle each have errors of their own
        raise ValueError(
            f"encoder {spec.name!r}: {path} holds no weights that can be read: {first_line(error)}"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"encoder {spec.name!r}: {path} must hold a state dict of tensors")
    return dict(state)


def _existing(spec: EncoderSpec, path: Path) -> Path:
    """`path`, which must be a file."""
    if not path.is_file():
        raise FileNotFoundError(f"encoder {spec.name!r}: no checkpoint {path}")
    return path


def _shapes(state: Mapping[str, Any]) -> Shapes:
    """Shapes by key; a shape may stand for its tensor."""
    return {key: value if isinstance(value, tuple) else tuple(value.shape) for key, value in state.items()}


def _build_factory(spec: EncoderSpec) -> PictureNetwork:
    """The network that a user's own function returns."""
    module = run_factory(spec)
    if not isinstance(module, nn.Module):
        raise ValueError(f"encoder {spec.name!r}: {spec.factory} must return an nn.Module, got {type(module).__name__}")
    if spec.input_size is None or spec.mean is None or spec.std is None:
        raise ValueError(f"encoder {spec.name!r}: loader 'python' needs input_size, mean and std")
    picture = PictureInput(
        size=(spec.input_size, spec.input_size),
        mean=spec.mean,
        std=spec.std,
        interpolation=spec.interpolation or "bicubic",
        crop_pct=spec.crop_pct or 1.0,
    )
    return PictureNetwork(module if spec.truncate_dim is None else _Truncated(module, spec.truncate_dim), picture)


def import_timm() -> Any:
    """timm; where its import breaks, what to install."""
    mend_torchvision()
    try:
        import timm
        import timm.data
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        refuse_import("timm", error)
    return timm


def mend_torchvision() -> None:
    """Let a torchvision whose binary does not match torch's be imported: nothing here uses its compiled operators.

    Such an installation is common (torch from one index, torchvision from another). Its import stops at describing
    `torchvision::nms` and its like, operators that its binary would have brought; with these declared, but not
    implemented, transforms and models import and work, and calling such an operator is an error as it was.
    """
    for _ in range(_MOST_OPERATORS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the image decoders are missing too
                importlib.import_module("torchvision")
        except ImportError:
            return
        except RuntimeError as error:
            missing = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if missing is None:
                return
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            torch.library.define(missing[1], "(Tensor boxes) -> Tensor")
        else:
            return


def refuse_import(library: str, error: Exception) -> NoReturn:
    """Say in one sentence why `library` cannot be imported and what to install."""
    if "torchvision" in str(error):
        raise ImportError(
            f"{library} needs a torchvision that matches torch {torch.__version__} ({first_line(error)}); install both "
            "from one place: `pip install --force-reinstall torch torchvision`"
        ) from None
    raise ImportError(
        f"{library} cannot be imported ({first_line(error)}); repair it with `pip install --force-reinstall {library}`"
    ) from None


def _few(keys: list[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def describe_input(picture: PictureInput) -> dict[str, Any]:
    """A picture's treatment as plain values, for records and digests."""
    return asdict(picture)


def state_digest(module: nn.Module) -> str:
    """SHA-256 of a network's names, types, shapes and values."""
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
