"""The doctor names what is wrong and what to do, and finds nothing wrong where nothing is."""

import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from hyperalign import doctor
from hyperalign.doctor import (
    encoding_fault,
    file_system,
    network_fault,
    openmp_fault,
    shared_memory_fault,
    torchvision_fault,
)
from hyperalign.machine import find_commits, find_hardware, find_versions, measure_matmul, n_cores


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


def test_a_cache_on_a_network_file_system_is_found(tmp_path: Path) -> None:
    (tmp_path / "share" / "cache").mkdir(parents=True)
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path.resolve()}/share nfs4 rw 0 0\n")

    kinds = [file_system(tmp_path / "share" / "cache" / "not yet", mounts), file_system(tmp_path, mounts)]

    assert kinds == ["nfs4", "ext4"]
    fault = network_fault(tmp_path / "share", kinds[0])
    assert fault
    assert "network file system (nfs4)" in fault
    assert "--cache-dir" in fault
    assert network_fault(tmp_path, kinds[1]) is None


def test_a_system_without_mounts_to_read_has_no_kind_and_no_fault(tmp_path: Path) -> None:
    assert file_system(tmp_path, tmp_path / "nothing") == ""
    assert network_fault(tmp_path, "") is None


def test_text_that_is_not_utf_8_is_found() -> None:
    assert encoding_fault(["UTF-8", "utf-8"]) is None
    assert encoding_fault(["utf8"]) is None
    fault = encoding_fault(["cp1252", "utf-8"])
    assert fault
    assert "as cp1252, not as UTF-8" in fault
    assert "PYTHONUTF8=1" in fault


def test_too_little_shared_memory_is_found(tmp_path: Path) -> None:
    fault = shared_memory_fault(tmp_path, lambda path: 64 * 2**20)

    assert "holds 64 MB" in fault
    assert "--shm-size" in fault
    assert not shared_memory_fault(tmp_path, lambda path: 2**30)
    assert not shared_memory_fault(tmp_path / "nothing", lambda path: 0)


def brings(*packages: str) -> Callable[[str], list[metadata.PackagePath] | None]:
    def files(name: str) -> list[metadata.PackagePath] | None:
        if name not in ("torch", "faiss-cpu"):
            raise metadata.PackageNotFoundError(name)
        return [metadata.PackagePath(f"{name}/.dylibs/libomp.dylib")] if name in packages else None

    return files


def test_two_libraries_of_openmp_are_found_on_macos_alone() -> None:
    fault = openmp_fault("Darwin", brings("torch", "faiss-cpu"))

    assert fault
    assert "torch and faiss-cpu each bring an OpenMP" in fault
    assert openmp_fault("Darwin", brings("torch")) is None
    assert openmp_fault("Linux", brings("torch", "faiss-cpu")) is None


def test_extras_that_are_not_installed_are_named_and_are_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "import_module", lambda name: None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in ("datasets", "open_clip") else object())
    monkeypatch.setattr(doctor, "measure_matmul", lambda: 1e9)

    found = doctor.examine(cache_dir=tmp_path, say=lambda line: None)

    assert dict(found.facts)["extras not installed"] == "datasets, open-clip"
    assert not any("datasets" in problem for problem in found.problems)


def test_a_machine_that_does_not_tell_its_memory_has_hardware_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no `os.sysconf`."""
    monkeypatch.delattr("os.sysconf")

    assert find_hardware()["memory_bytes"] is None


def test_memory_of_a_process_that_was_started_counts_where_it_is_asked_for() -> None:
    script = (
        "import subprocess, sys\n"
        "from hyperalign.machine import peak_bytes\n"
        "wanted = peak_bytes() + 10**8\n"  # a new process may start with the peak of the one that made it
        "subprocess.run([sys.executable, '-c', f'bytearray({wanted})'], check=True)\n"
        "print(peak_bytes(), wanted, peak_bytes(with_children=True))"
    )

    alone, wanted, with_children = map(int, subprocess.check_output([sys.executable, "-c", script]).split())

    assert 0 < alone < wanted < with_children
