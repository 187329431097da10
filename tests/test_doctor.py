"""The doctor names what is wrong and what to do, and finds nothing wrong where nothing is."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from hyperalign import doctor
from hyperalign.doctor import torchvision_fault
from hyperalign.machine import find_commits, find_versions, measure_matmul, n_cores


def installed(**versions: str) -> Callable[[str], str]:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    return version


def pinned(line: str) -> Callable[[str], list[str]]:
    return lambda name: ["numpy", line, "pillow!=8.3.*,>=5.3.0"]


@pytest.mark.parametrize("line", ["torch==2.6.0", "torch (==2.6.0)"])
def test_a_torchvision_for_another_torch_is_found(line: str) -> None:
    fault = torchvision_fault(installed(torch="2.7.1", torchvision="0.21.0"), pinned(line))

    assert fault
    assert "was built for torch 2.6.0, but torch 2.7.1 is installed" in fault
    assert "pip install --upgrade torch torchvision" in fault


def test_a_torchvision_for_another_device_is_found() -> None:
    fault = torchvision_fault(installed(torch="2.6.0+cpu", torchvision="0.21.0+cu124"), pinned("torch==2.6.0"))

    assert fault
    assert "https://download.pytorch.org/whl/cpu" in fault


@pytest.mark.parametrize(
    ("torch", "line"), [("2.6.0", "torch==2.6.0"), ("2.6.0+cu124", "torch==2.6.0"), ("2.15.0", "torch (>=2.14.0)")]
)
def test_a_torchvision_that_fits_is_no_fault(torch: str, line: str) -> None:
    assert torchvision_fault(installed(torch=torch, torchvision="0.21.0"), pinned(line)) is None


def test_no_torchvision_is_no_fault() -> None:
    assert torchvision_fault(installed(torch="2.6.0"), pinned("torch==2.6.0")) is None


def test_a_library_that_cannot_be_imported_is_named_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        if name == "faiss":
            raise RuntimeError("undefined symbol:\n_ZN5faiss")

    monkeypatch.setattr(doctor, "import_module", broken)

    problems = doctor.examine(cache_dir=tmp_path, say=lambda line: None).problems

    assert "faiss cannot be imported (undefined symbol: _ZN5faiss); run `pip install --upgrade faiss-cpu`" in problems


def test_missing_weights_of_the_embedded_zoo_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = tmp_path / "embedded.toml"
    zoo.write_text(
        '[[encoder]]\nname = "gone"\nmodality = "text"\nloader = "sentence-transformers"\ncheckpoint = "gone"\n'
    )
    monkeypatch.setattr("hyperalign.embed.zoo.zoo_folder", lambda: tmp_path)
    monkeypatch.setattr(doctor, "import_module", lambda name: None)

    problems = doctor.examine(cache_dir=tmp_path, say=lambda line: None).problems

    assert any("weights of the embedded zoo are missing: gone" in problem for problem in problems)


def test_facts_are_found_without_importing_what_they_are_about() -> None:
    versions = find_versions()

    assert versions["torch"] == metadata.version("torch")
    assert n_cores() >= 1


def test_a_folder_outside_of_a_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    assert find_commits()["working_folder"] is None


def test_a_matrix_product_takes_time_and_so_has_a_speed() -> None:
    assert 1e6 < measure_matmul(size=128, n_repeats=2) < 1e15
