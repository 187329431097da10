"""Image encoders that HyperCLIP trains: the eight of the paper by name, any other timm network, or a user's own.

The eight are entries of the shipped zoo `hyperclip`; here stand their names in the paper and the bottleneck that the
paper gives each one's hypernetwork. With a head of 512 numbers, built by timm 1.0.31 (the paper's count in brackets):

    name  timm                   parameters  adapted  (paper)   layers     input  bottleneck
    B0    efficientnet_b0         4,663,420   42,016  (42.1 K)  BN           224         285
    B1    efficientnet_b1         7,169,056   62,048  (62.1 K)  BN           240         193
    B2    efficientnet_b2         8,422,402   67,568  (67.6 K)  BN           260         177
    M0    mobilenetv3_large_100   4,857,904   24,400  (24.4 K)  BN           224         491
    M1    mobilenetv3_small_100   2,042,656   12,112  (12.1 K)  BN           224         577
    T0    tinynet_d               1,713,318   17,808  (17.1 K)  BN           152         512
    E0    edgenext_small_rw       7,638,632    8,832   (8.8 K)  LN           320         256
    V0    mobilevitv2_100         4,651,497   23,872  (15.5 K)  BN and GN    224         512

Two counts are not the paper's. V0's 15.5 K are its BatchNorm layers alone (15,552 here); the 21 GroupNorm layers of its
attention blocks add 8,320, and since the paper lists V0 as BN&GN both are adapted here. T0's 17.1 K is
unexplained: it is 708 short, 4 %, of the 34 BatchNorm layers of timm's network. Neither one layer nor all layers of one
place in the blocks make up the difference; two layers do in 20 ways, none with a reason. Other roundings of widths and
of depths, a stem that is scaled and other widths of the last layer give 16.2 to 21.6 K and never 17.1; of 138 other
widths and depths one does, with 1.51 M parameters. The digits are those of the network's 1.71 M parameters, which may
be a slip. All of its layers are adapted.
"""

import difflib
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from hyperalign.embed.networks import PictureInput, build_network, first_line, import_timm
from hyperalign.embed.zoo import EncoderSpec, load_zoo

__all__ = ["BOTTLENECKS", "NAMES", "ImageMap", "build_encoder", "find_architecture", "picture_of", "set_head"]

BOTTLENECKS: Final = {"B0": 285, "B1": 193, "B2": 177, "M0": 491, "M1": 577, "T0": 512, "E0": 256, "V0": 512}
NAMES: Final = tuple(BOTTLENECKS)


class ImageMap(NamedTuple):
    """A linear map behind an image encoder, z → W z + b.

    Attributes:
        weight: (D, D_img)
        bias: (D,)
    """

    weight: Tensor
    bias: Tensor


def find_architecture(name: str, *, input_size: int | None = None) -> EncoderSpec:
    """One of the eight by its name in the paper, or any network of timm by its own.

    Args:
        name: "B0" to "V0" in either case, or a timm name; a tag behind it loads weights from the hub.
        input_size: Height and width of the picture; None for the paper's, or for the network's own.

    Raises:
        KeyError: If nothing is called so; near names are offered.
    """
    if name.upper() in BOTTLENECKS:
        (spec,) = (one for one in load_zoo("hyperclip") if one.name == f"hyperclip-{name.lower()}")
        return spec if input_size is None else replace(spec, input_size=input_size)
    timm = import_timm()
    base = name.partition(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, [*NAMES, *timm.list_models()], n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else f"; there are {', '.join(NAMES)} and timm's names"
        raise KeyError(f"no architecture {name!r}{hint}")
    return EncoderSpec(name=name, modality="image", loader="timm", architecture=name, input_size=input_size)


def build_encoder(spec: EncoderSpec, embed_dim: int | None) -> nn.Module:
    """The network of an encoder without trained weights: (B, 3, H, W) → (B, D), ready to be trained or filled.

    Args:
        spec: Of loader "timm" or "python".
        embed_dim: Width of its head; None for no head, its pooled embedding.
    """
    if spec.loader == "python":
        network = build_network(replace(spec, truncate_dim=None)).module
        return _with_head(network.requires_grad_(True), embed_dim, spec.input_size)
    kwargs = dict(spec.kwargs) | ({} if spec.pooling is None else {"global_pool": spec.pooling})
    try:
        module: nn.Module = import_timm().create_model(
            str(spec.architecture), pretrained=False, num_classes=embed_dim or 0, **kwargs
        )
    except Exception as error:  # anything a constructor may raise
        raise ValueError(f"encoder {spec.name!r}: timm cannot build {spec.architecture}: {first_line(error)}") from None
    return module


def _with_head(network: nn.Module, embed_dim: int | None, input_size: int | None) -> nn.Module:
    """A user's own network with a linear head behind it."""
    if embed_dim is None:
        return network
    side = input_size or 224
    with torch.no_grad():
        width = network.eval()(torch.zeros(1, 3, side, side)).shape[1]
    return nn.Sequential(OrderedDict(encoder=network, head=nn.Linear(width, embed_dim)))


def set_head(network: nn.Module, image_map: ImageMap) -> None:
    """Write a map into the head of a network that `build_encoder` has made."""
    head: Any = network.head if isinstance(network, nn.Sequential) else network.get_classifier()  # type: ignore[operator]
    if not isinstance(head, nn.Linear | nn.Conv2d) or head.bias is None:
        raise ValueError(f"{type(network).__name__} has no linear head that a connector could be written into")
    weight = image_map.weight
    with torch.no_grad():
        head.weight.zero_()
        head.weight.view(len(weight), -1)[:, : weight.shape[1]] = weight  # an encoder's first dimensions, or all
        head.bias.copy_(image_map.bias)


def picture_of(spec: EncoderSpec) -> PictureInput:
    """The picture that an encoder wants, without its weights."""
    return build_network(spec, weights=False).picture
