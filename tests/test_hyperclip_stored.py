"""Models on disk and encoders made for one set of prompts: what comes back, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyperalign.embed.networks import import_timm
from hyperalign.hyperclip.architectures import NAMES, find_architecture
from hyperalign.hyperclip.hypernetwork import HyperConfig
from hyperalign.hyperclip.specialise import class_rows, read_prompts, specialise, write_specialised
from hyperalign.hyperclip.stored import Model, ModelRecord, build_model, find_model, load_model, save_model
from hyperalign.hyperclip.text import TextConfig, make_tokenizer

PROMPTS = ["a red circle", "two boxes", "a star", "zebra", "a misty ground"]
SMALL = HyperConfig(n_layers=1, width=32, n_heads=4, feed_forward=48, bottleneck=16)
TEXT = TextConfig(n_layers=1, width=32, n_heads=4, context=16)


def make(name: str = "M1", hyper: HyperConfig | None = SMALL, embed_dim: int = 24) -> Model:
    """A model as training leaves it: every number of it has moved."""
    torch.manual_seed(0)
    record = ModelRecord(
        image=find_architecture(name, input_size=64), embed_dim=embed_dim, head=True, hyper=hyper, text_config=TEXT
    )
    model = build_model(record, make_tokenizer(PROMPTS, max_words=100))
    network = model.network.train()
    with torch.no_grad():
        for _ in range(3):
            network.image(torch.randn(4, 3, 64, 64))
        if network.hyper is not None:
            network.hyper.leave.weight.mul_(10)
    network.eval()
    return model


@pytest.fixture(scope="module")
def model() -> Model:
    return make()


def pictures() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", NAMES)
def test_timm_alone_loads_what_was_specialised_and_gives_what_the_live_model_gives(name: str, tmp_path: Path) -> None:
    model = make(name)
    out = write_specialised(tmp_path / "out", specialise(model, PROMPTS), model, PROMPTS, ("{}",))
    page = json.loads((out / "specialised.json").read_text())

    plain = import_timm().create_model(
        page["architecture"], num_classes=page["num_classes"], checkpoint_path=str(out / "encoder.safetensors")
    )

    network = model.network
    with torch.no_grad():
        rows = class_rows(model, PROMPTS)
        parameters = network.emit(rows)
        live = network.embed_pictures(pictures(), parameters) @ rows.T
        folded = (
            torch.nn.functional.normalize(plain.eval()(pictures()), dim=-1)
            @ load_file(out / "classes.safetensors")["classes"].T
        )
        unadapted = network.embed_pictures(pictures(), {}) @ rows.T
    torch.testing.assert_close(folded, live, rtol=0, atol=1e-5)
    assert not torch.allclose(unadapted, live, atol=1e-4)
    assert set(plain.state_dict()) == set(load_file(out / "encoder.safetensors"))


def test_the_order_of_the_prompts_does_not_change_a_bit_of_what_is_written(model: Model, tmp_path: Path) -> None:
    backwards = PROMPTS[::-1]

    for folder, prompts in (("one", PROMPTS), ("other", backwards)):
        write_specialised(tmp_path / folder, specialise(model, prompts), model, prompts, ("{}",))

    one, other = ((tmp_path / folder / "encoder.safetensors").read_bytes() for folder in ("one", "other"))
    assert one == other
    classes = [load_file(tmp_path / folder / "classes.safetensors")["classes"] for folder in ("one", "other")]
    assert torch.equal(classes[0], classes[1].flip(0))


@pytest.mark.parametrize("n", [1, 2, 7, 300, 1000])
def test_any_number_of_prompts_from_1_to_1000_is_specialised(model: Model, n: int) -> None:
    prompts = [f"a star {number}" for number in range(n)]

    made, again = specialise(model, prompts), specialise(model, sorted(prompts, reverse=True))

    assert made.classes.shape == (n, 24)
    assert all(torch.equal(value, again.state[name]) for name, value in made.state.items())


def test_a_class_is_the_mean_of_its_prompts(model: Model) -> None:
    one, other = (class_rows(model, ["a star"], (template,))[0] for template in ("{}", "two {}"))

    both = class_rows(model, ["a star"], ("{}", "two {}"))[0]

    torch.testing.assert_close(both, torch.nn.functional.normalize(one + other, dim=0))


def test_a_model_comes_back_as_it_was_saved(model: Model, tmp_path: Path) -> None:
    save_model(tmp_path, model)

    again = load_model(tmp_path)

    assert again.record == model.record
    assert again.picture == model.picture
    with torch.no_grad():
        assert torch.equal(class_rows(again, PROMPTS), class_rows(model, PROMPTS))
        parameters = [one.network.emit(class_rows(one, PROMPTS)) for one in (model, again)]
        assert torch.equal(
            *(one.network.embed_pictures(pictures(), p) for one, p in zip((model, again), parameters, strict=True))
        )


def test_specialising_leaves_the_model_as_it_was(model: Model) -> None:
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}

    specialise(model, PROMPTS)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())


def test_a_model_without_hypernetwork_is_specialised_to_itself() -> None:
    model = make(hyper=None)

    made = specialise(model, PROMPTS)

    assert all(torch.equal(made.state[name], value) for name, value in model.network.image.state_dict().items())


def test_a_checkpoint_that_was_cut_short_is_refused(model: Model, tmp_path: Path) -> None:
    save_model(tmp_path, model)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or was cut short .*; adapt again"):
        load_model(tmp_path)


def test_weights_of_another_architecture_are_refused(model: Model, tmp_path: Path) -> None:
    save_model(tmp_path, model)
    save_file(make("T0").network.state_dict(), tmp_path / "model.safetensors")

    with pytest.raises(ValueError, match=r"does not fit a model of hyperclip-m1: missing: image\.blocks"):
        load_model(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model in .*: it has no model\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("words", ["{", "[]", '{"format": 2}', '{"format": 1, "image": 3}', '{"format": 1}'])
def test_a_record_that_is_none_is_refused(words: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(words)

    with pytest.raises(ValueError, match=r"model\.json is not the record of a model: .*; adapt again"):
        load_model(tmp_path)


def test_nothing_is_overwritten(model: Model, tmp_path: Path) -> None:
    (tmp_path / "classes.safetensors").write_text("mine")

    with pytest.raises(ValueError, match=r"holds classes\.safetensors already, and nothing is overwritten"):
        write_specialised(tmp_path, specialise(model, PROMPTS), model, PROMPTS, ("{}",))
    assert (tmp_path / "classes.safetensors").read_text() == "mine"
    assert not (tmp_path / "encoder.safetensors").exists()


@pytest.mark.parametrize("text", ["", "\n \n\t\n"])
def test_an_empty_list_of_prompts_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)

    with pytest.raises(ValueError, match=r"classes\.txt holds no prompt; write at least one, one a line"):
        read_prompts(tmp_path / "classes.txt")


def test_a_prompt_that_stands_twice_is_refused(model: Model, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a star\nzebra\n\n a star \n")

    with pytest.raises(ValueError, match="holds the prompt 'a star' twice"):
        read_prompts(tmp_path / "classes.txt")
    with pytest.raises(ValueError, match="holds the prompt 'zebra' twice"):
        specialise(model, ["zebra", "zebra"])


def test_prompts_are_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes("\ufeffa star\r\n  caf\u00e9\n\nzebra".encode())

    assert read_prompts(tmp_path / "classes.txt") == ["a star", "caf\u00e9", "zebra"]


def test_a_model_without_any_text_side_is_refused() -> None:
    record = ModelRecord(image=find_architecture("M1", input_size=64), embed_dim=24, head=True, hyper=None)

    with pytest.raises(ValueError, match="a model needs a frozen text encoder or a transformer of its own"):
        build_model(record, None)


@pytest.mark.parametrize("inside", ["", "hyperclip", "hyperclip-flat"])
def test_the_model_of_an_adaptation_is_found_in_its_folder(inside: str, tmp_path: Path, model: Model) -> None:
    save_model(tmp_path / inside, model)

    assert find_model(tmp_path) == tmp_path / inside


def test_a_folder_without_a_model_is_itself_and_refused_when_it_is_opened(tmp_path: Path) -> None:
    assert find_model(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="no model in"):
        load_model(find_model(tmp_path))


def test_a_model_that_lost_a_file_names_it(tmp_path: Path, model: Model) -> None:
    save_model(tmp_path / "model", model)
    lost = next(path for path in (tmp_path / "model").iterdir() if path.suffix == ".safetensors")
    lost.unlink()

    with pytest.raises(FileNotFoundError, match=f"has no {lost.name}; adapt again"):
        load_model(tmp_path / "model")


def test_prompts_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*; give a text file with one prompt a line"):
        read_prompts(tmp_path / "prompts.txt")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layers": 0}, "n_layers must be at least 1, got 0"),
        ({"max_words": 0}, "max_words must be at least 1, got 0"),
        ({"context": 1}, "context must be at least 2, a token and the end of the text, got 1"),
        ({"width": 30, "n_heads": 4}, "width must be a multiple of n_heads, got 30 and 4"),
    ],
)
def test_a_text_transformer_that_could_not_be_is_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextConfig(**fields)

    assert TextConfig(n_layers=1, width=1, n_heads=1, context=2, max_words=1).context == 2
