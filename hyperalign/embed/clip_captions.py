"""The caption side of an open_clip model as a module of sentence-transformers."""

from collections.abc import Sequence
from typing import Any

from sentence_transformers.base.modules import InputModule

from hyperalign.embed.clips import build_clip_captions
from hyperalign.embed.zoo import EncoderSpec

__all__ = ["ClipCaptions"]


class ClipCaptions(InputModule):  # type: ignore[misc]
    """Captions in, `sentence_embedding` out; a caption of more tokens than the model reads is cut."""

    max_seq_length = None

    def __init__(self, spec: EncoderSpec) -> None:
        """Build the caption side of an encoder's model."""
        super().__init__()
        self.clip, self.tokenizer = build_clip_captions(spec)

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokens of captions, (B, L)."""
        return {"input_ids": self.tokenizer([(prompt or "") + caption for caption in inputs])}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Embed tokens."""
        features["sentence_embedding"] = self.clip.encode_text(features["input_ids"])
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Refuse: open_clip keeps its own checkpoints."""
        raise ValueError(f"an open_clip model is kept as its own checkpoint, not in {output_path}")
