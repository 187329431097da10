"""Captions → rows, for a model trained from scratch: a causal transformer read at its end-of-text token.

Its tokenizer is made from the training captions: whole words, the most frequent first, and single characters for all
others, so that nothing is unknown but a character that no caption has. The same captions give the same tokenizer.
Source: Radford et al. 2021, arXiv:2103.00020, section 2.4.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from torch import Tensor, nn

from hyperalign.hyperclip.hypernetwork import transformer_layers

__all__ = ["TextConfig", "TextTransformer", "count_cut", "make_tokenizer", "tokenize"]

_TOLD_EVERY = 10_000
_PAD, _UNKNOWN, _END = "[PAD]", "[UNK]", "[END]"  # numbers 0, 1 and 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Shape of the text transformer; the one home of these defaults, which are CLIP's.

    Attributes:
        n_layers: Of the transformer.
        width: Of its tokens.
        n_heads: Of its attention.
        context: Tokens read at most, the end-of-text token among them; a longer caption is cut.
        max_words: Words with a token of their own at most.
    """

    n_layers: int = 12
    width: int = 512
    n_heads: int = 8
    context: int = 77
    max_words: int = 49152

    def __post_init__(self) -> None:
        """Refuse values no network could have."""
        for name in ("n_layers", "width", "n_heads", "max_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.context < 2:
            raise ValueError(f"context must be at least 2, a token and the end of the text, got {self.context}")
        if self.width % self.n_heads:
            raise ValueError(f"width must be a multiple of n_heads, got {self.width} and {self.n_heads}")


class TextTransformer(nn.Module):
    """Tokens (B, L) → rows (B, D): each token sees those before it, and the end of the text has seen all."""

    def __init__(self, n_tokens: int, embed_dim: int, config: TextConfig) -> None:
        """Make the layers.

        Args:
            n_tokens: Size of the vocabulary.
            embed_dim: Width D of a row.
            config: Widths.
        """
        super().__init__()
        self.config = config
        self.words = nn.Embedding(n_tokens, config.width, padding_idx=0)
        self.places = nn.Parameter(torch.randn(config.context, config.width) * 0.02)
        nn.init.normal_(self.words.weight, std=0.05)  # places must not drown words
        self.layers = transformer_layers(
            config.n_layers, config.width, n_heads=config.n_heads, feed_forward=4 * config.width, dropout=0.0
        )
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, embed_dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Rows of captions, not normalised.

        Args:
            tokens: (B, L) from `tokenize`; padding stands behind the end of the text.
        """
        length = tokens.shape[1]
        states = self.words(tokens) + self.places[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device, dtype=states.dtype)
        for layer in self.layers:
            states = layer(states, src_mask=mask, is_causal=True)
        end = tokens.ne(0).sum(1) - 1
        rows: Tensor = self.project(self.norm(states[torch.arange(len(tokens), device=tokens.device), end]))
        return rows


def make_tokenizer(
    captions: Sequence[str], *, max_words: int, tell: Callable[[int, int], None] = lambda done, total: None
) -> Tokenizer:
    """A tokenizer of these captions: every character, and the most frequent words whole.

    Args:
        captions: At least one with a character in it.
        max_words: Words with a token of their own.
        tell: Told how many captions are read, and of how many.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts = Counter[str]()
    for done, caption in enumerate(captions, start=1):
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
        if done % _TOLD_EVERY == 0 or done == len(captions):
            tell(done, len(captions))
    characters = sorted({character for word in counts for character in word})
    words = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
    pieces = dict.fromkeys([_PAD, _UNKNOWN, _END, *characters, *(f"##{one}" for one in characters), *words])
    tokenizer = Tokenizer(WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token=_UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return tokenizer


def tokenize(tokenizer: Any, captions: Sequence[str], *, context: int) -> Tensor:
    """Captions → (B, L) token numbers, 2 at the end of the text and 0 behind it; L is the longest's, at most `context`.

    A caption longer than `context` is cut; its last token is the end of the text all the same.
    """
    ids = [encoding.ids[: context - 1] for encoding in tokenizer.encode_batch(list(captions), add_special_tokens=False)]
    tokens = torch.zeros(len(ids), max(map(len, ids), default=0) + 1, dtype=torch.long)
    for row, own in zip(tokens, ids, strict=True):
        row[: len(own) + 1] = torch.tensor([*own, 2])
    return tokens


def count_cut(tokenizer: Any, captions: Sequence[str], *, context: int) -> int:
    """How many captions are longer than `context` tokens, the end of the text among them."""
    return sum(
        len(encoding.ids) >= context
        for start in range(0, len(captions), _TOLD_EVERY)
        for encoding in tokenizer.encode_batch(captions[start : start + _TOLD_EVERY], add_special_tokens=False)
    )
