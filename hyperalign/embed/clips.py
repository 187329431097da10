"""Models of open_clip, whose two sides were trained together: each side by itself as an encoder.

They are no candidates, for nothing is left to join; what they reach is a ceiling for the pairs. Weights come from a
local file and are read without running code.
"""

from typing import Any

from torch import nn

from hyperalign.embed.zoo import EncoderSpec

__all__ = ["build_clip", "build_clip_captions", "build_clip_pictures"]

_CROPS = {"shortest": "center", "longest": "border", "squash": "squash"}  # timm's words for open_clip's


def build_clip(spec: EncoderSpec, *, weights: bool = True) -> Any:
    """The whole model of an encoder of loader "open-clip", on the CPU in float32.

    Raises:
        ImportError: If open_clip is not installed.
        FileNotFoundError: If the checkpoint is not there.
        ValueError: If open_clip cannot build the model of it.
    """
    try:
        import open_clip
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise ImportError(
            f"encoder {spec.name!r} needs open_clip ({error}); `pip install 'hyperalign[open-clip]'`"
        ) from None
    path = spec.local_checkpoint()
    if weights and (path is None or not path.is_file()):
        raise FileNotFoundError(f"encoder {spec.name!r}: no checkpoint {path}; open_clip's own download can fetch one")
    try:
        model = open_clip.create_model(
            str(spec.architecture),
            pretrained=str(path) if weights else None,
            load_weights=weights,
            pretrained_text=False,
            weights_only=True,
        )
    except Exception as error:  # of whatever kind the library, torch and the file have
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"encoder {spec.name!r}: open_clip cannot build {spec.architecture} of {path}: {lines[0][:300]}"
        ) from None
    return model.float().eval()


def build_clip_pictures(spec: EncoderSpec, *, weights: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    """The picture side, (B, 3, H, W) → (B, D), and the fields of a `PictureInput`."""
    visual = build_clip(spec, weights=weights).visual
    own = visual.preprocess_cfg
    size = own["size"] if isinstance(own["size"], list | tuple) else (own["size"], own["size"])
    return visual, {
        "size": tuple(size),
        "mean": tuple(own["mean"]),
        "std": tuple(own["std"]),
        "interpolation": own["interpolation"],
        "crop_pct": 1.0,
        "crop_mode": _CROPS[own.get("resize_mode", "shortest")],
    }


def build_clip_captions(spec: EncoderSpec) -> tuple[Any, Any]:
    """The caption side, a model with `encode_text`, and its tokenizer: captions → (B, L) tokens."""
    import open_clip

    model = build_clip(spec)
    model.visual = nn.Identity()  # the other side's weights
    return model, open_clip.get_tokenizer(str(spec.architecture))
