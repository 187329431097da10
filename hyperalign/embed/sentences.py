"""A spec of a text encoder becomes a sentence-transformer, offline unless a hub name asks for more.

Embeddings are what the model gives: normalised only where the model itself does so. A caption without
a known word keeps its zero row.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from torch import nn

from hyperalign.embed.networks import first_line, refuse_import
from hyperalign.embed.plain import misfit, parse_json
from hyperalign.embed.zoo import EncoderSpec

_OWN_MODULE = re.compile(r"sentence_transformers(\.\w+)+")
N_TOKENS = 16  # of the caption whose cost is declared


class _Module(TypedDict):
    """One line of `modules.json`."""

    type: str


def build_sentence_encoder(spec: EncoderSpec, *, offline: bool = False) -> Any:
    """The `SentenceTransformer` of a text encoder on the CPU, frozen, in float32 and evaluation mode.

    Args:
        spec: Of loader "sentence-transformers" or "open-clip".
        offline: Whether a hub name may only be found in the local cache.
    """
    library = _import_library()
    if spec.loader == "open-clip":
        from hyperalign.embed.clip_captions import ClipCaptions

        model = library.SentenceTransformer(modules=[ClipCaptions(spec)], device="cpu", trust_remote_code=False)
        model.float().eval().requires_grad_(False)
        return model
    folder = spec.local_checkpoint()
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(
            f"encoder {spec.name!r}: no folder {folder}; a name on the hub is declared as 'architecture'"
        )
    if folder is not None:
        _refuse_code(spec, folder)
    try:
        with quiet():
            model = library.SentenceTransformer(
                str(folder if folder is not None else spec.architecture),
                device="cpu",
                revision=spec.revision,
                local_files_only=offline or folder is not None,
                truncate_dim=spec.truncate_dim,
                trust_remote_code=False,
                **spec.kwargs,
            )
    except Exception as error:  # transformers, tokenizers and the hub each have errors of their own
        if folder is not None:
            raise ValueError(
                f"encoder {spec.name!r}: {folder} cannot be read as a sentence-transformer: {first_line(error)}"
            ) from None
        raise FileNotFoundError(
            f"encoder {spec.name!r}: the weights of {spec.architecture} are not in the hub's local cache and could not "
            f"be fetched ({first_line(error)}); connect once, or declare a local 'checkpoint'"
        ) from None
    if spec.pooling is not None:
        _replace_pooling(spec, model)
    model.float().eval().requires_grad_(False)
    return model


def _refuse_code(spec: EncoderSpec, folder: Path) -> None:
    """Refuse a folder whose modules are not the library's own: before version 6 it ran the code of a local folder."""
    path = folder / "modules.json"
    if not path.is_file():
        return
    try:
        modules = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"encoder {spec.name!r}: {path} cannot be read as JSON ({error})") from None
    fault = misfit(modules, list[_Module])
    if fault is not None:
        raise ValueError(f"encoder {spec.name!r}: {path} is damaged: {fault}")
    for module in modules:
        if not _OWN_MODULE.fullmatch(module["type"]):
            raise ValueError(
                f"encoder {spec.name!r}: {path} asks for {module['type']!r}, which is no module of "
                "sentence-transformers; code that comes with weights is never run"
            )


def sentence_hub_source(spec: EncoderSpec) -> tuple[str, str]:
    """Repository on the hub of a sentence-transformer, and its small file that tells the commit."""
    name = str(spec.architecture)
    return (name if "/" in name else f"sentence-transformers/{name}"), "modules.json"


def n_parameters(module: nn.Module) -> int:
    """Parameters of a network, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def n_cut(model: Any, captions: Sequence[str], prompt: str | None) -> int:
    """How many captions the tokenizer cuts at its greatest length."""
    limit = model.max_seq_length
    tokenizer = getattr(model, "tokenizer", None)
    if limit is None or not callable(tokenizer):
        return 0  # static embeddings read a caption of any length
    prefix = _prompt(model, prompt)
    # A token covers at least one byte, and no tokenizer adds more than a few: short captions need no count.
    long = [prefix + caption for caption in captions if len((prefix + caption).encode()) > limit - 8]
    if not long:
        return 0
    with quiet():
        tokens = tokenizer(long, truncation=False, add_special_tokens=True)["input_ids"]
    return sum(len(ids) > limit for ids in tokens)


def probe_caption(model: Any, prompt: str | None) -> str:
    """A caption of `N_TOKENS` tokens, prompt and special tokens included, or the nearest above."""
    for n_words in range(1, N_TOKENS + 1):
        caption = " ".join(["a"] * n_words)
        if model.preprocess([_prompt(model, prompt) + caption])["input_ids"].numel() >= N_TOKENS:
            break
    return caption


def _prompt(model: Any, prompt: str | None) -> str:
    """What stands before every caption: the declared prompt, else the model's default."""
    return prompt if prompt is not None else str(model.prompts.get(model.default_prompt_name) or "")


def _replace_pooling(spec: EncoderSpec, model: Any) -> None:
    """Pool tokens in the declared way."""
    for name, module in model.named_children():
        if type(module).__name__ == "Pooling":  # where the class lives differs between releases
            width = getattr(module, "embedding_dimension", None) or module.word_embedding_dimension
            try:
                setattr(model, name, type(module)(width, pooling_mode=spec.pooling))
            except ValueError as error:
                raise ValueError(f"encoder {spec.name!r}: {first_line(error)}") from None
            return
    raise ValueError(f"encoder {spec.name!r}: this model pools no tokens, so 'pooling' means nothing to it")


def _import_library() -> Any:
    """sentence-transformers; where its import breaks, what to install."""
    try:
        import sentence_transformers
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        refuse_import("sentence-transformers", error)
    return sentence_transformers


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no chatter from transformers: only the command line prints."""
    from transformers.utils import logging as chatter

    bars, level = chatter.is_progress_bar_enabled(), chatter.get_verbosity()
    chatter.disable_progress_bar()
    chatter.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
