"""Captions become rows in their order; a text encoder that cannot be read is refused in one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hyperalign.embed.encoders import embed_captions, embed_pictures, load_encoder
from hyperalign.embed.zoo import EncoderSpec


def words(folder: Path, name: str, **changes: Any) -> EncoderSpec:
    return EncoderSpec(
        name="words", modality="text", loader="sentence-transformers", checkpoint=name, folder=folder, **changes
    )


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static encoder of three words and a transformer of few parameters, as sentence-transformers folders."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("text")
    tokenizer = Tokenizer(WordLevel({"a": 0, "red": 1, "dog": 2, "[UNK]": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, np.eye(4, 3, dtype=np.float32) * 6)], device="cpu").save(
        str(folder / "static"), create_model_card=False
    )
    torch.manual_seed(0)
    bare = folder / "bare"
    bare.mkdir()
    (bare / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "query", ":"])
    )
    BertTokenizerFast(str(bare / "vocab.txt"), model_max_length=20).save_pretrained(str(bare))
    config = BertConfig(
        vocab_size=10, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=20,
    )  # fmt: skip
    BertModel(config).save_pretrained(str(bare))
    modules = [Transformer(str(bare)), Pooling(16, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "bert"), create_model_card=False)
    return folder


def test_captions_are_averaged_and_unknown_words_keep_their_zero_row(text_folder: Path) -> None:
    encoder = load_encoder(words(text_folder, "static"), device="cpu")

    rows = embed_captions(encoder, ["a red dog", "cat", "", "dog dog"])

    assert rows.dtype == np.float32
    assert rows.tolist() == [[2, 2, 2], [0, 0, 0], [0, 0, 0], [0, 0, 6]]
    assert encoder.facts.n_params == 12


def test_captions_keep_their_order_whatever_their_length(text_folder: Path) -> None:
    encoder = load_encoder(words(text_folder, "bert"), device="cpu")
    captions = ["dog", "a red dog a red dog", "red", "a dog", "a red dog"]

    rows = embed_captions(encoder, captions, batch_size=2)

    alone = np.concatenate([embed_captions(encoder, [caption]) for caption in captions])
    assert np.allclose(rows, alone, atol=1e-5)
    assert not np.allclose(rows, rows[::-1], atol=1e-3)


def test_truncation_prompt_and_pooling_do_what_they_say(text_folder: Path) -> None:
    def embed(**changes: Any) -> NDArray[np.float32]:
        return embed_captions(load_encoder(words(text_folder, "bert", **changes), device="cpu"), ["a dog"])

    own = embed()

    assert np.array_equal(embed(truncate_dim=4), own[:, :4])
    assert np.allclose(embed(prompt="query : "), embed_captions_of(text_folder, "query : a dog"), atol=1e-6)
    assert not np.allclose(embed(pooling="cls"), own, atol=1e-3)


def embed_captions_of(folder: Path, caption: str) -> NDArray[np.float32]:
    return embed_captions(load_encoder(words(folder, "bert"), device="cpu"), [caption])


def test_captions_that_the_tokenizer_cuts_are_counted(text_folder: Path) -> None:
    captions = ["dog " * 18, "dog " * 19, "dog " * 17, "dog"]  # two special tokens, at most 20

    assert load_encoder(words(text_folder, "bert"), device="cpu").n_cut(captions) == 1
    assert load_encoder(words(text_folder, "bert", prompt="query : "), device="cpu").n_cut(captions) == 3
    assert load_encoder(words(text_folder, "static"), device="cpu").n_cut(captions) == 0


def test_the_cost_of_a_caption_is_that_of_sixteen_tokens(text_folder: Path) -> None:
    facts = load_encoder(words(text_folder, "bert"), device="cpu").facts

    projections, attention, feed_forward = 4 * 16 * 16 * 16, 2 * 16 * 16 * 16, 2 * 16 * 16 * 32
    pooler = 16 * 16  # computed by the library, though nothing reads it
    counted = 2 * (projections + attention + feed_forward + pooler) / 1e9
    fused = 2 * (projections + feed_forward + pooler) / 1e9  # torch 2.13 does not count the CPU's fused attention
    assert facts.gflops in (counted, fused)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (
            {"checkpoint": "none"},
            FileNotFoundError,
            "no folder .*none; a name on the hub is declared as 'architecture'",
        ),
        ({"checkpoint": "empty"}, ValueError, "empty cannot be read as a sentence-transformer"),
        ({"checkpoint": "static", "pooling": "cls"}, ValueError, "pools no tokens"),
        ({"checkpoint": "bert", "pooling": "middle"}, ValueError, "Invalid pooling mode: 'middle'"),
    ],
)
def test_a_faulty_text_encoder_is_said_in_one_sentence(
    text_folder: Path, changes: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    (text_folder / "empty").mkdir(exist_ok=True)
    spec = EncoderSpec(name="words", modality="text", loader="sentence-transformers", folder=text_folder, **changes)

    with pytest.raises(error, match=f"encoder 'words': .*{sentence}") as caught:
        load_encoder(spec, device="cpu")

    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_text_encoder_is_refused_where_it_is_declared(text_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no code .* is ever run"):
        EncoderSpec(
            name="words",
            modality="text",
            loader="sentence-transformers",
            checkpoint="bert",
            folder=text_folder,
            kwargs={"trust_remote_code": True},
        )


def test_a_caption_that_is_no_text_is_refused(text_folder: Path) -> None:
    encoder = load_encoder(words(text_folder, "static"), device="cpu")

    with pytest.raises(ValueError, match="a caption must be text, got 3"):
        embed_captions(encoder, ["a", 3])  # type: ignore[list-item]


def test_no_captions_have_no_rows(text_folder: Path) -> None:
    assert embed_captions(load_encoder(words(text_folder, "static"), device="cpu"), []).shape == (0, 3)


def test_a_text_encoder_embeds_no_pictures(text_folder: Path) -> None:
    encoder = load_encoder(words(text_folder, "static"), device="cpu")

    with pytest.raises(ValueError, match="embeds captions, not pictures"):
        embed_pictures(encoder, [], 0, 0)
