"""How the text encoders of the embedded zoo learn: from sentences alone, no picture anywhere near.

Five kinds: word counts, word vectors from co-occurrence, word vectors and a recurrent network that bring
captions of one scene description together, and a small transformer that fills in masked words first.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the name everyone knows it by)
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    LSTM,
    Pooling,
    StaticEmbedding,
    Transformer,
    WordEmbeddings,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging as hub_logging

from hyperalign.embed.recipes import TextRecipe

Log = Callable[[str], None]
_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_text_encoder(
    recipe: TextRecipe, captions: Sequence[str], folder: Path, *, seed: int, log: Log
) -> SentenceTransformer:
    """Train one encoder and store it in sentence-transformers format, weights as float16.

    Args:
        recipe: What to train and how.
        captions: Sentences, those of one description next to each other, five of each.
        folder: Where it is written.
        seed: Seeds initialisation and batch order.
        log: Takes one line of progress at a time.

    Returns:
        The encoder as anyone loads it from `folder`.
    """
    torch.manual_seed(seed)
    with _without_progress_bars():
        modules = _BUILDERS[recipe.kind](recipe, captions, log)
        encoder = SentenceTransformer(modules=modules, device="cpu")
        encoder.save(str(folder), create_model_card=False)
        _tidy(folder)
        return SentenceTransformer(str(folder), device="cpu")


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars: only the command line prints."""
    shown = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hub_logging.enable_progress_bar()


def _tidy(folder: Path) -> None:
    """Halve the weights and leave nothing in the folder that names a machine or a moment."""
    for path in sorted(folder.rglob("*.safetensors")):
        halved = {
            name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()
        }
        save_file(halved, path, metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors keeps its files to their owner
    for path in sorted(folder.rglob("config.json")):
        settings = json.loads(path.read_text())
        if "model_type" in settings:
            settings["dtype"] = "float32"  # half is for storage only: products of half are slow on a CPU
            settings.pop("_name_or_path", None)
            path.write_text(json.dumps(settings, indent=2) + "\n")


def words_of(caption: str) -> list[str]:
    """Lower-case words without punctuation; "mid-sized" is one word."""
    return re.findall(r"[a-z]+(?:-[a-z]+)*", caption.lower())


def _vocabulary(captions: Sequence[str]) -> list[str]:
    counts = Counter(word for caption in captions for word in words_of(caption))
    return [word for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count >= 5]


def _counts(recipe: TextRecipe, captions: Sequence[str], _log: Log) -> list[nn.Module]:
    """A bag of words: how often each occurs, rare ones weighing more, in the strongest directions (LSA).

    The product of counts with directions is stored as one vector per word, so it is a mean of word vectors.
    """
    vocabulary = _vocabulary(captions)
    column = {word: index for index, word in enumerate(vocabulary)}
    counts = np.zeros((len(captions), len(vocabulary)))
    for row, caption in enumerate(captions):
        for word in words_of(caption):
            if word in column:
                counts[row, column[word]] += 1
    rarity = np.log(len(captions) / (counts > 0).sum(0))
    weighed = counts * rarity
    _, directions = np.linalg.eigh(weighed.T @ weighed)  # the strongest come last
    strongest = directions[:, ::-1][:, : recipe.embed_dim]
    return _word_vectors(vocabulary, rarity[:, None] * _signed(strongest), recipe.embed_dim)


def _word_vectors(vocabulary: Sequence[str], vectors: NDArray[np.float64], width: int) -> list[nn.Module]:
    """Mean of the vectors of the words that are known; zero where none is."""
    table = torch.from_numpy(np.vstack([np.zeros((1, width)), vectors]).astype(np.float32))
    words = WhitespaceTokenizer(["[PAD]", *vocabulary], stop_words=())
    return [WordEmbeddings(words, table), Pooling(width, pooling_mode="mean")]


def _signed(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns with their largest entry positive: an eigenvector's sign is anyone's choice."""
    largest = directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])]
    signed: NDArray[np.float64] = directions * np.sign(largest)
    return signed


def _tokenizer(captions: Sequence[str]) -> Tokenizer:
    """Word pieces: every word of the captions whole, the most frequent first, and letters for all others.

    Written out here and not learned: the library's trainer breaks ties anew in each run.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word for caption in captions for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption))
    )
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = sorted(counts, key=lambda word: (-counts[word], word))
    pieces = dict.fromkeys([*_SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words])
    tokenizer = Tokenizer(WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return tokenizer


def _cooccurrence(recipe: TextRecipe, captions: Sequence[str], _log: Log) -> list[nn.Module]:
    """Word vectors: eigenvectors of the positive pointwise mutual information of neighbouring words."""
    tokenizer = _tokenizer(captions)
    n_words = tokenizer.get_vocab_size()
    together = np.zeros((n_words, n_words))
    for encoding in tokenizer.encode_batch(list(captions), add_special_tokens=False):
        ids = np.array(encoding.ids)
        for distance in range(1, 5):
            np.add.at(together, (ids[:-distance], ids[distance:]), 1 / distance)
    vectors = _information_vectors(together + together.T, recipe.embed_dim)
    return [StaticEmbedding(tokenizer, embedding_weights=torch.from_numpy(vectors))]


def _information_vectors(together: NDArray[np.float64], width: int) -> NDArray[np.float32]:
    """(n_words, width) vectors whose products approach the positive pointwise mutual information."""
    total, occurs = together.sum(), together.sum(0) + 1e-9
    information = np.log(np.maximum(together * total / np.outer(occurs, occurs), 1))
    strength, directions = np.linalg.eigh(information)
    strongest = np.argsort(-np.abs(strength), kind="stable")[:width]
    vectors = _signed(directions[:, strongest]) * np.sqrt(np.abs(strength[strongest]))
    return np.ascontiguousarray(vectors, np.float32)


def _static(recipe: TextRecipe, captions: Sequence[str], log: Log) -> list[nn.Module]:
    """Word vectors whose means agree between paraphrases."""
    modules = [StaticEmbedding(_tokenizer(captions), embedding_dim=recipe.embed_dim)]
    _contrast(recipe, modules, captions, log)
    return modules


def _recurrent(recipe: TextRecipe, captions: Sequence[str], log: Log) -> list[nn.Module]:
    """A bidirectional LSTM over word vectors, mean of its states."""
    width = recipe.embed_dim
    vocabulary = ["[PAD]", *_vocabulary(captions)]
    vectors = torch.randn(len(vocabulary), 64) * 0.3
    words = WordEmbeddings(WhitespaceTokenizer(vocabulary, stop_words=()), vectors, update_embeddings=True)
    modules = [words, LSTM(64, width // 2), Pooling(width, pooling_mode="mean")]
    _contrast(recipe, modules, captions, log)
    return modules


def _transformer(recipe: TextRecipe, captions: Sequence[str], log: Log) -> list[nn.Module]:
    """Two layers of BERT: masked words first, then paraphrases, mean of the states."""
    width = recipe.embed_dim
    tokenizer = _tokenizer(captions)
    specials = [(word, tokenizer.token_to_id(word)) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=specials)
    network = BertModel(
        BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * width,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    # BERT's own 0.02 lets places drown words: the means of all sentences would start within 0.1 % of each other.
    nn.init.normal_(network.get_input_embeddings().weight, std=0.2)
    _fill_in(recipe, network, tokenizer, captions, log)
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
        modules = [Transformer(folder), Pooling(width, pooling_mode="mean")]
    if recipe.n_steps:
        _contrast(recipe, modules, captions, log)
    return modules


def _fill_in(recipe: TextRecipe, network: BertModel, tokenizer: Tokenizer, captions: Sequence[str], log: Log) -> None:
    """Guess the fifth of the words that is masked."""
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=48)
    tokenizer.enable_truncation(48)
    ids = torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(captions))])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    words = network.get_input_embeddings()
    optimiser, cycle = _optimiser(network, recipe, recipe.n_masked_steps)
    for step in range(recipe.n_masked_steps):
        batch = ids[torch.randint(len(ids), (recipe.batch_size,))]
        batch = batch[:, : int((batch > 0).sum(1).max())]
        hidden = (torch.rand(batch.shape) < 0.2) & (batch >= len(_SPECIAL))
        states = network(
            input_ids=batch.masked_fill(hidden, _SPECIAL.index("[MASK]")), attention_mask=(batch > 0).long()
        ).last_hidden_state
        loss = F.cross_entropy(states[hidden] @ words.weight.T, batch[hidden])
        _step(loss, network, optimiser, cycle)
        if (step + 1) % 100 == 0 or step + 1 == recipe.n_masked_steps:
            log(f"{recipe.name}: step {step + 1} of {recipe.n_masked_steps}, masked-word loss {loss.item():.4f}")


def _contrast(recipe: TextRecipe, modules: Sequence[nn.Module], captions: Sequence[str], log: Log) -> None:
    """Captions of one description are positives, the rest of the batch negatives (InfoNCE at scale 20)."""
    encoder = nn.Sequential(*modules).train()
    optimiser, cycle = _optimiser(encoder, recipe, recipe.n_steps)
    running = 0.0
    for step in range(recipe.n_steps):
        chosen = torch.randint(len(captions) // 5, (recipe.batch_size,))
        which = torch.stack([torch.randperm(5)[:2] for _ in range(recipe.batch_size)])
        one, other = ([captions[int(i) * 5 + int(j)] for i, j in zip(chosen, side, strict=True)] for side in which.T)
        logits = 20 * _embed(encoder, one) @ _embed(encoder, other).T
        target = torch.arange(recipe.batch_size)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        _step(loss, encoder, optimiser, cycle)
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == recipe.n_steps:
            log(f"{recipe.name}: step {step + 1} of {recipe.n_steps}, paraphrase loss {running:.4f}")
    encoder.eval()


def _optimiser(
    network: nn.Module, recipe: TextRecipe, n_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with one cycle of the learning rate."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=n_steps)


def _step(
    loss: Tensor,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    cycle: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()
    cycle.step()


def _embed(encoder: nn.Module, captions: Sequence[str]) -> Tensor:
    """(B, D) unit rows."""
    features: dict[str, Any] = encoder[0].preprocess(captions)  # type: ignore[index]
    rows: Tensor = encoder(features)["sentence_embedding"]
    return F.normalize(rows, dim=-1)


_BUILDERS: Final[dict[str, Callable[[TextRecipe, Sequence[str], Log], list[nn.Module]]]] = {
    "counts": _counts,
    "cooccurrence": _cooccurrence,
    "static": _static,
    "recurrent": _recurrent,
    "transformer": _transformer,
}
