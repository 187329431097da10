"""Where adapting begins: the winner of a finished run, its connector written into the two sides of a model.

HyperCLIP adapts normalisation layers, so a winner without any gives way to the best pair whose image encoder has them.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperalign.align.canonical import Canonical
from hyperalign.align.solution import Solution
from hyperalign.config import build
from hyperalign.embed.consent import UntrustedError
from hyperalign.embed.identity import pin, settle
from hyperalign.embed.networks import build_network
from hyperalign.embed.pictures import Pictures
from hyperalign.embed.zoo import EncoderSpec, find_encoder, load_zoos
from hyperalign.hyperclip.architectures import ImageMap, build_encoder, set_head
from hyperalign.hyperclip.hypernetwork import HyperConfig
from hyperalign.hyperclip.normalisation import find_adapted
from hyperalign.hyperclip.stored import Model, ModelRecord, build_model
from hyperalign.kept import best_row, note_of, read_notes, undamaged
from hyperalign.packing import unpack
from hyperalign.request import SearchConfig
from hyperalign.run import Run, load_run, load_tensors

__all__ = ["Winner", "find_winner", "start_model"]

Say = Callable[[str], None]

_N_PICTURES = 256  # that the length of a row is taken from


class Winner(NamedTuple):
    """A pair of a run, ready to be trained on.

    Attributes:
        image: Image encoder.
        text: Text encoder, which stays frozen.
        text_dim: Width of its rows.
        embed_dim: Width D in which the two meet.
        text_map: Captions' rows → D.
        unit_rows: Whether captions' rows are made unit vectors first.
        image_map: Pictures' rows → D; None where they are taken as they are.
        unit_images: Whether the connector wants the pictures' rows as unit vectors.
        config: What the run was asked for.
    """

    image: EncoderSpec
    text: EncoderSpec
    text_dim: int
    embed_dim: int
    text_map: ImageMap
    unit_rows: bool
    image_map: ImageMap | None
    unit_images: bool
    config: SearchConfig

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.image.name}+{self.text.name}"


def find_winner(path: Path, *, pair: str | None, cache_dir: Path, say: Say) -> Winner:
    """The first pair of a run whose image encoder has normalisation layers, or the pair that is asked for.

    Args:
        path: Folder of a finished run.
        pair: "IMAGE+TEXT"; None for the best that can be adapted.
        cache_dir: Where facts about encoders are remembered.
        say: Told which pairs give way, and why.

    Raises:
        FileNotFoundError: If the folder is no run.
        KeyError: If the run has no such pair.
        ValueError: If the run is not finished, or no pair of it can be adapted.
    """
    run = load_run(path)
    config = build(SearchConfig, run.result["configuration"])
    more = [source for record in run.result.get("adopted", []) for source in record["zoo"]]
    zoo = load_zoos(list(dict.fromkeys([*config.zoo, *more])))
    with undamaged(path):
        places = _kept_connectors(run)
    order = _order(run)
    if pair is not None:
        if pair not in order:
            raise KeyError(f"no pair {pair!r} in {path}; the best are {', '.join(order[:3])}")
        if pair not in places:
            raise ValueError(f"{path} has kept the connectors of its first pairs only: {', '.join(places)}; name one")
    for name in [name for name in order if name in places] if pair is None else [pair]:
        image, text = (settle(find_encoder(zoo, one), memory=cache_dir) for one in name.split("+"))
        fault = _fault(image)
        if fault is None:
            return _winner(pin(image, memory=cache_dir), pin(text, memory=cache_dir), *places[name], config)
        say(f"{name} gives way: {fault}")
    raise ValueError(f"no pair of {path} whose connector is kept can be adapted; search among other encoders")


def start_model(winner: Winner, pictures: Pictures, hyper: HyperConfig | None) -> Model:
    """A model that begins as the winner is: its weights, and its connector on both sides.

    Where the connector wants the pictures' rows as unit vectors, a head of plain weights can only divide them by their
    mean length; training starts a little beside the winner there.

    Args:
        winner: From `find_winner`.
        pictures: Some that the image encoder is made for.
        hyper: Shape of the hypernetwork; None for the baseline.
    """
    record = ModelRecord(
        image=winner.image,
        embed_dim=winner.embed_dim,
        head=winner.image_map is not None,
        hyper=hyper,
        text=winner.text,
        text_dim=winner.text_dim,
        unit_rows=winner.unit_rows,
    )
    model = build_model(record, None)
    network = model.network
    if winner.image.loader == "timm":
        trained: Any = build_network(replace(winner.image, truncate_dim=None)).module
        network.image.load_state_dict(trained.network.state_dict(), strict=False)  # the head is not among them
    if winner.image_map is not None:
        length = _mean_length(winner.image, model, pictures) if winner.unit_images else 1.0
        set_head(network.image, ImageMap(winner.image_map.weight / length, winner.image_map.bias))
    with torch.no_grad():
        text: Any = network.text
        text.weight.copy_(winner.text_map.weight)
        text.bias.copy_(winner.text_map.bias)
    network.eval()
    return model


def _order(run: Run) -> list[str]:
    """Names of the pairs of the method that answers, by position."""
    board = run.leaderboard
    own = board[board["method"] == run.result["method"]].sort_values("position", kind="stable")
    return list(dict.fromkeys(f"{i}+{t}" for i, t in zip(own["image_encoder"], own["text_encoder"], strict=True)))


def _kept_connectors(run: Run) -> dict[str, tuple[Solution, int]]:
    """By pair the connector that a run has kept and that validates best, and where it stands in its solution."""
    board, notes = run.leaderboard, read_notes(run)
    rows = board[board["method"] == run.result["method"]]
    answers = rows.iloc[0]
    rows = rows[(rows["sides"] == answers["sides"]) & (rows["seed"] == answers["seed"])]
    rows = rows.set_index(["image_encoder", "text_encoder"], drop=False)
    mine = (answers["method"], answers["sides"], answers["seed"])
    tensors, solutions = load_tensors(run.path / "connectors.safetensors"), dict[str, Solution]()
    kept = {}
    for pair in dict.fromkeys(pair for note in notes[::-1] if note.whose == mine for pair in note.pairs):
        note = note_of(notes, best_row(run, dict(rows.loc[pair]), notes))
        assert note is not None, "the connector of the method that answers was kept"
        if note.prefix not in solutions:
            solutions[note.prefix] = unpack(note.own(tensors), note.record)
        kept["+".join(pair)] = solutions[note.prefix], note.pairs.index(pair)
    if not kept:
        raise ValueError(f"{run.path} does not say whose its connectors are; search again")
    return kept


def _fault(image: EncoderSpec) -> str | None:
    """Why an image encoder cannot be adapted; None where it can."""
    if image.loader == "rows":
        return "its image encoder is a file of rows, and there is no network to adapt"
    try:
        with torch.device("meta" if image.loader == "timm" else "cpu"):
            find_adapted(build_encoder(image, None))
    except UntrustedError:
        raise
    except ValueError as error:
        return f"its image encoder {image.name} {str(error).partition(' ')[2].partition(';')[0]}"
    return None


def _winner(image: EncoderSpec, text: EncoderSpec, solution: Solution, number: int, config: SearchConfig) -> Winner:
    """The maps of a pair's two sides, in the encoders' own coordinates."""
    i, j = solution.pairs[number]
    weight, bias = solution.weights[number].float(), solution.biases[number].float()
    image_way, text_way = (side[k] if side else None for side, k in ((solution.images, i), (solution.texts, j)))
    if text_way is not None:
        own = _linear(text_way, weight.shape[1])
        bias, weight = bias + weight @ own.bias, weight @ own.weight
    image_map = None if image_way is None else _linear(image_way, len(weight))
    if image_map is None and image.truncate_dim is not None:
        image_map = ImageMap(torch.eye(len(weight)), torch.zeros(len(weight)))
    return Winner(
        image=image,
        text=text,
        text_dim=weight.shape[1],
        embed_dim=len(weight),
        text_map=ImageMap(weight, bias),
        unit_rows=text_way is not None and text_way.normalise,
        image_map=image_map,
        unit_images=image_way is not None and image_way.normalise,
        config=config,
    )


def _linear(way: Canonical, rank: int) -> ImageMap:
    """The way to the first canonical coordinates, those that a connector uses, as one linear map of whole rows."""
    projection = way.projection[:, :rank].float()
    weight = torch.zeros(projection.shape[1], way.width)
    weight[:, way.features] = projection.T
    return ImageMap(weight, -(way.mean.float() @ projection))


def _mean_length(image: EncoderSpec, model: Model, pictures: Pictures) -> float:
    """Mean length of the rows that an image encoder gives before any head."""
    from hyperalign.embed.encoders import embed_pictures, load_encoder

    encoder = load_encoder(image, device="cpu")
    rows, _ = embed_pictures(encoder, pictures, 0, min(_N_PICTURES, len(pictures)))
    lengths: Tensor = torch.from_numpy(rows).norm(dim=1)
    found = lengths[lengths.isfinite()]
    return float(found.mean()) if len(found) and float(found.mean()) > 0 else 1.0
