"""Zoo files load or say in one sentence why not; limits are inclusive and name the nearest encoder."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hyperalign.embed.zoo import (
    EncoderSpec,
    Facts,
    Limits,
    Range,
    complete,
    find_encoder,
    load_zoo,
    load_zoos,
    pairs_within,
    parse_count,
    parse_dim,
    parse_range,
    within,
    zoo_folder,
)

IMAGE = '[[encoder]]\nname = "small"\nmodality = "image"\nloader = "timm"\narchitecture = "resnet10t"\n'
TEXT = '[[encoder]]\nname = "words"\nmodality = "text"\nloader = "sentence-transformers"\ncheckpoint = "words"\n'


def image(name: str, n_params: int | None = 1_000, **facts: object) -> EncoderSpec:
    spec = EncoderSpec(name=name, modality="image", loader="timm", architecture="resnet10t", n_params=n_params)
    return replace(spec, **facts)  # type: ignore[arg-type]


def text(name: str, n_params: int | None = 1_000) -> EncoderSpec:
    return EncoderSpec(
        name=name, modality="text", loader="sentence-transformers", checkpoint="words", n_params=n_params
    )


def write(folder: Path, content: str) -> Path:
    path = folder / "zoo.toml"
    path.write_text(content)
    return path


def test_every_key_of_a_zoo_file_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        IMAGE + 'checkpoint = "x.safetensors"\nrevision = "abc"\nkwargs = { depth = 2 }\ninput_size = 96\n'
        "mean = [0, 0.5, 1]\nstd = [1, 1, 2]\n"
        'interpolation = "bilinear"\ncrop_pct = 1\npooling = "avg"\ntruncate_dim = 64\nembed_dim = 64\n'
        'n_params = 5_000\ngflops = 0.5\nlicense = "MIT"\n',
    )

    (spec,) = load_zoo(path)

    assert spec == EncoderSpec(
        name="small", modality="image", loader="timm", architecture="resnet10t", checkpoint="x.safetensors",
        revision="abc", kwargs={"depth": 2}, input_size=96, mean=(0, 0.5, 1), std=(1, 1, 2),
        interpolation="bilinear", crop_pct=1, pooling="avg", truncate_dim=64, embed_dim=64, n_params=5_000,
        gflops=0.5, license="MIT",
    )  # fmt: skip
    assert spec.local_checkpoint() == tmp_path / "x.safetensors"


def test_a_spec_can_be_sent_to_another_process_and_put_in_a_set(tmp_path: Path) -> None:
    (spec,) = load_zoo(write(tmp_path, IMAGE + "kwargs = { depth = 2 }\n"))

    assert pickle.loads(pickle.dumps(spec)) == spec
    assert len({spec, spec}) == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (IMAGE + 'licence = "MIT"\n', "unknown key 'licence'; did you mean license"),
        (IMAGE + 'folder = "x"\n', "unknown key 'folder'"),
        (IMAGE.replace('modality = "image"\n', ""), "'modality' is missing"),
        (IMAGE.replace('loader = "timm"\n', ""), "'loader' is missing"),
        (IMAGE.replace('name = "small"\n', ""), "encoder number 1: 'name' is missing"),
        (IMAGE.replace('"image"', '"imag"'), "modality must be one of image, text; got 'imag'; did you mean image"),
        (IMAGE.replace('"timm"', '"tim"'), "got 'tim'; did you mean timm"),
        (IMAGE.replace('"image"', '"text"'), "loader 'timm' embeds images only"),
        (IMAGE.replace('"small"', '"../small"'), "it names files; got '../small'"),
        (IMAGE.replace('"small"', '"a--b"'), "it names files; got 'a--b'"),
        (IMAGE.replace('"small"', '"a+b"'), "it names files; got 'a\\+b'"),
        (IMAGE.replace('"small"', "7"), "it names files; got 7"),
        (IMAGE.replace('architecture = "resnet10t"\n', ""), "loader 'timm' needs 'architecture'"),
        (IMAGE + 'prompt = "a"\n', "'prompt' means nothing to loader 'timm'"),
        (IMAGE + 'input_size = "96"\n', "input_size must be a whole number, got '96'"),
        (IMAGE + "input_size = true\n", "input_size must be a whole number, got True"),
        (IMAGE + "input_size = 0\n", "input_size must be positive, got 0"),
        (IMAGE + "n_params = 1.5\n", "n_params must be a whole number, got 1.5"),
        (IMAGE + "gflops = nan\n", "gflops must not be negative, got nan"),
        (IMAGE + "crop_pct = 1.5\n", r"crop_pct must be in \(0, 1\], got 1.5"),
        (IMAGE + "mean = [0, 1]\n", "mean must be three numbers, one per colour"),
        (IMAGE + "std = [0, 1, 1]\n", "std must be positive"),
        (IMAGE + 'interpolation = "cubic"\n', "got 'cubic'; did you mean bicubic"),
        (IMAGE + "kwargs = 3\n", "kwargs must be a table"),
        (IMAGE + "license = 3\n", "license must be text, got 3"),
        (IMAGE + IMAGE, "encoder 'small' is already declared"),
        (TEXT + 'architecture = "hub/words"\n', "needs either 'checkpoint', a local folder, or 'architecture'"),
        (TEXT.replace('checkpoint = "words"\n', ""), "needs either 'checkpoint', a local folder, or 'architecture'"),
        (TEXT + "input_size = 3\n", "'input_size' means nothing to loader 'sentence-transformers'"),
        (
            '[[encoder]]\nname = "f"\nmodality = "image"\nloader = "python"\nfactory = "f"\ninput_size = 8\n'
            "mean = [0, 0, 0]\nstd = [1, 1, 1]\n",
            "factory must read 'file.py:function', got 'f'",
        ),
        ("[encoder]\n", "with two brackets"),
        ("encoder = [3]\n", "with two brackets"),
        ("[[encoders]]\n", "holds only \\[\\[encoder\\]\\] tables, got 'encoders'"),
        ("", "declares no encoder"),
        ("[[encoder]\n", "not a TOML file"),
    ],
)
def test_a_faulty_zoo_file_is_refused_in_one_sentence_with_its_path(
    tmp_path: Path, content: str, sentence: str
) -> None:
    path = write(tmp_path, content)

    with pytest.raises(ValueError, match=sentence) as caught:
        load_zoo(path)

    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_zoo_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zoo.toml"
    path.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ValueError, match="not a TOML file"):
        load_zoo(path)


def test_a_missing_zoo_is_named_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no zoo file"):
        load_zoo(tmp_path / "none.toml")
    with pytest.raises(FileNotFoundError, match="'hubb'; did you mean hub"):
        load_zoo("hubb")


def test_two_zoos_that_declare_one_name_do_not_merge(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(IMAGE)
    (tmp_path / "b.toml").write_text(TEXT + IMAGE)

    with pytest.raises(ValueError, match=r"'small' is declared in .*a\.toml and again in .*b\.toml"):
        load_zoos([tmp_path / "a.toml", tmp_path / "b.toml"])


def test_zoos_merge_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(IMAGE)
    (tmp_path / "b.toml").write_text(TEXT)

    assert [spec.name for spec in load_zoos([tmp_path / "b.toml", tmp_path / "a.toml"])] == ["words", "small"]


def test_an_unknown_encoder_gets_near_matches() -> None:
    with pytest.raises(KeyError, match="no encoder 'resnet2O' in the zoo; did you mean resnet20"):
        find_encoder([image("resnet20"), image("vit")], "resnet2O")


def test_a_found_encoder_is_the_one_of_that_name() -> None:
    assert find_encoder([image("a"), image("b", 7)], "b").n_params == 7


@pytest.mark.parametrize("zoo", sorted(path.stem for path in zoo_folder().glob("*.toml")))
def test_every_shipped_zoo_loads(zoo: str) -> None:
    assert load_zoo(zoo)


@pytest.mark.parametrize(
    ("word", "count"), [("30M", 30_000_000), ("1.5G", 1_500_000_000), ("250000", 250_000), ("2k", 2_000), ("1B", 10**9)]
)
def test_counts_are_read_with_their_suffix(word: str, count: int) -> None:
    assert parse_count(word) == count


@pytest.mark.parametrize("word", ["", "M", "many", "-3", "0", "nan", "inf", "1e400", "30MM", "0.2"])
def test_a_word_that_is_no_count_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"count|positive|at least"):
        parse_count(word)


@pytest.mark.parametrize(
    ("word", "bounds"),
    [
        ("30M", Range(None, 30e6)),
        (":30M", Range(None, 30e6)),
        ("120M:", Range(120e6, None)),
        ("30M:120M", Range(30e6, 120e6)),
        ("0.35", Range(None, 0.35)),
    ],
)
def test_ranges_are_read_as_the_manual_says(word: str, bounds: Range) -> None:
    assert parse_range(word) == bounds


@pytest.mark.parametrize("word", [":", "", "3:2", "1:2:3", "a:b", "-1:3"])
def test_a_word_that_is_no_range_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"range|limit|positive"):
        parse_range(word)


def test_a_width_alone_is_exact_and_a_limit_alone_is_an_upper_bound() -> None:
    assert parse_dim("384") == Range(384, 384)
    assert parse_dim("384:") == Range(384, None)
    assert parse_range("384") == Range(None, 384)


def test_ranges_include_their_ends() -> None:
    assert [Range(2, 3).contains(value) for value in (1, 2, 3, 4)] == [False, True, True, False]


def test_each_limit_binds_its_own_side_only() -> None:
    zoo = [
        image("i1", 10, embed_dim=8, gflops=1.0),
        image("i2", 99, embed_dim=16, gflops=2.0),
        text("t1", 5),
        text("t2", 50),
    ]
    at = Range(high=10)

    def names(limits: Limits) -> list[str]:
        return [spec.name for spec in within(zoo, limits, latencies={"i1": 3.0, "i2": 30.0})]

    assert names(Limits()) == ["i1", "i2", "t1", "t2"]
    assert names(Limits(image_params=at)) == ["i1", "t1", "t2"]
    assert names(Limits(text_params=at)) == ["i1", "i2", "t1"]
    assert names(Limits(gflops=Range(high=1.0))) == ["i1", "t1", "t2"]
    assert names(Limits(dim=Range(16, 16))) == ["i2", "t1", "t2"]
    assert names(Limits(latency_ms=at)) == ["i1", "t1", "t2"]


def test_an_impossible_budget_names_the_smallest_encoder_and_its_size() -> None:
    zoo = [image("big", 3_000_000), image("resnet20", 270_896), text("words", 5)]

    with pytest.raises(
        ValueError, match=r"no image encoder has at most 1,000 parameters; the smallest is resnet20 with 270,896$"
    ):
        within(zoo, Limits(image_params=Range(high=1_000)))
    with pytest.raises(ValueError, match="no text encoder has at most 2 parameters; the smallest is words with 5"):
        within(zoo, Limits(text_params=Range(high=2)))


def test_a_budget_with_a_floor_names_the_largest_and_one_between_names_both() -> None:
    zoo = [image("a", 10), image("b", 20)]

    with pytest.raises(ValueError, match=r"at least 30 parameters; the largest is b with 20$"):
        within(zoo, Limits(image_params=Range(low=30)))
    with pytest.raises(ValueError, match=r"11 to 19 parameters; the smallest is a with 10, the largest is b with 20$"):
        within(zoo, Limits(image_params=Range(11, 19)))


def test_a_limit_on_an_unknown_fact_is_said_and_not_passed() -> None:
    with pytest.raises(ValueError, match="at most 5 parameters cannot be held against image encoder 'a'"):
        within([image("a", None)], Limits(image_params=Range(high=5)))
    with pytest.raises(ValueError, match="ms per picture cannot be held against image encoder 'a'"):
        within([image("a")], Limits(latency_ms=Range(high=5)))
    with pytest.raises(ValueError, match="cannot be held against pair 'a\\+t'"):
        pairs_within([image("a")], [text("t", None)], Limits(pair_params=Range(high=5)))


def test_licences_are_compared_without_case_and_an_undeclared_one_is_not_permitted() -> None:
    zoo = [image("a", license="MIT"), image("b", license="CC-BY-NC-4.0"), image("c")]

    assert [spec.name for spec in within(zoo, Limits(licenses=("mit",)))] == ["a"]
    with pytest.raises(ValueError, match=r"theirs are CC-BY-NC-4.0, MIT, undeclared"):
        within(zoo, Limits(licenses=("BSD",)))


def test_pairs_are_the_whole_grid_and_a_pair_limit_adds_both_sides() -> None:
    images, texts = [image("a", 10), image("b", 20)], [text("s", 1), text("t", 30)]

    assert [pair.name for pair in pairs_within(images, texts, Limits())] == ["a+s", "a+t", "b+s", "b+t"]
    assert [pair.name for pair in pairs_within(images, texts, Limits(pair_params=Range(high=21)))] == ["a+s", "b+s"]
    with pytest.raises(ValueError, match="no pair has at most 2 parameters; the smallest is a\\+s with 11"):
        pairs_within(images, texts, Limits(pair_params=Range(high=2)))


def test_a_side_without_encoders_makes_no_pair() -> None:
    with pytest.raises(ValueError, match="the zoo has no text encoder"):
        pairs_within([image("a")], [], Limits())


def test_declared_facts_stand_and_the_others_are_filled_in() -> None:
    spec = complete(image("a", 10), Facts(embed_dim=4, n_params=11, gflops=0.5))

    assert (spec.embed_dim, spec.n_params, spec.gflops) == (4, 10, 0.5)


def test_reading_a_zoo_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hyperalign.embed import zoo; [zoo.load_zoo(p) for p in zoo.zoo_folder().glob('*.toml')];"
        "print([m for m in ('torch', 'timm', 'numpy', 'sentence_transformers', 'pandas') if m in sys.modules])"
    )

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"
