"""Declared facts held against the networks themselves.

A timm network is checked without weights, on the meta device, so a whole zoo takes seconds and no
memory. A text encoder can only be checked where its weights are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperalign.embed import networks
from hyperalign.embed.encoders import probe_pictures, probe_sentences
from hyperalign.embed.identity import facts, weights_digest
from hyperalign.embed.sentences import build_sentence_encoder, sentence_hub_source
from hyperalign.embed.zoo import EncoderSpec, Facts

__all__ = ["CheckResult", "check", "check_zoo", "find_twins"]

Progress = Callable[[str, int, int], None]

NOT_CHECKED = "not checked: weights are not here"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """What building an encoder showed.

    Attributes:
        name: Of the encoder.
        ok: Whether nothing was found wrong.
        embed_dim: Measured width; None where nothing could be built.
        n_params: Measured parameters.
        gflops: Measured GFLOP of one picture or one caption of 16 tokens.
        problems: What is wrong, or why it could not be checked, one sentence each.
    """

    name: str
    ok: bool
    embed_dim: int | None = None
    n_params: int | None = None
    gflops: float | None = None
    problems: tuple[str, ...] = ()


def check(spec: EncoderSpec) -> CheckResult:
    """Build an encoder, without weights where that is possible, and compare what it is with what is declared."""
    if not _weights_here(spec):
        return CheckResult(name=spec.name, ok=True, problems=(NOT_CHECKED,))
    try:
        measured, problems = _measure(spec)
    except (ValueError, FileNotFoundError) as error:
        return CheckResult(name=spec.name, ok=False, problems=(str(error),))
    problems += list(_differences(spec, measured))
    return CheckResult(name=spec.name, ok=not problems, **measured._asdict(), problems=tuple(problems))


def check_zoo(specs: Sequence[EncoderSpec], *, progress: Progress | None = None) -> list[CheckResult]:
    """Check every encoder, telling `progress` after each."""
    results = []
    for done, spec in enumerate(specs, start=1):
        results.append(check(spec))
        if progress is not None:
            progress("checking encoders", done, len(specs))
    return results


def find_twins(specs: Sequence[EncoderSpec], *, memory: Path | None = None) -> list[tuple[str, ...]]:
    """Names of encoders with identical weights, group by group; those without weights here are known by their tag."""
    groups: dict[tuple[str, str], list[str]] = {}
    for spec in specs:
        on_hub = spec.checkpoint is None and spec.loader in ("timm", "sentence-transformers")
        if on_hub:
            key = f"{spec.architecture}@{spec.revision}"
        else:
            try:
                key = weights_digest(spec, memory=memory)
            except (ValueError, FileNotFoundError):
                continue  # `check` says what is wrong with it
        groups.setdefault((spec.modality, key), []).append(spec.name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def _measure(spec: EncoderSpec) -> tuple[Facts, list[str]]:
    """What an encoder is, and how its local weights or its licence differ from what they should be."""
    if spec.loader == "rows":
        return facts(replace(spec, embed_dim=None), memory=None), []
    if spec.modality == "text":
        return probe_sentences(spec, build_sentence_encoder(spec, offline=True)), []
    network = networks.build_network(spec, weights=False)
    problems = []
    if spec.loader == "timm":
        misfit = networks.checkpoint_misfit(spec, network.module)
        if misfit is not None:
            problems.append(f"{spec.checkpoint} does not fit {spec.architecture}: {misfit}")
        elif spec.checkpoint is None:
            problems.extend(_license_problem(spec))
    return probe_pictures(spec, network.module, network.picture), problems


def _differences(spec: EncoderSpec, measured: Facts) -> Iterator[str]:
    """Declared facts that do not hold; a declared cost may be rounded."""
    for key in ("embed_dim", "n_params"):
        declared, found = getattr(spec, key), getattr(measured, key)
        if declared not in (None, found):
            yield f"declares {key} {declared:,} but has {found:,}"
    if spec.gflops is not None and measured.gflops is not None:
        if abs(spec.gflops - measured.gflops) > 0.01 * measured.gflops + 5e-4:
            yield f"declares {spec.gflops:g} gflops but needs {measured.gflops:.4g}"


def _license_problem(spec: EncoderSpec) -> Iterator[str]:
    """A declared licence that is not the one timm records for the tag."""
    recorded = networks.hub_license(spec)
    if spec.license is not None and recorded is not None and spec.license.casefold() != recorded.casefold():
        yield f"declares the licence {spec.license} but timm records {recorded}"


def _weights_here(spec: EncoderSpec) -> bool:
    """Whether an encoder can be built without a connection."""
    if spec.loader != "sentence-transformers" or spec.checkpoint is not None:
        return True
    import huggingface_hub

    repository, file = sentence_hub_source(spec)
    return isinstance(huggingface_hub.try_to_load_from_cache(repository, file, revision=spec.revision), str)
