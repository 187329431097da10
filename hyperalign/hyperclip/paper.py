"""The paper's four tables for any data and architectures: everything trained, measured and written by one call.

A folder holds an adaptation for each architecture, batch size and seed, `tables.json`, and a CSV file for each table.
What is finished stays: a folder that was cut short goes on where it stood.
Source: Akinwande et al. 2024, arXiv:2412.16777 (zero-shot by architecture, worst group, throughput, batch size).
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from hyperalign.bench.sheet import Sheet
from hyperalign.config import build
from hyperalign.hyperclip.adapt import RECORD, AdaptConfig, adapt, open_tables, read_record
from hyperalign.hyperclip.architectures import find_architecture
from hyperalign.hyperclip.bound import BoundConfig
from hyperalign.hyperclip.overhead import N_TOKENS, Overhead, Shape, measure_overhead
from hyperalign.hyperclip.paper_sheets import (
    Found,
    Timed,
    batch_sheet,
    norms_sheet,
    overhead_sheet,
    worst_group_sheet,
    zero_shot_sheet,
)
from hyperalign.hyperclip.probe import ProbeConfig
from hyperalign.hyperclip.yardsticks import Yardsticks, measure_yardsticks
from hyperalign.machine import find_commits, find_hardware, find_versions
from hyperalign.processes import device_of_training, is_first, same_everywhere, wait
from hyperalign.record import to_json
from hyperalign.run import make_folder, write_whole

__all__ = ["SHEETS", "TABLES_RECORD", "TablesConfig", "make_tables", "read_tables"]

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]

SHEETS: Final = ("zero-shot", "worst-group", "overhead", "batch-size")
TABLES_RECORD: Final = "tables.json"

_EXTRAS = "extras.json"
_CPU_BATCH = 16  # pictures in a timed step where memory is not what limits them


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """What the tables are made of; the one home of these defaults.

    Attributes:
        base: What is trained and how; its architecture is one of `archs`, or it names a run.
        archs: Architectures; empty for a run.
        sheets: Of `SHEETS`.
        n_seeds: Seeds, from that of `base` on.
        batch_sizes: Of the ablation, which takes the first architecture; empty for a quarter, a half and all of that
            of `base`.
        train_share: Share of a class set's pictures that probe and bound are trained on.
        probe: Fields of `ProbeConfig`.
        bound: Fields of `BoundConfig`.
        n_rounds: Timed steps.
        overhead_batch: Pictures in a timed step; None for the largest that fits on a GPU, and a few on a CPU.
    """

    base: AdaptConfig
    archs: tuple[str, ...] = ()
    sheets: tuple[str, ...] = SHEETS
    n_seeds: int = 1
    batch_sizes: tuple[int, ...] = ()
    train_share: float = 0.5
    probe: Mapping[str, Any] = field(default_factory=dict)
    bound: Mapping[str, Any] = field(default_factory=dict)
    n_rounds: int = 3
    overhead_batch: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no table can be made of."""
        for name in self.sheets:
            if name not in SHEETS:
                raise ValueError(f"a table is one of {', '.join(SHEETS)}, got {name!r}")
        if not self.sheets:
            raise ValueError(f"name at least one table: {', '.join(SHEETS)}")
        if self.n_seeds < 1 or self.n_rounds < 1:
            raise ValueError(f"seeds and rounds must be at least 1, got {self.n_seeds} and {self.n_rounds}")
        if not 0 < self.train_share < 1:
            raise ValueError(f"train_share must be in (0, 1), got {self.train_share}")
        if min(self.batch_sizes, default=2) < 2:
            raise ValueError(f"batch sizes must be at least 2, got {min(self.batch_sizes)}")
        if len({*self.archs}) < len(self.archs):
            raise ValueError(f"every architecture is wanted once, got {', '.join(self.archs)}")
        if self.needs_training and not {"siglip", "hyperclip"} <= {*self.base.methods}:
            raise ValueError("the tables compare siglip and hyperclip; both must be among the methods")
        for arch in self.archs:
            find_architecture(arch)
        build(ProbeConfig, self.probe)
        build(BoundConfig, self.bound)

    @property
    def needs_training(self) -> bool:
        """Whether any table needs a trained model."""
        return {*self.sheets} != {"overhead"}

    def sizes(self) -> tuple[int, ...]:
        """Batch sizes of the ablation."""
        whole = self.base.training().batch_size
        return tuple(sorted({*(self.batch_sizes or (max(2, whole // 4), max(2, whole // 2), whole))}))


class _Job(NamedTuple):
    """One adaptation to make.

    Attributes:
        arch: Architecture; None for the winner of a run.
        batch_size: Pictures in a step.
        seed: Its seed.
        config: All of it.
    """

    arch: str | None
    batch_size: int
    seed: int
    config: AdaptConfig

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.arch or 'winner'}-batch{self.batch_size}-seed{self.seed}"


def make_tables(
    config: TablesConfig,
    *,
    cache_dir: Path,
    out: Path,
    resume: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
    say: Say = lambda sentence: None,
) -> Path:
    """Train what the tables need, measure it and write them.

    Args:
        config: What is wanted.
        cache_dir: Where embeddings are kept.
        out: Where results are kept.
        resume: Folder of tables that were cut short, of the same configuration.
        progress: Told `(stage, done, total)`.
        say: Told sentences meanwhile.

    Returns:
        The folder.
    """
    jobs = _jobs(config)
    if jobs:  # a mistake in the data or the run comes to light before anything is written
        open_tables(jobs[0].config, cache_dir=cache_dir, progress=progress, say=lambda sentence: None)
    folder = resume or same_everywhere(lambda: _new_folder(out))
    record = {
        "status": "running",
        "configuration": asdict(config),
        "versions": find_versions(),
        "hardware": find_hardware(),
        "commit": find_commits(),
        "sheets": {},
    }
    if is_first():
        _write(folder, record)
    found = []
    for number, job in enumerate(jobs, start=1):
        say(f"{job.arch or 'the winner'}, batch {job.batch_size}, seed {job.seed}: {number} of {len(jobs)}")
        found.append(_adapted(config, job, folder, cache_dir, progress, say))
    if is_first():
        timed = _timed(config, folder, cache_dir, progress, say) if "overhead" in config.sheets else []
        sheets = _sheets(config, found, timed)
        for name, sheet in sheets.items():
            write_whole(folder / f"{name}.csv", _as_csv(sheet).encode())
        sheet_records = {name: sheet._asdict() for name, sheet in sheets.items()}
        _write(folder, {**record, "sheets": sheet_records, "status": "finished"})
    wait()
    return folder


def read_tables(folder: Path) -> dict[str, Any]:
    """`tables.json` of a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged.
    """
    path = folder / TABLES_RECORD
    if not path.is_file():
        raise FileNotFoundError(f"no tables in {folder}: it has no {TABLES_RECORD}; give a folder of `adapt --table`")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); make the tables again") from None
    if not isinstance(record, dict) or not {"configuration", "sheets", "status"} <= {*record}:
        raise ValueError(f"{path} is not the record of tables; make them again")
    return record


def _jobs(config: TablesConfig) -> list[_Job]:
    """Every architecture at the base's batch size, and the first one at those of the ablation, for every seed."""
    if not config.needs_training:
        return []
    whole = config.base.training().batch_size
    archs: tuple[str | None, ...] = config.archs or (None,)
    wanted = [(arch, whole) for arch in archs] if {*config.sheets} & {"zero-shot", "worst-group"} else []
    if "batch-size" in config.sheets:
        wanted += [(archs[0], size) for size in config.sizes()]
    seeds = range(config.base.training().seed, config.base.training().seed + config.n_seeds)
    return [
        _Job(arch, size, seed, _changed(config.base, arch, size, seed))
        for arch, size in dict.fromkeys(wanted)
        for seed in seeds
    ]


def _changed(base: AdaptConfig, arch: str | None, batch_size: int, seed: int) -> AdaptConfig:
    """The base with another architecture, batch size and seed, for as many pictures seen."""
    own = base.training()
    train = {**base.train, "batch_size": batch_size, "seed": seed}
    if own.n_steps is not None:
        train["n_steps"] = max(1, round(own.n_steps * own.batch_size / batch_size))
    return replace(base, arch=arch, train=train)


def _adapted(config: TablesConfig, job: _Job, folder: Path, cache_dir: Path, progress: Progress, say: Say) -> Found:
    """One adaptation with its probes and bounds; what is in the folder already is read."""
    home = folder / job.name
    begun = next(iter(sorted(home.glob(f"*/{RECORD}"))), None)
    finished = begun is not None and read_record(begun.parent)["status"] == "finished"
    wait()  # every process must have looked before one writes
    if begun is None or not finished:
        resume = None if begun is None else begun.parent
        begun = adapt(job.config, cache_dir=cache_dir, out=home, resume=resume, progress=progress, say=say) / RECORD
    extras = begun.parent / _EXTRAS
    if is_first() and not extras.is_file():
        dataset = open_tables(job.config, cache_dir=cache_dir, progress=progress, say=lambda sentence: None).dataset
        made = measure_yardsticks(begun.parent, dataset.label_sets, _yardsticks(config, job.seed), progress=progress)
        write_whole(extras, (to_json(made) + "\n").encode())
    wait()
    record = read_record(begun.parent)
    arch = job.arch or str(record["pair"])
    return Found(arch, job.batch_size, job.seed, record, json.loads(extras.read_text(encoding="utf-8")))


def _yardsticks(config: TablesConfig, seed: int) -> Yardsticks:
    """How probes and bounds of one seed are trained."""
    own = {"seed": seed}
    return Yardsticks(
        build(ProbeConfig, {**config.probe, **own}),
        build(BoundConfig, {**config.bound, **own}),
        config.train_share,
        seed,
    )


def _timed(config: TablesConfig, folder: Path, cache_dir: Path, progress: Progress, say: Say) -> list[Timed]:
    """The overhead of every architecture; what is in the folder already is read."""
    device = device_of_training().type
    batch_size = config.overhead_batch or (None if device == "cuda" else _CPU_BATCH)
    precision = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.base.training().precision]
    timed = []
    for number, (name, shape) in enumerate(_shapes(config, cache_dir, progress, say)):
        path = folder / f"overhead-{number}.json"
        if not path.is_file():
            overhead = measure_overhead(
                shape,
                batch_size=batch_size,
                device=device,
                n_rounds=config.n_rounds,
                precision=precision,
                progress=progress,
            )
            write_whole(path, (to_json(overhead._asdict()) + "\n").encode())
        timed.append(Timed(name, Overhead(**json.loads(path.read_text(encoding="utf-8")))))
    return timed


def _shapes(config: TablesConfig, cache_dir: Path, progress: Progress, say: Say) -> list[tuple[str, Shape]]:
    """What a step is made of, for every architecture or for the winner."""
    base = config.base
    if config.archs:
        return [
            (
                arch,
                Shape(
                    image=find_architecture(arch, input_size=base.input_size),
                    hyper=_hyper(replace(base, arch=arch)),
                    text=base.text_shape(),
                    embed_dim=base.embed_dim,
                    n_prompts=base.training().n_prompts,
                ),
            )
            for arch in config.archs
        ]
    winner = open_tables(base, cache_dir=cache_dir, progress=progress, say=say).winner
    assert winner is not None, "tables without architectures are of a run"
    shape = Shape(
        image=winner.image,
        hyper=_hyper(base),
        text=None,
        text_dim=winner.text_dim,
        embed_dim=winner.embed_dim,
        head=winner.image_map is not None,
        n_prompts=base.training().n_prompts,
    )
    return [(winner.name, shape)]


def _hyper(config: AdaptConfig) -> Any:
    return config.shape("hyperclip")


def _sheets(config: TablesConfig, found: Sequence[Found], timed: Sequence[Timed]) -> dict[str, Sheet]:
    """The tables that are wanted, and the norms of every training beside."""
    whole = config.base.training().batch_size
    main = [one for one in found if one.batch_size == whole]
    first = [one for one in found if one.arch == found[0].arch and one.batch_size in config.sizes()]
    sheets = {}
    if "zero-shot" in config.sheets:
        sheets["zero-shot"] = zero_shot_sheet(main)
    if "worst-group" in config.sheets:
        sheets["worst-group"] = worst_group_sheet(main)
    if "overhead" in config.sheets:
        sheets["overhead"] = overhead_sheet(timed, main, device=device_of_training().type, length=N_TOKENS)
    if "batch-size" in config.sheets:
        sheets["batch-size"] = batch_sheet(first)
    if found:
        sheets["norms"] = norms_sheet(found)
    return sheets


def _as_csv(sheet: Sheet) -> str:
    """A sheet's rows as CSV, bare numbers under names that carry the unit."""
    text = io.StringIO()
    if sheet.rows:
        writer = csv.DictWriter(text, list(sheet.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sheet.rows)
    return text.getvalue()


def _new_folder(out: Path) -> Path:
    """`out/2026-03-01-142501-tables`."""
    return make_folder(out, f"{datetime.now().astimezone():%Y-%m-%d-%H%M%S}-tables")


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    write_whole(folder / TABLES_RECORD, (to_json(record, indent=1) + "\n").encode())
