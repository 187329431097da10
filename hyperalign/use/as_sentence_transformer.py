"""A pair as a folder that sentence-transformers loads: two routes, one for pictures and one for captions.

Everything is made of that library's own modules, so that `SentenceTransformer(folder)` needs neither this package nor
leave to run code: a timm network is one of transformers' own, and what joins the pair is linear. The exception is an
encoder that a factory builds.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Router, Transformer
from torch import Tensor
from transformers import TimmWrapperConfig, TimmWrapperModel

from hyperalign.align.canonical import Canonical
from hyperalign.embed.sentences import quiet
from hyperalign.use.dual import DualEncoder
from hyperalign.use.joint import Joint
from hyperalign.use.probes import hold_against, in_float32, probe_captions, probe_pictures

__all__ = ["affine_of", "write_sentence_transformer"]

Affine = tuple[Tensor, Tensor]


def write_sentence_transformer(folder: Path, model: DualEncoder) -> dict[str, Any]:
    """Write the pair's modules into its folder, load them back and hold their rows against the pair's.

    Args:
        folder: Of the pair.
        model: The pair.

    Returns:
        What the model card says of it.

    Raises:
        ValueError: If sentence-transformers gives other rows.
    """
    own_code = model.image.spec.loader == "python"
    with quiet():
        routes = {"image": _image_modules(folder, model), "text": _text_modules(model)}
        whole = SentenceTransformer(
            modules=[Router(routes, allow_empty_key=False)],
            device="cpu",
            similarity_fn_name="cosine",
            **_prompts(model),
        )
        whole.eval().save(str(folder), create_model_card=False)
        back: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=own_code)
        pictures, captions = probe_pictures(), probe_captions()
        image, text = (back.encode(items, convert_to_tensor=True) for items in (pictures, captions))
    exact = in_float32(model)
    hold_against("sentence-transformers", "pictures", image, exact.encode_image(pictures))
    hold_against("sentence-transformers", "captions", text, exact.encode_text(captions))
    return {"uses": [_use(own_code)]}


def affine_of(joint: Joint, canonical: Canonical | None, *, captions: bool) -> Affine | None:
    """Everything linear between an encoder's rows and the common space as one map, A z + a.

    Args:
        joint: The connector.
        canonical: Of the side; its rows are made unit vectors before this where it says so.
        captions: Whether the connector itself is part of it.

    Returns:
        A (D, width) and a (D,), float32, put together in float64; None where rows are taken as they are.
    """
    matrix, offset = None, None
    if canonical is not None:
        projection = canonical.projection.double()
        matrix = projection.new_zeros(projection.shape[1], canonical.width)
        matrix[:, canonical.features] = projection.T
        offset = -(canonical.mean.double() @ projection)
        n_used = joint.weight.shape[1 if captions else 0]
        matrix, offset = matrix[:n_used], offset[:n_used]
    if captions:
        weight, bias = joint.weight.double(), joint.bias.double()
        matrix = weight if matrix is None else weight @ matrix
        offset = bias if offset is None else weight @ offset + bias
    return None if matrix is None or offset is None else (matrix.float(), offset.float())


def _image_modules(folder: Path, model: DualEncoder) -> list[Any]:
    """The image encoder and what joins it."""
    if model.image.spec.loader == "python":
        from hyperalign.use.picture_module import PictureModule

        first: Any = PictureModule(model.image.spec)
        width = model.image.facts.embed_dim
    else:
        first = _timm_module(folder / ".timm", model)
        width = first.get_embedding_dimension()
    return [first, *_joining(model, model.joint.image, width, captions=False)]


def _text_modules(model: DualEncoder) -> list[Any]:
    """The modules of the text encoder and what joins it."""
    network: Any = model.text.network
    return [*network.children(), *_joining(model, model.joint.text, _network_width(network), captions=True)]


def _network_width(network: Any) -> int:
    """Width of a sentence-transformer's rows before they are truncated."""
    truncated, network.truncate_dim = network.truncate_dim, None
    try:
        return int(network.get_embedding_dimension())
    finally:
        network.truncate_dim = truncated


def _joining(model: DualEncoder, canonical: Canonical | None, width: int, *, captions: bool) -> list[Any]:
    """From rows of `width` to the common space."""
    modules: list[Any] = []
    own = (model.text if captions else model.image).facts.embed_dim
    if own < width:  # the first dimensions alone
        modules.append(_dense((torch.eye(own, width), torch.zeros(own))))
    if canonical is not None and canonical.normalise:
        modules.append(Normalize())
    affine = affine_of(model.joint, canonical, captions=captions)
    if affine is not None:
        modules.append(_dense(affine))
    return [*modules, Normalize()]


def _dense(affine: Affine) -> Any:
    matrix, offset = affine
    height, width = matrix.shape
    return Dense(
        width, height, bias=True, activation_function=torch.nn.Identity(), init_weight=matrix, init_bias=offset
    )


def _timm_module(draft: Path, model: DualEncoder) -> Any:
    """A timm network as transformers wraps it, which finds size and colours of a picture in its configuration."""
    spec, picture = model.image.spec, model.image.picture
    assert picture is not None, "it embeds pictures"
    network: Any = model.image.network
    kwargs = dict(spec.kwargs) | ({} if spec.pooling is None else {"global_pool": spec.pooling})
    state = network.network.state_dict()
    config = TimmWrapperConfig(
        architecture=str(spec.architecture).partition(".")[0],
        model_args=kwargs,
        num_features=network.network(torch.zeros(1, 3, *picture.size, device=model.image.device)).shape[1],
        pretrained_cfg={
            "input_size": [3, *picture.size],
            "mean": list(picture.mean),
            "std": list(picture.std),
            "interpolation": picture.interpolation,
            "crop_pct": picture.crop_pct,
            "crop_mode": picture.crop_mode,
        },
    )
    wrapped = TimmWrapperModel(config)
    wrapped.timm_model.load_state_dict(state)
    try:
        wrapped.eval().save_pretrained(draft)
        return Transformer(
            str(draft),
            modality_config={"image": {"method": "forward", "method_output_name": "pooler_output"}},
            module_output_name="sentence_embedding",
        )
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _prompts(model: DualEncoder) -> dict[str, Any]:
    """What stands before every caption."""
    network: Any = model.text.network
    if model.text.spec.prompt is None:
        return {"prompts": network.prompts, "default_prompt_name": network.default_prompt_name}
    prompt = model.text.spec.prompt
    return {"prompts": dict.fromkeys(("caption", "query", "document"), prompt), "default_prompt_name": "caption"}


def _use(own_code: bool) -> tuple[str, str, str]:
    """How sentence-transformers uses it."""
    options = ", trust_remote_code=True" if own_code else ""
    needs = (
        " (and hyperalign, for the image encoder is built by a factory; read it first):"
        if own_code
        else ", version 6 or later, alone:"
    )
    lines: Sequence[str] = (
        "from PIL import Image",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("FOLDER"{options})',
        'pictures = model.encode([Image.open("photo.jpg").convert("RGB")])',
        'captions = model.encode(["a dog in the snow", "a bowl of soup"])',
        "print(model.similarity(pictures, captions))",
    )
    return f"With sentence-transformers{needs}", "python", "\n".join(lines)
