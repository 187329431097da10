"""The encoders and pairs that the limits let through, and what is known of them without building any.

Facts, identities and latencies are remembered beside the cache, so a warm run builds no encoder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperalign.embed.identity import pin, settle
from hyperalign.embed.memory import keep, recall
from hyperalign.embed.zoo import EncoderSpec, Limits, Pair, load_zoos, pairs_within, within
from hyperalign.machine import n_cores

if TYPE_CHECKING:
    from hyperalign.embed.encoders import Encoder

__all__ = ["Candidates", "find_candidates", "recall_latency", "remember_latency", "this_machine"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The encoders and pairs that the limits let through.

    Attributes:
        images: N image encoders, facts known.
        texts: M text encoders, facts known.
        pairs: The pairs within the limit on both together; all N×M where there is none.
        latencies: Milliseconds of one picture by encoder, where measured on this machine.
        counts: What the limits let through, in words.
    """

    images: tuple[EncoderSpec, ...]
    texts: tuple[EncoderSpec, ...]
    pairs: tuple[Pair, ...]
    latencies: Mapping[str, float]
    counts: tuple[str, ...]

    def pair_indices(self) -> list[tuple[int, int]]:
        """(image, text) indices of the pairs."""
        at_image = {spec.name: i for i, spec in enumerate(self.images)}
        at_text = {spec.name: j for j, spec in enumerate(self.texts)}
        return [(at_image[pair.image.name], at_text[pair.text.name]) for pair in self.pairs]


def find_candidates(
    zoo: Sequence[str], limits: Limits, *, cache_dir: Path, progress: Progress, measure: bool = True
) -> Candidates:
    """Read the zoos, learn the facts that are not declared, and apply the limits.

    Args:
        zoo: Names of shipped zoos or paths of zoo files.
        limits: What encoders must keep to.
        cache_dir: Where facts are remembered.
        progress: Told `(stage, done, total)`.
        measure: Whether a latency that a limit asks for is measured where it is not known; else it is let through.

    Raises:
        ValueError: If a limit leaves nothing; the smallest is named.
        FileNotFoundError: If a zoo or a checkpoint is missing.
    """
    declared = load_zoos(zoo)
    specs = []
    for done, spec in enumerate(declared, start=1):
        specs.append(settle(spec, memory=cache_dir))
        progress("encoders", done, len(declared))
    latencies = {spec.name: ms for spec in specs if (ms := recall_latency(spec, cache_dir)) is not None}
    counts = []
    if limits.latency_ms is not None:
        unknown = [spec for spec in specs if _has_latency(spec) and spec.name not in latencies]
        if measure:
            for done, spec in enumerate(unknown, start=1):
                latencies[spec.name] = remember_latency(spec, cache_dir)
                progress("latencies", done, len(unknown))
        elif unknown:
            words = "1 latency is" if len(unknown) == 1 else f"{len(unknown)} latencies are"
            counts.append(f"{words} measured when the search runs; until then the limit lets them through")
    kept = within(specs, limits, latencies={**_let_through(specs, limits, measure=measure), **latencies})
    images, texts = ([spec for spec in kept if spec.modality == side] for side in ("image", "text"))
    pairs = pairs_within(images, texts, limits)
    images = [spec for spec in images if any(pair.image is spec for pair in pairs)]
    texts = [spec for spec in texts if any(pair.text is spec for pair in pairs)]
    counts.insert(0, _count(specs, images, texts, pairs))
    return Candidates(
        images=tuple(images), texts=tuple(texts), pairs=tuple(pairs), latencies=latencies, counts=tuple(counts)
    )


def recall_latency(spec: EncoderSpec, cache_dir: Path) -> float | None:
    """Milliseconds of one picture as once measured on this machine; None where it was not."""
    found = recall(cache_dir, f"latency of {spec.name}").get(this_machine(spec))
    return None if found is None else float(found)


def remember_latency(spec: EncoderSpec, cache_dir: Path, encoder: "Encoder | None" = None) -> float:
    """Measure the milliseconds of one picture and keep them; the encoder is built if none is given."""
    from hyperalign.embed.encoders import load_encoder, measure_latency

    ms = measure_latency(encoder or load_encoder(pin(spec, memory=cache_dir)))
    about = f"latency of {spec.name}"
    keep(cache_dir, about, {**recall(cache_dir, about), this_machine(spec): ms})
    return ms


def _let_through(specs: Sequence[EncoderSpec], limits: Limits, *, measure: bool) -> dict[str, float]:
    """Latencies that a limit lets through, for encoders whose own is not measured."""
    bound = limits.latency_ms
    if measure or bound is None:
        return {}
    passing = bound.high if bound.high is not None else bound.low
    return {spec.name: passing for spec in specs if passing is not None and _has_latency(spec)}


def _has_latency(spec: EncoderSpec) -> bool:
    """Ready embeddings have none."""
    return spec.modality == "image" and spec.loader != "rows"


def this_machine(spec: EncoderSpec) -> str:
    """What a measured speed of an encoder belongs to."""
    return f"{n_cores()} cores, {spec.architecture or spec.factory}, {spec.n_params}"


def _count(
    specs: Sequence[EncoderSpec], images: Sequence[EncoderSpec], texts: Sequence[EncoderSpec], pairs: Sequence[Pair]
) -> str:
    n_images, n_texts = (sum(spec.modality == side for spec in specs) for side in ("image", "text"))
    return (
        f"within the limits: {len(images)} of {n_images} image encoders, {len(texts)} of {n_texts} text encoders, "
        f"{len(pairs)} of {n_images * n_texts} pairs"
    )
