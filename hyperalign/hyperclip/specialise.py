"""One set of prompts, folded into the image encoder for good: plain weights and a class matrix, nothing else to run.

The encoder is a state dict that timm loads by itself; classes are the rows of a matrix in a file of its own. A picture
is of the class whose row has the largest product with the picture's unit embedding.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from safetensors.torch import save
from torch import Tensor

from hyperalign.embed.samples import clean, cut_short
from hyperalign.hyperclip.normalisation import fold
from hyperalign.hyperclip.stored import Model
from hyperalign.run import write_whole

__all__ = [
    "Specialised",
    "check_prompts",
    "class_rows",
    "read_prompts",
    "refuse_overwriting",
    "specialise",
    "write_specialised",
]

_AT_ONCE = 256  # captions embedded at a time
_FILES = ("encoder.safetensors", "classes.safetensors", "specialised.json")


class Specialised(NamedTuple):
    """An image encoder for one set of prompts.

    Attributes:
        state: Its state dict, scales and biases folded in.
        classes: (K, D), unit rows, one a prompt, in the order of the prompts.
        logit_scale: Of SigLIP.
        logit_bias: Of SigLIP.
    """

    state: dict[str, Tensor]
    classes: Tensor
    logit_scale: float
    logit_bias: float


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; empty lines do not count.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no text, holds no prompt, or one twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give a text file with one prompt a line")
    try:
        lines = [clean(line) for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8; give a text file with one prompt a line") from None
    prompts = [line for line in lines if line]
    check_prompts(prompts, f"{path}")
    return prompts


def check_prompts(prompts: Sequence[str], where: str) -> None:
    """Refuse an empty list, and a prompt that stands twice."""
    if not prompts:
        raise ValueError(f"{where} holds no prompt; write at least one, one a line")
    seen = set[str]()
    for prompt in prompts:
        if prompt in seen:
            raise ValueError(
                f"{where} holds the prompt {cut_short(prompt)!r} twice, and a class needs a row of its own; remove one"
            )
        seen.add(prompt)


@torch.inference_mode()
def class_rows(model: Model, class_names: Sequence[str], templates: Sequence[str] = ("{}",)) -> Tensor:
    """(K, D) unit rows of classes: the mean of a class's prompts, one for each template.

    Prompts are embedded in the order of the alphabet, so that a row is the same to the last bit wherever its class
    stands.

    Args:
        model: Its text side is used.
        class_names: K names, in any order.
        templates: Each with one gap, `{}`.
    """
    filled = [[template.replace("{}", name) for template in templates] for name in class_names]
    prompts = sorted({prompt for group in filled for prompt in group})
    device = model.network.logit_bias.device
    blocks = [
        model.network.embed_captions(model.captions(prompts[start : start + _AT_ONCE]).to(device))
        for start in range(0, len(prompts), _AT_ONCE)
    ]
    rows, place = torch.cat(blocks), {prompt: number for number, prompt in enumerate(prompts)}
    return F.normalize(torch.stack([rows[[place[prompt] for prompt in group]].mean(0) for group in filled]), dim=-1)


@torch.inference_mode()
def specialise(model: Model, prompts: Sequence[str], templates: Sequence[str] = ("{}",)) -> Specialised:
    """Emit scales and biases for a set of prompts and fold them into the image encoder.

    Args:
        model: In evaluation mode; it is left as it is. Without a hypernetwork its encoder is copied.
        prompts: At least one, none twice; the encoder does not depend on their order.
        templates: Each with one gap, `{}`, that a prompt fills.

    Raises:
        ValueError: If there is no prompt, or one stands twice.
    """
    check_prompts(prompts, "the list")
    classes = class_rows(model, prompts, templates)
    network = model.network
    return Specialised(
        {name: tensor.cpu() for name, tensor in fold(network.image, network.emit(classes)).items()},
        classes.cpu(),
        float(network.log_logit_scale.exp()),
        float(network.logit_bias),
    )


def write_specialised(
    out: Path, made: Specialised, model: Model, prompts: Sequence[str], templates: Sequence[str]
) -> Path:
    """Write the encoder, the class matrix and a page of how to load them.

    Args:
        out: Folder; made if it is not there. Nothing in it is overwritten.
        made: From `specialise`.
        model: Where it came from.
        prompts: In the order of the class matrix.
        templates: That the prompts filled.

    Raises:
        ValueError: If the folder holds one of the files already.
    """
    refuse_overwriting(out)
    out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in made.state.items()}
    write_whole(out / _FILES[0], save(state, metadata={"hyperalign": json.dumps(_how_to_build(model))}))
    matrix = {
        "classes": made.classes,
        "logit_scale": torch.tensor(made.logit_scale),
        "logit_bias": torch.tensor(made.logit_bias),
    }
    write_whole(out / _FILES[1], save({name: tensor.contiguous() for name, tensor in matrix.items()}))
    page = {
        **_how_to_build(model),
        "prompts": list(prompts),
        "templates": list(templates),
        "input": asdict(model.picture),
    }
    write_whole(out / _FILES[2], (json.dumps(page, indent=2, ensure_ascii=False) + "\n").encode())
    return out


def refuse_overwriting(out: Path) -> None:
    """Refuse a folder that holds a specialised encoder already, before anything is computed."""
    for name in _FILES:
        if (out / name).exists():
            raise ValueError(
                f"{out} holds {name} already, and nothing is overwritten; choose another folder with --out"
            )


def _how_to_build(model: Model) -> dict[str, Any]:
    """What timm, or whoever has the factory, needs to build the network again."""
    spec = model.record.image
    n_classes = model.record.embed_dim if model.record.head else 0
    if spec.loader == "python":
        return {"factory": str(spec.factory), "kwargs": dict(spec.kwargs), "num_classes": n_classes}
    kwargs = dict(spec.kwargs) | ({} if spec.pooling is None else {"global_pool": spec.pooling})
    return {"architecture": str(spec.architecture).partition(".")[0], "num_classes": n_classes, "kwargs": kwargs}
