"""HyperCLIP's parts: what is adapted, what the hypernetwork emits, and that emission leaves the encoder alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hyperalign.embed.networks import import_timm
from hyperalign.hyperclip.architectures import BOTTLENECKS, NAMES, build_encoder, find_architecture, picture_of
from hyperalign.hyperclip.hypernetwork import HyperConfig, HyperNetwork, automatic_scale, canonical_order
from hyperalign.hyperclip.model import HyperClip
from hyperalign.hyperclip.normalisation import (
    Adapted,
    adapt,
    call_adapted,
    find_adapted,
    fold,
    use_statistics,
)
from hyperalign.hyperclip.text import TextConfig, TextTransformer, count_cut, make_tokenizer, tokenize

SMALL = HyperConfig(n_layers=2, width=32, n_heads=4, feed_forward=48, bottleneck=16)
TABLE = {  # parameters with a 512-d head, adapted numbers, the paper's thousands, kinds, input
    "B0": (4_663_420, 42_016, 42.1, ("BN",), 224),
    "B1": (7_169_056, 62_048, 62.1, ("BN",), 240),
    "B2": (8_422_402, 67_568, 67.6, ("BN",), 260),
    "M0": (4_857_904, 24_400, 24.4, ("BN",), 224),
    "M1": (2_042_656, 12_112, 12.1, ("BN",), 224),
    "T0": (1_713_318, 17_808, 17.1, ("BN",), 152),
    "E0": (7_638_632, 8_832, 8.8, ("LN",), 320),
    "V0": (4_651_497, 23_872, 15.5, ("BN", "GN"), 224),
}
EXPLAINED = {"T0", "V0"}  # where the paper's count differs; the module's docstring says how


def rows(n: int, dim: int = 24, seed: int = 0) -> Tensor:
    """Random unit rows."""
    return nn.functional.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def build(name: str, embed_dim: int = 512) -> tuple[Any, Tensor]:
    """An encoder whose running statistics are those of noise, and two pictures for it."""
    torch.manual_seed(0)
    spec = find_architecture(name, input_size=64)
    network = build_encoder(spec, embed_dim)
    pictures = torch.randn(2, 3, 64, 64)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 3, 64, 64))
    return network.eval(), pictures


def some_change(adapted: Adapted, seed: int = 1) -> Tensor:
    """A change as large as training makes it."""
    return 0.1 * torch.randn(adapted.n_numbers, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_the_eight_are_those_of_the_paper(name: str) -> None:
    spec = find_architecture(name.lower())
    n_params, n_adapted, paper, kinds, side = TABLE[name]

    with torch.device("meta"):
        network = build_encoder(spec, 512)
    adapted = find_adapted(network)

    assert sum(p.numel() for p in network.parameters()) == n_params
    assert adapted.n_numbers == n_adapted
    assert name in EXPLAINED or abs(n_adapted / 1000 - paper) < 0.1
    assert adapted.kinds == kinds
    assert picture_of(spec).size == (side, side)
    assert BOTTLENECKS[name] in (285, 193, 177, 491, 577, 512, 256)


def test_v0_has_the_papers_count_in_its_batch_norms_alone() -> None:
    with torch.device("meta"):
        network = build_encoder(find_architecture("V0"), 512)

    batch = [p for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]

    assert sum(p.numel() for p in batch) == 15_552


def test_an_architecture_that_nobody_knows_is_refused_with_near_names() -> None:
    with pytest.raises(KeyError, match="no architecture 'mobilnetv3_small_100'; did you mean mobilenetv3_small_100"):
        find_architecture("mobilnetv3_small_100")


def test_a_network_without_normalisation_layers_cannot_be_adapted() -> None:
    with pytest.raises(ValueError, match="has no scale or bias of a BatchNorm, LayerNorm or GroupNorm"):
        find_adapted(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False)))


def test_a_layer_that_stands_twice_is_adapted_once() -> None:
    norm = nn.LayerNorm(4)

    assert find_adapted(nn.Sequential(norm, nn.Linear(4, 4), norm)).n_numbers == 8


def test_no_change_leaves_scales_and_biases_as_they_are_even_where_a_scale_is_zero() -> None:
    network: Any = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
        network[1].weight.zero_()
    adapted = find_adapted(network)

    parameters = adapt(network, adapted, torch.zeros(adapted.n_numbers))

    assert all(torch.equal(value, network.state_dict()[name]) for name, value in parameters.items())


def test_scales_pass_through_an_exponential_and_biases_are_added() -> None:
    network = nn.LayerNorm(2)
    adapted = find_adapted(nn.Sequential(network))

    parameters = adapt(nn.Sequential(network), adapted, torch.tensor([1.0, -1.0, 2.0, 3.0]))

    torch.testing.assert_close(parameters["0.weight"], torch.tensor([1.0, -1.0]).exp())
    assert parameters["0.bias"].tolist() == [2.0, 3.0]


def test_emission_leaves_the_encoder_as_it_was() -> None:
    network, pictures = build("M1", 32)
    before = copy.deepcopy(network.state_dict())
    adapted = find_adapted(network)

    with torch.no_grad():
        plain = network(pictures)
        other = call_adapted(network, adapt(network, adapted, some_change(adapted)), pictures)
        again = network(pictures)

    assert not torch.allclose(plain, other, atol=1e-3)
    assert torch.equal(plain, again)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_folded_encoder_is_the_live_one_with_nothing_added(name: str) -> None:
    network, pictures = build(name)
    adapted = find_adapted(network)
    with torch.no_grad():
        parameters = adapt(network, adapted, some_change(adapted))
        with FlopCounterMode(display=False) as live_counter:
            live = call_adapted(network, parameters, pictures)

        plain = import_timm().create_model(find_architecture(name).architecture, num_classes=512)
        with FlopCounterMode(display=False) as original_counter:
            plain.eval()(pictures)
        plain.load_state_dict(fold(network, parameters), strict=True)
        with FlopCounterMode(display=False) as counter:
            folded = plain(pictures)

    torch.testing.assert_close(folded, live, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in plain.parameters()) == TABLE[name][0]
    assert counter.get_total_flops() == original_counter.get_total_flops() == live_counter.get_total_flops() > 0


def test_emission_works_under_autocast_and_in_a_compiled_model() -> None:
    model = HyperClip(build("M1", 24)[0], nn.Identity(), 24, SMALL).eval()
    pictures, prompts = torch.randn(2, 3, 64, 64), rows(5)

    def embed(pictures: Tensor, prompts: Tensor) -> Tensor:
        return model.embed_pictures(pictures, model.emit(prompts))

    with torch.no_grad():
        plain = embed(pictures, prompts)
        compiled = torch.compile(embed, backend="aot_eager")(pictures, prompts)
        with torch.autocast("cpu", torch.bfloat16):
            half = embed(pictures, prompts)

    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half, plain).min() > 0.98


@pytest.mark.parametrize("transformer", [True, False], ids=["transformer", "without"])
@pytest.mark.parametrize("pool", ["last", "early"])
def test_the_order_of_the_prompts_does_not_change_a_bit(transformer: bool, pool: Any) -> None:
    torch.manual_seed(0)
    config = HyperConfig(n_layers=2, width=32, n_heads=4, feed_forward=48, transformer=transformer, pool=pool)
    network = HyperNetwork(24, 50, config).eval()
    prompts = rows(37)
    shuffled = prompts[torch.randperm(37)]

    with torch.no_grad():
        assert torch.equal(network(prompts), network(shuffled))


def test_without_sorting_the_order_changes_rounding_alone() -> None:
    torch.manual_seed(0)
    network = HyperNetwork(24, 50, HyperConfig(n_layers=2, width=32, n_heads=4, feed_forward=48, dropout=0.0)).train()
    prompts = rows(37)

    torch.testing.assert_close(network(prompts), network(prompts.flip(0)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transformer", [True, False], ids=["transformer", "without"])
def test_any_number_of_prompts_is_taken(transformer: bool) -> None:
    config = HyperConfig(n_layers=1, width=32, n_heads=4, feed_forward=48, transformer=transformer)
    network = HyperNetwork(24, 50, config).eval()

    with torch.no_grad():
        for n in (1, 2, 3, 10, 100, 1000):
            assert network(rows(n)).isfinite().all()
    with pytest.raises(ValueError, match="K at least 1"):
        network(rows(0))


def test_different_prompts_get_different_scales() -> None:
    torch.manual_seed(0)
    network = HyperNetwork(24, 50, SMALL).eval()

    with torch.no_grad():
        assert not torch.allclose(network(rows(5)), network(rows(5, seed=1)), rtol=1e-3)


def test_canonical_order_is_lexicographic() -> None:
    prompts = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0], [-1.0, 5.0]])

    assert canonical_order(prompts).tolist() == [3, 2, 1, 0]


def test_with_the_automatic_scale_emitted_numbers_move_as_fast_as_trained_ones() -> None:
    """One step of Adam at rate 0.01; without the scale they would move by about 0.01 · 0.8 · 256."""
    torch.manual_seed(0)
    moved = {}
    for weight_scale in ("auto", None):
        config = HyperConfig(
            n_layers=1, width=64, n_heads=4, feed_forward=64, bottleneck=256, weight_scale=weight_scale
        )
        network = HyperNetwork(24, 400, config)
        network.eval()
        before = network(rows(1))
        optimiser = torch.optim.Adam(network.leave.parameters(), lr=0.01)
        before.sum().backward()
        optimiser.step()
        moved[weight_scale] = (before - network(rows(1))).abs().mean().item()

    assert moved["auto"] == pytest.approx(0.01, rel=0.2)
    assert moved[None] == pytest.approx(0.01 / automatic_scale(256), rel=0.2)


def test_running_statistics_stay_and_batch_statistics_are_kept_up_to_date() -> None:
    network: Any = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    pictures = torch.randn(8, 3, 5, 5) + 3
    start = network[1].running_mean.clone()

    use_statistics(network, "running")
    network(pictures)
    assert torch.equal(network[1].running_mean, start)
    assert network[2].training

    use_statistics(network, "batch")
    network(pictures)
    assert not torch.equal(network[1].running_mean, start)


def test_the_hypernetwork_speaks_for_the_encoders_own_scales() -> None:
    """Theirs get no gradient; everything else does."""
    model = HyperClip(build("M1", 24)[0], nn.Linear(10, 24), 24, SMALL)
    model.training_mode("batch")

    rows = model(torch.randn(4, 3, 64, 64), torch.randn(4, 10))
    (rows.image * rows.text).sum().backward()

    own = dict(model.image.named_parameters())
    assert model.adapted is not None
    assert model.hyper is not None
    assert all(own[name].grad is None for name in model.adapted.names)
    rest = [p for name, p in own.items() if name not in model.adapted.names]
    assert all(p.grad is not None for p in [*rest, *model.hyper.parameters(), *model.text.parameters()])


def test_the_baseline_trains_its_scales_itself_and_emits_nothing() -> None:
    model = HyperClip(build("M1", 24)[0], nn.Linear(10, 24), 24, None)

    assert model.emit(rows(3)) == {}
    assert all(p.requires_grad for p in model.image.parameters())


def test_a_caption_is_read_at_its_end_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    captions = ["a red circle", "two things on a sandy ground: a star and a box", "a", ""]
    tokenizer = make_tokenizer(captions, max_words=100)
    config = TextConfig(n_layers=2, width=32, n_heads=4, context=16)
    network = TextTransformer(tokenizer.get_vocab_size(), 24, config).eval()

    with torch.no_grad():
        together = network(tokenize(tokenizer, captions, context=16))
        apart = torch.cat([network(tokenize(tokenizer, [caption], context=16)) for caption in captions])

    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_words_beyond_the_vocabulary_are_spelled_and_long_captions_cut() -> None:
    tokenizer = make_tokenizer(["red red red box"], max_words=1)

    spelled = tokenizer.encode("red box").tokens
    cut = tokenize(tokenizer, ["red " * 50, "red"], context=8)

    assert spelled == ["red", "b", "##o", "##x"]
    assert cut.shape == (2, 8)
    assert cut[0, -1] == cut[1, 1] == 2
    assert cut[1, 2:].tolist() == [0] * 6
    assert count_cut(tokenizer, ["red " * 50, "red", "red " * 8, "red " * 7], context=8) == 2


def test_the_same_captions_make_the_same_tokenizer(tmp_path: Path) -> None:
    captions = ["one two", "two three", "Two, ZEBRA"]

    assert make_tokenizer(captions, max_words=9).to_str() == make_tokenizer(captions, max_words=9).to_str()


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"width": 10, "n_heads": 3}, "multiple of n_heads"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"bottleneck": 0}, "bottleneck must be at least 1"),
        ({"weight_scale": "large"}, "weight_scale must be a number, 'auto' or none"),
        ({"weight_scale": 0.0}, "weight_scale must be above 0"),
        ({"pool": "middle"}, "pool must be 'last' or 'early'"),
    ],
)
def test_a_shape_that_no_hypernetwork_can_have_is_refused(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        HyperConfig(**kwargs)
