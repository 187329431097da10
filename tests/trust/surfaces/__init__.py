"""Where input from strangers enters, each as a maker of cases, with how many of them `pytest -m trust` tries."""

from typing import NamedTuple

from trust.hostile import Open
from trust.surfaces.data import open_labels, open_parquets, open_pictures, open_tables, open_tars
from trust.surfaces.folders import open_caches, open_galleries, open_pairs, open_runs
from trust.surfaces.studies import open_studies
from trust.surfaces.weights import open_imports, open_safetensors
from trust.surfaces.words import open_configs, open_quantities, open_zoos

__all__ = ["SURFACES", "Surface"]


class Surface(NamedTuple):
    """One place where input enters.

    Attributes:
        what: It is, in the words of the table.
        opens: Makes its cases in a folder.
        n_cases: Cases of the long run.
    """

    what: str
    opens: Open
    n_cases: int


SURFACES = {
    "quantities": Surface("budgets, ranges, spaces, braces as typed", open_quantities, 300_000),
    "zoo": Surface("zoo files", open_zoos, 80_000),
    "config": Surface("configuration files", open_configs, 50_000),
    "tables": Surface("tables: csv, tsv, jsonl", open_tables, 60_000),
    "parquet": Surface("tables: parquet", open_parquets, 50_000),
    "tars": Surface("tar shards", open_tars, 60_000),
    "labels": Surface("label sets, vocabularies, classes, prompts", open_labels, 60_000),
    "pictures": Surface("pictures", open_pictures, 60_000),
    "safetensors": Surface("safetensors: headers and bytes", open_safetensors, 60_000),
    "imports": Surface("npy, pt and clip-retrieval folders", open_imports, 50_000),
    "cache": Surface("cache: manifests, records, shards", open_caches, 60_000),
    "runs": Surface("run folders", open_runs, 50_000),
    "pairs": Surface("exported pairs", open_pairs, 50_000),
    "galleries": Surface("indexes of pictures", open_galleries, 50_000),
    "studies": Surface("study URLs, records, journals, databases", open_studies, 50_000),
}
