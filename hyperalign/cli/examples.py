"""Examples that stand below the help of each command: what one wants, and the words for it.

Every line is at most 76 characters long, so that a terminal of 80 columns breaks none of them.
"""

from typing import NamedTuple

__all__ = ["EXAMPLES", "Example", "examples_of"]


class Example(NamedTuple):
    """One example.

    Attributes:
        what: What one wants.
        words: What one types for it.
    """

    what: str
    words: str


EXAMPLES: dict[str, tuple[Example, ...]] = {
    "": (
        Example("the best pair under 30M parameters, from what ships with it", "hyperalign search --budget 30M"),
        Example("take the winner home, and use it", "hyperalign export reports/RUN --to winner"),
        Example("", 'hyperalign classify winner photos/ --labels "dog,cat,bird"'),
    ),
    "search": (
        Example("the embedded zoo and data; needs no network", "hyperalign search --budget 30M"),
        Example(
            "encoders of the hub on your own pictures and captions",
            "hyperalign search --zoo hub --data pairs.parquet --budget 30M",
        ),
        Example("what that would cost, computing nothing", "hyperalign search --zoo hub --data pairs.csv --dry-run"),
        Example("go on after Ctrl-C or a crash", "hyperalign search --resume reports/RUN"),
        Example("one more encoder beside those of a finished run", "hyperalign search --add my-vit --zoo my.toml"),
    ),
    "embed": (
        Example(
            "fill the cache now, search later and often",
            "hyperalign embed --zoo hub --data 'train-{000..004}.tar' --budget 30M",
        ),
    ),
    "rerun": (Example("repeat a run, and compare the tables", "hyperalign rerun reports/RUN"),),
    "report": (
        Example("draw the page, and look at it", "hyperalign report reports/RUN --open"),
        Example("the order under other limits; nothing is trained", "hyperalign report reports/RUN --budget 5M"),
        Example("this run held against an earlier one", "hyperalign report reports/RUN reports/EARLIER"),
    ),
    "classify": (
        Example("two classes for each picture", 'hyperalign classify winner photos/ --labels "dog,cat,bird" --top 2'),
        Example(
            "classes from a file, a line each; goes on where it stopped",
            "hyperalign classify winner photos/ --labels animals.txt --out sorted.jsonl",
        ),
    ),
    "evaluate": (
        Example("an exported pair on two sets", "hyperalign evaluate winner --on cifar10.tar --on 'test-{00..04}.tar'"),
        Example(
            "worst group and the others",
            "hyperalign evaluate winner --on birds/ --metadata birds.csv \\\n    --group-by class,place",
        ),
    ),
    "index": (Example("embed a folder; again, only what is new", "hyperalign index winner photos/ --to photos.index"),),
    "retrieve": (
        Example("pictures for words", 'hyperalign retrieve photos.index "a dog in the snow" -k 5'),
        Example("pictures like one", "hyperalign retrieve photos.index --picture dog.jpg"),
    ),
    "study": (
        Example("tune the training", "hyperalign study --budget 30M --trials 40"),
        Example(
            "score against cost, four processes, half an hour",
            "hyperalign study --objective score,flops --jobs 4 --timeout 30m",
        ),
        Example(
            "search pairs, a trial each, where the zoo is too large to embed",
            "hyperalign study --over pairs --zoo hub --data pairs.parquet --trials 60",
        ),
        Example("what repeats the best trial", "hyperalign study --best reports/RUN"),
    ),
    "bench": (
        Example("what this machine does", "hyperalign bench"),
        Example("score against FLOPs on your own data", "hyperalign bench --curve --config run.toml --seeds 3"),
        Example("9,000 pairs whose best are known", "hyperalign bench --grid 300x30"),
    ),
    "adapt": (
        Example("the winner of a run learns to fit its prompts", "hyperalign adapt reports/RUN --steps 500"),
        Example(
            "a small encoder from scratch",
            "hyperalign adapt --arch M1 --data pairs.parquet --labels classes.tar",
        ),
        Example("the paper's four tables for two encoders", "hyperalign adapt --table --arch T0,M1 --seeds 3"),
    ),
    "specialise": (
        Example(
            "fold one set of classes into plain weights",
            "hyperalign specialise reports/ADAPTED --prompts classes.txt --out folded",
        ),
    ),
    "filter": (
        Example(
            "captions in English that name a class", "hyperalign filter pairs.csv --vocabulary pets.txt --out kept"
        ),
        Example(
            "of tar shards the best fifth by their own score",
            "hyperalign filter 'train-{00..09}.tar' --score clip --top-share 0.2 --out kept",
        ),
    ),
    "export": (
        Example("the winner", "hyperalign export reports/RUN --to winner"),
        Example(
            "the second pair with its weights", "hyperalign export reports/RUN --pair 2 --to second --with-weights"
        ),
        Example("for onnxruntime", "hyperalign export reports/RUN --to winner-onnx --format onnx"),
    ),
    "import": (
        Example(
            "what clip-retrieval has embedded", "hyperalign import clip-retrieval-output --to imported --params 150M"
        ),
        Example(
            "rows of one encoder",
            "hyperalign import rows.npy --modality image --data pairs.csv \\\n    --params 22M --to imported",
        ),
        Example(
            "a connector trained elsewhere",
            "hyperalign import ckpt_10.pt --image deit3-s16-in22k \\\n    --text all-mpnet-base-v2 --zoo hub --to pair",
        ),
    ),
    "doctor": (Example("what is installed, and what is wrong", "hyperalign doctor"),),
    "zoo": (
        Example("what can be searched", "hyperalign zoo list hub"),
        Example("whether your own declarations are true", "hyperalign zoo check my.toml"),
    ),
    "zoo list": (
        Example("the encoders that ship with their weights", "hyperalign zoo list"),
        Example("those of the hub and your own, as JSON", "hyperalign zoo list hub my.toml --json"),
    ),
    "zoo show": (Example("all that is declared of one", "hyperalign zoo show all-MiniLM-L6-v2"),),
    "zoo check": (Example("build them, and compare with what is declared", "hyperalign zoo check my.toml"),),
    "zoo build": (Example("train the embedded zoo again, elsewhere", "hyperalign zoo build embedded --to made"),),
    "cache": (
        Example("what is kept", "hyperalign cache ls"),
        Example("make room", "hyperalign cache prune --max-bytes 10G"),
    ),
    "cache ls": (Example("what is kept, elsewhere than in ./cache", "hyperalign cache ls --cache-dir /data/cache"),),
    "cache verify": (Example("read every byte", "hyperalign cache verify"),),
    "cache prune": (Example("keep the 10 GB that were used last", "hyperalign cache prune --max-bytes 10G"),),
    "cache rm": (Example("forget one encoder", "hyperalign cache rm 'mobilenetv4-s--*'"),),
    "cache export": (
        Example(
            "rows of one entry of `hyperalign cache ls` for Faiss",
            "hyperalign cache export 'mobilenetv4-s--pairs--val--*' --to rows.faiss",
        ),
    ),
}


def examples_of(command: str) -> str:
    """The examples of a command as its help shows them.

    Args:
        command: Its name, behind that of its group; empty for the program itself.
    """
    parts = []
    for what, words in EXAMPLES[command]:
        words = words.replace("[", "\\[")  # else rich would take it for a style
        parts.append(f"[dim]# {what}[/dim]\n{words}" if what else words)
    return "\n".join(parts)
