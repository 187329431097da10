"""A pair as two ONNX graphs, pictures and captions, with the tokenizer and what is done to a picture beside them.

Normalisation, pooling and connector are inside the graphs, and so are zeros for captions of unknown words. Both are
run in onnxruntime before the folder is finished.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hyperalign.embed.networks import first_line
from hyperalign.embed.sentences import quiet
from hyperalign.run import write_whole
from hyperalign.use.dual import DualEncoder
from hyperalign.use.joint import Joint, join_images, join_texts
from hyperalign.use.probes import hold_against, in_float32, probe_captions, probe_pictures

__all__ = ["Recurrent", "write_onnx"]

_ANY = torch.export.Dim.DYNAMIC
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def write_onnx(folder: Path, model: DualEncoder) -> dict[str, Any]:
    """Write both sides of a pair as ONNX and hold what onnxruntime makes of them against the pair.

    Args:
        folder: Of the pair; gets `image.onnx`, `text.onnx`, `preprocess.json` and `tokenizer/`.
        model: The pair, on the CPU.

    Returns:
        What the model card says of it.

    Raises:
        ValueError: If an encoder cannot be traced, or onnxruntime gives other rows.
    """
    exact = in_float32(model)
    assert exact.image.picture is not None, "it embeds pictures"
    pictures, captions = probe_pictures(), probe_captions()
    pixels = torch.stack([exact.image.preprocess(picture) for picture in pictures])
    _trace(exact.image.spec.name, _Pictures(exact), {"pixels": pixels[:2]}, folder / "image.onnx", "image_embeds")
    found = _run(folder / "image.onnx", {"pixels": pixels.numpy()})
    worst = [hold_against("onnxruntime", "pictures", found, exact.encode_image(pictures))]

    side = _Captions(exact)
    with quiet():
        names = list(side.tokens(captions[:2]))
        _trace(exact.text.spec.name, side, side.tokens(captions[:2]), folder / "text.onnx", "text_embeds")
    for batch in (captions, captions[:1]):
        tokens = {name: tensor.numpy() for name, tensor in side.tokens(batch).items()}
        worst.append(
            hold_against("onnxruntime", "captions", _run(folder / "text.onnx", tokens), exact.encode_text(batch))
        )

    _save_tokenizer(side.network, folder / "tokenizer")
    picture = {key: value for key, value in asdict(exact.image.picture).items() if key not in ("mean", "std")}
    treatment = {**picture, "prompt": side.prompt, "max_tokens": side.most}
    write_whole(folder / "preprocess.json", json.dumps(treatment, indent=2).encode())
    n_probes = f"{len(pictures)} + {len(captions)}"
    about = {"text_inputs": names, "onnx_error": f"{max(worst):.1e}", "n_probes": n_probes}
    return {**about, "uses": [_use(names, side)]}


class _Pictures(nn.Module):
    """(B, 3, H, W) bytes → (B, D) unit rows."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        assert model.image.picture is not None, "it embeds pictures"
        self.network, self.joint = model.image.network, model.joint
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(model.image.picture, name)).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return join_images(self.joint, self.network((pixels.float() / 255 - self.mean) / self.std))


class _Captions(nn.Module):
    """Padded tokens (B, L) and their mask → (B, D) unit rows."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.network = model.text.network
        kinds = [type(step).__name__ for step in self.network.children()]
        self.steps = nn.ModuleList(
            Recurrent(step) if kind == "LSTM" else step
            for kind, step in zip(kinds, self.network.children(), strict=True)
        )
        self.joint: Joint = model.joint
        self.width = model.text.facts.embed_dim
        self.static = kinds[0] == "StaticEmbedding"
        if not self.static and kinds[0] not in ("Transformer", "WordEmbeddings"):
            raise ValueError(
                f"encoder {model.text.spec.name!r} begins with {kinds[0]}, and ONNX takes transformers, static and "
                "word embeddings; export without --format, or for sentence-transformers"
            )
        network: Any = model.text.network
        default = network.prompts.get(network.default_prompt_name) or ""
        self.prompt = str(default if model.text.spec.prompt is None else model.text.spec.prompt)
        limit = network.max_seq_length
        self.most = int(limit) if limit is not None and limit < float("inf") else None

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What the graph takes."""
        if not self.static:
            found = self.steps[0].preprocess([self.prompt + caption for caption in captions])  # type: ignore[operator]
            return {name: found[name] for name in _TEXT_INPUTS if name in found}
        tokenizer: Any = self.steps[0].tokenizer
        every = [
            one.ids for one in tokenizer.encode_batch([self.prompt + one for one in captions], add_special_tokens=False)
        ]
        ids = torch.zeros(len(every), max(1, *map(len, every)), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, own in enumerate(every):
            ids[row, : len(own)] = torch.tensor(own, dtype=torch.int64)
            mask[row, : len(own)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        features: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            features["token_type_ids"] = token_type_ids
        for number, step in enumerate(self.steps):
            features = self._mean(features) if self.static and number == 0 else step(features)
        return join_texts(self.joint, features["sentence_embedding"][:, : self.width])

    def _mean(self, features: dict[str, Any]) -> dict[str, Any]:
        """Mean row of the tokens, zeros where there is none, as an embedding bag gives it."""
        table: Tensor = self.steps[0].embedding.weight  # type: ignore[union-attr,assignment]
        mask = features["attention_mask"].unsqueeze(2).float()
        total = (nn.functional.embedding(features["input_ids"], table) * mask).sum(1)
        return {**features, "sentence_embedding": total / mask.sum(1).clamp_min(1)}


class Recurrent(nn.Module):
    """An LSTM over padded tokens (B, L), which gives what packed ones give; ONNX has no packed ones.

    Read backwards, a caption begins at its own last token and not at the padding: its tokens are turned around within
    its length, and what is made of them is turned back.
    """

    def __init__(self, step: Any) -> None:
        """The layers of an LSTM of sentence-transformers, a network for each direction."""
        super().__init__()
        source, self.layers = step.encoder, nn.ModuleList()
        for layer in range(source.num_layers):
            ways = [f"_l{layer}", f"_l{layer}_reverse"][: 1 + source.bidirectional]
            self.layers.append(nn.ModuleList(_one_way(source, way) for way in ways))

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """States (B, L, D) of the tokens; those of the padding mean nothing."""
        states: Tensor = features["token_embeddings"]
        lengths = features["attention_mask"].sum(1, keepdim=True)
        places = torch.arange(states.shape[1], device=states.device).unsqueeze(0)
        turned = torch.where(places < lengths, lengths - 1 - places, places)
        for layer in self.layers:
            there, *back = cast("nn.ModuleList", layer)
            made = [there(states)[0], *(_turn(one(_turn(states, turned))[0], turned) for one in back)]
            states = torch.cat(made, dim=2)
        return {**features, "token_embeddings": states}


def _one_way(source: nn.LSTM, way: str) -> nn.LSTM:
    """One layer of an LSTM in one direction."""
    weights = {
        f"{kind}_l0": getattr(source, f"{kind}{way}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    one = nn.LSTM(weights["weight_ih_l0"].shape[1], source.hidden_size, batch_first=True)
    one.load_state_dict(weights)
    return one


def _turn(states: Tensor, places: Tensor) -> Tensor:
    """(B, L, D) states in another order of each caption's tokens, (B, L)."""
    return states.gather(1, places.unsqueeze(2).expand(-1, -1, states.shape[2]))


def _trace(name: str, module: nn.Module, given: Mapping[str, Tensor], path: Path, output: str) -> None:
    """Write a module as ONNX, any number of items at a time and captions of any length."""
    shapes = {key: {axis: _ANY for axis in range(2 if key != "pixels" else 1)} for key in given}
    try:
        with _silent():
            program = torch.onnx.export(
                module.eval(),
                tuple(given.values()),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(given),
                output_names=[output],
                verbose=False,
            )
            assert program is not None, "asked for by dynamo"
            program.save(str(path))
    except Exception as error:  # what cannot be traced fails in any way it likes
        cause = error
        while isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        raise ValueError(
            f"encoder {name!r} cannot be written as ONNX ({type(cause).__name__}: {first_line(cause)}); export without "
            "--format"
        ) from None


def _run(path: Path, given: Mapping[str, NDArray[Any]]) -> Tensor:
    """What onnxruntime makes of some items."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {one.name for one in session.get_inputs()}
    rows = session.run(None, {name: array for name, array in given.items() if name in wanted})[0]
    return torch.from_numpy(np.asarray(rows))


def _save_tokenizer(network: Any, folder: Path) -> None:
    """The tokenizer alone."""
    folder.mkdir()
    tokenizer = network[0].tokenizer
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(str(folder))
    elif hasattr(tokenizer, "encode_batch"):
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        tokenizer.save(str(folder))


def _use(names: Sequence[str], side: _Captions) -> tuple[str, str, str]:
    """How onnxruntime uses it."""
    prompt = f"{side.prompt!r} + " if side.prompt else ""
    words = f'{prompt}"a dog in the snow"'
    if hasattr(side.steps[0].tokenizer, "tokenize") and not hasattr(side.steps[0].tokenizer, "save_pretrained"):
        tokenizing = [
            "from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer",
            "",
            f'ids = WhitespaceTokenizer.load("FOLDER/tokenizer").tokenize({words})',
        ]
    else:
        tokenizing = [
            "from tokenizers import Tokenizer",
            "",
            'tokenizer = Tokenizer.from_file("FOLDER/tokenizer/tokenizer.json")',
            *([f"tokenizer.enable_truncation({side.most})"] if side.most and not side.static else []),
            f"ids = tokenizer.encode({words}{', add_special_tokens=False' if side.static else ''}).ids",
        ]
    lines = [
        "import numpy, onnxruntime",
        "from PIL import Image",
        *tokenizing,
        "tokens = numpy.array([ids])",
        'text = onnxruntime.InferenceSession("FOLDER/text.onnx")',
        'given = {"input_ids": tokens, "attention_mask": numpy.ones_like(tokens)}',
        *(['given["token_type_ids"] = numpy.zeros_like(tokens)'] if "token_type_ids" in names else []),
        "wanted = [one.name for one in text.get_inputs()]",
        "captions = text.run(None, {name: given[name] for name in wanted})[0]",
        "",
        "# resize the shorter side to size / crop_pct, cut out the centre: see FOLDER/preprocess.json",
        'image = onnxruntime.InferenceSession("FOLDER/image.onnx")',
        "height, width = image.get_inputs()[0].shape[2:]",
        'picture = Image.open("photo.jpg").convert("RGB").resize((width, height))',
        "pixels = numpy.asarray(picture).transpose(2, 0, 1)[None]",
        'pictures = image.run(None, {"pixels": pixels})[0]',
        "print(pictures @ captions.T)",
    ]
    return "With onnxruntime:", "python", "\n".join(lines)


@contextmanager
def _silent() -> Iterator[None]:
    """No remarks from the exporter: only the command line prints."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
