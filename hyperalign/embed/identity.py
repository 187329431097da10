"""What an encoder is and what it needs, told without building it wherever that can be known.

Local weights are known by their bytes, hub weights by their commit. What only building can tell is
remembered, so a second run imports neither timm nor sentence-transformers. Everything that can change
an embedding changes the identity.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from hyperalign.embed.memory import file_digests, keep, recall, stamp
from hyperalign.embed.zoo import EncoderSpec, Facts, complete

__all__ = ["Identity", "facts", "files_in_use", "identity", "is_pinned", "pin", "settle", "weights_digest"]

_OWN = ("input_size", "mean", "std", "interpolation", "crop_pct")
_DECLARED = {
    "name",
    "embed_dim",
    "n_params",
    "gflops",
    "license",
    "folder",
}  # what an encoder is does not follow from it
_WEIGHTS = {".safetensors", ".pt", ".pth", ".bin", ".npz", ".npy", ".onnx", ".ckpt", ".h5", ".json", ".py"}
_UNUSED = {"onnx", "openvino"}  # other forms of the same weights
_OTHER_FORMS = {"pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Everything about an encoder that can change an embedding; the names are those of a cache key.

    Attributes:
        weights: Hash of the weights and of how the network is built around them.
        revision: Commit of hub weights; empty for local ones.
        preprocess: What is done to a picture, and bfloat16 where it is computed so.
        pooling: How tokens or positions become one row, and how many dimensions are kept.
        prompt: What stands before every caption, quoted; empty is the model's own.
    """

    weights: str
    revision: str
    preprocess: str
    pooling: str
    prompt: str


def identity(spec: EncoderSpec, *, memory: Path | None, autocast: bool = False) -> Identity:
    """What the rows of `spec` depend on.

    Args:
        spec: Of any loader.
        memory: Where facts are kept between runs; None forgets.
        autocast: Whether rows are computed in bfloat16.
    """
    revision = _revision(spec, memory)
    code = "" if spec.factory is None else hashlib.sha256(_factory_file(spec).read_bytes()).hexdigest()
    network = (spec.loader, spec.architecture, spec.factory, code, dict(spec.kwargs))
    treatment: dict[str, Any] = _picture(spec, memory)
    if autocast:
        treatment["autocast"] = "bfloat16"
    pooling = {"pooling": spec.pooling, "truncate_dim": spec.truncate_dim}
    return Identity(
        weights=_digest([*network, weights_digest(spec, memory=memory)]),
        revision=revision,
        preprocess=_words(treatment),
        pooling=_words({key: value for key, value in pooling.items() if value is not None}),
        prompt="" if spec.prompt is None else json.dumps(spec.prompt),
    )


def facts(spec: EncoderSpec, *, memory: Path | None) -> Facts:
    """Width, parameters and cost: declared, else remembered, else measured by building the encoder, and remembered.

    The cost of a text encoder on the hub stays unknown until it is declared: measuring it would download the weights.
    """
    on_hub = spec.loader == "sentence-transformers" and spec.checkpoint is None
    if spec.embed_dim is not None and spec.n_params is not None and (spec.gflops is not None or on_hub):
        return Facts(spec.embed_dim, spec.n_params, spec.gflops)
    probed = _probed(spec, memory)
    return Facts(
        embed_dim=probed["embed_dim"] if spec.embed_dim is None else spec.embed_dim,
        n_params=probed["n_params"] if spec.n_params is None else spec.n_params,
        gflops=probed["gflops"] if spec.gflops is None else spec.gflops,
    )


def is_pinned(spec: EncoderSpec, *, memory: Path | None) -> bool:
    """Whether the commit of its weights is known without asking the hub, or it has none."""
    on_hub = spec.loader in ("timm", "sentence-transformers") and spec.checkpoint is None
    return spec.revision is not None or not on_hub or "commit" in recall(memory, _about_commit(spec))


def settle(spec: EncoderSpec, *, memory: Path | None) -> EncoderSpec:
    """`spec` with its facts known, so that every limit can be held against it."""
    return complete(spec, facts(spec, memory=memory))


def pin(spec: EncoderSpec, *, memory: Path | None) -> EncoderSpec:
    """`spec` with the commit of its hub weights, so that what is loaded is what its identity says."""
    return replace(spec, revision=_revision(spec, memory) or None)


def weights_digest(spec: EncoderSpec, *, memory: Path | None) -> str:
    """Hash of the weights alone; two encoders that share it are twins."""
    path = spec.local_checkpoint()
    if spec.loader == "python":
        return str(_probed(spec, memory)["weights"])
    if path is None:
        return f"hub:{spec.architecture}@{_revision(spec, memory)}"
    if spec.loader == "rows":
        return _digest_files(spec, path.parent, sorted(path.parent.glob(path.name.replace("{split}", "*"))), memory)
    if spec.loader == "sentence-transformers":
        return _digest_files(spec, path, files_in_use(path), memory)
    return _digest_files(spec, path.parent, [path], memory)


def _digest_files(spec: EncoderSpec, folder: Path, files: Sequence[Path], memory: Path | None) -> str:
    """Hash of the names and bytes of files; of one file, of its bytes alone."""
    if not files or not all(file.is_file() for file in files):
        raise FileNotFoundError(
            f"encoder {spec.name!r}: no checkpoint {spec.local_checkpoint()}; put it there or correct the zoo file"
        )
    names = [file.relative_to(folder).as_posix() for file in files]
    digests = file_digests(folder, names, memory=memory, progress=_silent)
    return digests[0] if len(files) == 1 else _digest(dict(zip(names, digests, strict=True)))


def files_in_use(folder: Path) -> list[Path]:
    """Files of a sentence-transformers folder that its embeddings may depend on."""
    kept = []
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        hidden = any(part.startswith(".") or part in _UNUSED for part in parts)
        other_form = file.name in _OTHER_FORMS and (file.parent / "model.safetensors").exists()
        if file.is_file() and not (hidden or other_form or file.suffix == ".md"):
            kept.append(file)
    return kept


def _picture(spec: EncoderSpec, memory: Path | None) -> dict[str, Any]:
    """What is done to a picture: declared in full, else what the network asks for; nothing for captions and rows."""
    if spec.modality == "text" or spec.loader == "rows":
        return {}
    declared = {key: getattr(spec, key) for key in _OWN}
    if None not in declared.values():
        side, words = declared.pop("input_size"), declared.pop("interpolation")
        numbers = {key: np.asarray(value, float).tolist() for key, value in declared.items()}  # 1 is 1.0
        return {"size": [side, side], "interpolation": words, **numbers}
    return dict(_probed(spec, memory)["picture"])


def _revision(spec: EncoderSpec, memory: Path | None) -> str:
    """Commit of hub weights: declared, else remembered, else asked of the hub and remembered; empty for local ones."""
    if spec.revision is not None:
        return spec.revision
    if spec.loader not in ("timm", "sentence-transformers") or spec.checkpoint is not None:
        return ""
    about = _about_commit(spec)
    known = recall(memory, about).get("commit")
    if known is None:
        known = _ask_hub(spec)
        keep(memory, about, {"commit": known})
    return str(known)


def _about_commit(spec: EncoderSpec) -> str:
    return f"commit of {spec.loader} {spec.architecture}"


def _ask_hub(spec: EncoderSpec) -> str:
    """Commit that the hub, or its local cache when there is no connection, has for a repository."""
    import huggingface_hub

    from hyperalign.embed.networks import first_line, hub_source
    from hyperalign.embed.sentences import sentence_hub_source

    repository, file = hub_source(spec) if spec.loader == "timm" else sentence_hub_source(spec)
    try:
        path = Path(huggingface_hub.hf_hub_download(repository, file))
    except Exception as error:  # offline, unknown and gated each have errors of their own
        raise FileNotFoundError(
            f"encoder {spec.name!r}: {repository} is not in the hub's local cache and could not be asked "
            f"({first_line(error)}); connect once, or declare its 'revision'"
        ) from None
    return path.parent.name


def _probed(spec: EncoderSpec, memory: Path | None) -> dict[str, Any]:
    """What only building tells, remembered for as long as nothing that it was built from has changed."""
    about = f"encoder {_digest(_sources(spec, memory))}"
    known = recall(memory, about)
    if not known:
        known = _probe(spec)
        keep(memory, about, known)
    return known


def _sources(spec: EncoderSpec, memory: Path | None) -> dict[str, Any]:
    """Everything that building an encoder reads."""
    sources: dict[str, Any] = {key: value for key, value in asdict(spec).items() if key not in _DECLARED}
    sources["folder"] = str(spec.folder.resolve())
    sources["library"] = _version(spec.loader)
    if spec.loader == "python":
        folder = _factory_file(spec).resolve().parent
        sources["files"] = [[str(path), *stamp(path)] for path in _weights_under(folder, memory)]
    elif spec.checkpoint is not None:
        sources["weights"] = weights_digest(spec, memory=memory)
    return sources


def _factory_file(spec: EncoderSpec) -> Path:
    """File of a python factory, which must be there."""
    file = spec.folder / str(spec.factory).rpartition(":")[0]
    if not file.is_file():
        raise FileNotFoundError(f"encoder {spec.name!r}: no factory file {file}; put it there or correct the zoo file")
    return file


def _weights_under(folder: Path, memory: Path | None) -> Iterable[Path]:
    """Files that a factory may read: weights, settings and code below it, our own caches and runs aside."""
    cache = None if memory is None else memory.resolve()
    for root, folders, files in os.walk(folder):
        here = Path(root)
        ours = here == cache or "result.json" in files
        folders[:] = [] if ours else sorted(name for name in folders if not name.startswith((".", "__")))
        if not ours:
            yield from (here / name for name in sorted(files) if Path(name).suffix in _WEIGHTS)


def _probe(spec: EncoderSpec) -> dict[str, Any]:
    """Build the encoder and measure it; timm's need no weights for that."""
    if spec.loader == "rows":
        width = _row_width(spec)
        return {"embed_dim": width, "n_params": spec.n_params, "gflops": None}
    from hyperalign.embed import encoders, networks, sentences

    if spec.modality == "text":
        return encoders.probe_sentences(spec, sentences.build_sentence_encoder(spec))._asdict()
    network = networks.build_network(spec, weights=False)
    measured = encoders.probe_pictures(spec, network.module, network.picture)._asdict()
    measured["picture"] = networks.describe_input(network.picture)
    if spec.loader == "python":
        measured["weights"] = networks.state_digest(network.module)
    return measured


def _row_width(spec: EncoderSpec) -> int:
    """Width of ready embeddings, from the first file there is."""
    from hyperalign.embed.encoders import open_rows

    path = spec.folder / str(spec.checkpoint)
    before, _, after = path.name.partition("{split}")
    for file in sorted(path.parent.glob(path.name.replace("{split}", "*"))):
        return int(open_rows(spec, file.name[len(before) : len(file.name) - len(after)]).shape[1])
    raise FileNotFoundError(f"encoder {spec.name!r}: no embeddings {path}")


def _version(loader: str) -> str:
    """Version of the library whose defaults an encoder may follow, read without importing it."""
    if loader == "open-clip":
        return metadata.version("open_clip_torch")
    return metadata.version(loader) if loader in ("timm", "sentence-transformers") else ""


def _words(value: Mapping[str, Any]) -> str:
    """Plain values as one line of text, the same for the same values; nothing for none."""
    return json.dumps(value, sort_keys=True, default=list) if value else ""


def _digest(value: object) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _silent(stage: str, done: int, total: int) -> None:
    """Hashing weights is quick; nobody is told."""
