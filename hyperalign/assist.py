"""What every process of a launch but the first one does: what it is told, until the search is over."""

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hyperalign.align.canonical import CanonicalConfig
from hyperalign.candidates import Candidates, find_candidates
from hyperalign.embed.data import Dataset, LabelSet
from hyperalign.embed.zoo import Limits, Pair
from hyperalign.grids import Prepared, open_grids
from hyperalign.pipeline import open_asked_data
from hyperalign.prepare import Job, embed_share, embedding_jobs, fill_cache
from hyperalign.processes import Crew
from hyperalign.request import SearchConfig
from hyperalign.solve import Part, Workbench, train_part

__all__ = ["assist"]


def assist(config: SearchConfig, crew: Crew, *, cache_dir: Path) -> None:
    """Embed and train what the first process gives out.

    Args:
        config: What is asked, as the first process has it.
        crew: The launch, seen from here.
        cache_dir: Where embeddings are kept; the same folder as the first one's.
    """
    helper = _Helper(config, crew, cache_dir)
    tasks: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
        "begin": helper.begin,
        "embed": helper.embed,
        "train": helper.train,
    }
    while (words := crew.hear())["do"] != "over":
        try:
            own = tasks[words["do"]](words)
        except (ValueError, KeyError, OSError, ImportError) as error:  # a user's mistakes: the first one says them
            said = " ".join(str(error.args[0] if error.args else error).split())
            own = {"error": f"process {crew.rank} of {crew.size}, on {socket.gethostname()}: {said}"}
        crew.answer(own)


@dataclass
class _Helper:
    """What such a process knows so far.

    Attributes:
        config: What is asked.
        crew: The launch.
        cache_dir: Where embeddings are kept.
        candidates: The encoders and pairs that the first process works with.
        data: Of the same search.
        jobs: The entries of the cache that it needs.
        bench: Where the baseline is trained, and for which run and encoders.
    """

    config: SearchConfig
    crew: Crew
    cache_dir: Path
    candidates: Candidates | None = None
    data: tuple[Dataset, LabelSet | None] | None = None
    jobs: list[Job] = field(default_factory=list)
    bench: tuple[str, Workbench] | None = None

    def begin(self, words: Mapping[str, Any]) -> dict[str, Any]:
        """Open what the first process has opened."""
        if not (self.cache_dir / ".locks" / words["mark"]).is_file():
            raise ValueError(
                f"{self.cache_dir.resolve()} is not the cache of the first process; give a --cache-dir and an --out "
                "that all machines share"
            )
        every = find_candidates(self.config.zoo, Limits(), cache_dir=self.cache_dir, progress=_silent, measure=False)
        self.candidates = _chosen(every, words["images"], words["texts"])
        self.data = open_asked_data(self.config, self.cache_dir, _silent)
        self.jobs = embedding_jobs(self.candidates, *self.data, cache_dir=self.cache_dir, autocast=self.config.autocast)
        return {}

    def embed(self, words: Mapping[str, Any]) -> dict[str, Any]:
        """Embed this process's share of what is missing."""
        share = words["shares"][self.crew.rank]
        done = embed_share(share, self.jobs, cache_dir=self.cache_dir, progress=_silent, autocast=self.config.autocast)
        return {"done": done}

    def train(self, words: Mapping[str, Any]) -> dict[str, Any]:
        """Train this process's share of the baseline."""
        share = [Part(**part) for part in words["shares"][self.crew.rank]]
        end = None if words["seconds"] is None else time.perf_counter() + words["seconds"]
        if share:
            bench = self._open(words)
            bench.should_stop = lambda: end is not None and time.perf_counter() > end
            for part in share:
                train_part(part._replace(pairs=[(i, j) for i, j in part.pairs]), bench)
        return {}

    def _open(self, words: Mapping[str, Any]) -> Workbench:
        """Where the baseline is trained; rows are opened once for each run and choice of encoders."""
        about = repr((words["run"], words["images"], words["texts"]))
        if self.bench is not None and self.bench[0] == about:
            return self.bench[1]
        run = Path(words["run"])
        if not run.is_dir():
            raise ValueError(f"there is no {run}; give an --out that all machines share")
        pairs = [(i, j) for i, j in words["pairs"]]
        bench = Workbench(
            self._prepare(words),
            pairs,
            replace(self.config.recipe(), canonical=CanonicalConfig(**words["canonical"])),
            run=run,
            task=self.config.task,
            progress=_silent,
            should_stop=lambda: False,
        )
        self.bench = about, bench
        return bench

    def _prepare(self, words: Mapping[str, Any]) -> Prepared:
        assert self.candidates is not None, "the first word is `begin`"
        assert self.data is not None, "the first word is `begin`"
        chosen = _chosen(self.candidates, words["images"], words["texts"])
        names = {*words["images"], *words["texts"]}
        own = [job for job in self.jobs if job.spec.name in names]
        entries, _, _ = fill_cache(own, cache_dir=self.cache_dir, progress=_silent, autocast=self.config.autocast)
        return open_grids(chosen, *self.data, entries, strict=self.config.strict)


def _chosen(every: Candidates, images: list[str], texts: list[str]) -> Candidates:
    """Some encoders by name, in the order given, with all their pairs."""
    known = {spec.name: spec for spec in (*every.images, *every.texts)}
    sides = [tuple(known[name] for name in names) for names in (images, texts)]
    pairs = tuple(Pair(image, text) for image in sides[0] for text in sides[1])
    return replace(every, images=sides[0], texts=sides[1], pairs=pairs)


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody: the first process speaks."""
