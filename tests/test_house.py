"""House rules: who may import whom, who owns which library, and that what is written down is true."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from parsing import parse

import hyperalign
from hyperalign.embed.zoo import load_zoo, zoo_folder

ROOT = Path(__file__).resolve().parent.parent  # not where the package lies: that is installed elsewhere
PACKAGE = ROOT / "hyperalign"
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS_BELOW = {"embed": {"ledger"}, "align": {"ledger"}, "rank": {"ledger"}}  # what a room knows besides itself
OWNERS = {
    "timm": ("embed.networks", "embed.build_images"),
    "tokenizers": ("embed.build_texts", "hyperclip"),
    "huggingface_hub": ("embed.identity", "embed.check"),
    "accelerate": ("embed.encoders", "processes", "hyperclip.train"),
    "datasets": ("embed.hub_data",),
    "fsspec": ("embed.streams",),
    "pyarrow": ("embed.tables", "hyperclip.table_copies"),
    "sentence_transformers": (
        *("embed.sentences", "embed.build_texts", "embed.clip_captions"),
        *("use.as_sentence_transformer", "use.picture_module"),
    ),
    "transformers": ("embed.sentences", "embed.build_texts", "use.as_sentence_transformer"),
    "PIL": ("embed", "use.dual", "use.probes", "use.picture_module", "use.clip_benchmark"),
    "loky": ("embed.feed", "machine"),
    "filelock": ("embed.locks",),
    "onnxruntime": ("use.as_onnx",),
    "open_clip": ("embed.clips",),
    "faiss": ("rank.metrics", "use.index"),
    "clip_benchmark": ("use.clip_benchmark",),
    "scipy": ("rank.agreement",),
    "pandas": ("rank", "run", "relimit", "board", "ceiling", "pipeline", "joined", "use.chosen", "show", "notebook"),
    "optuna": ("study",),
    "py3langid": ("hyperclip.language",),
    "inflect": ("hyperclip.vocabulary",),
    "typer": ("cli",),
    "rich": ("cli", "show"),
    "jinja2": ("show.shell", "use.card"),
    "markupsafe": ("show.page", "show.shell"),
    "matplotlib": ("show.drawn",),
}
HEAVY = ("torch", "timm", "sentence_transformers", "transformers", "pandas", "faiss", "optuna", "numpy", "pyarrow")
DISTRIBUTION = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "sentence_transformers": "sentence-transformers",
    "open_clip": "open-clip-torch",
}
EXTRAS = ("clip_benchmark", "datasets", "fsspec", "onnxruntime", "open_clip")  # what a plain installation has not
README = ROOT / "README.md"


def name_of(path: Path) -> str:
    """`embed.zoo` for hyperalign/embed/zoo.py, `embed` for its package; empty for the top."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; of a package the names in it that are modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            base = str(node.module)
            below = [f"{base}.{alias.name}" for alias in node.names]
            found = [name for name in below if name.startswith("hyperalign.") and name[11:] in KNOWN]
            yield from found or [base]


def map_order() -> list[str]:
    """The names on the map in the package's docstring, rooms and their modules, from top to bottom."""
    order: list[str] = []
    room = ""
    for line in str(hyperalign.__doc__).splitlines():
        if found := re.match(r"^ {4}(\w+) ", line):
            room = found[1]
            order.append(room)
        elif found := re.match(r"^ {8}(\w+) ", line):
            order.append(f"{room}.{found[1]}")
    return order


def test_nothing_stands_on_the_map_twice() -> None:
    names = map_order()

    assert sorted({name for name in names if names.count(name) > 1}) == []


KNOWN = {name_of(path) for path in MODULES} - {""}
CODE = [path for path in MODULES if name_of(path) not in ("", "__main__")]


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_a_module_stands_on_the_map(path: Path) -> None:
    assert name_of(path) in map_order()


@pytest.mark.parametrize("name", map_order())
def test_a_name_on_the_map_is_there(name: str) -> None:
    assert name in KNOWN


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_a_module_imports_only_what_stands_above_it(path: Path) -> None:
    order, own = map_order(), name_of(path)
    for imported in imports(path):
        name = imported.removeprefix("hyperalign").removeprefix(".")
        if not imported.startswith("hyperalign") or not name or name == own:
            continue
        inside = name.startswith(f"{own}.")  # a package may gather its own modules
        assert inside or order.index(name) < order.index(own), f"{own} may not import {name}"


@pytest.mark.parametrize("path", [path for path in CODE if name_of(path).split(".")[0] in ROOMS_BELOW], ids=name_of)
def test_a_room_knows_only_what_it_may(path: Path) -> None:
    room = name_of(path).split(".")[0]
    for imported in imports(path):
        top, _, rest = imported.partition(".")
        if top == "hyperalign" and rest:
            assert rest.split(".")[0] in {room, *ROOMS_BELOW[room]}, f"{room} may not know {rest}"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_a_library_is_imported_by_its_owners_alone(path: Path) -> None:
    own = name_of(path)
    for imported in imports(path):
        owners = OWNERS.get(imported.split(".")[0])
        assert owners is None or any(f"{own}.".startswith(f"{owner}.") for owner in owners), (
            f"{imported} belongs to {', '.join(owners)}, not to {own}"
        )


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_a_library_that_is_imported_is_declared(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in ("test", "dev")]
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    declared = {re.split(r"[ <>=;\[]", line)[0].lower() for line in lines}
    for imported in imports(path):
        top = imported.split(".")[0]
        if top not in sys.stdlib_module_names and top != "hyperalign":
            assert DISTRIBUTION.get(top, top).replace("_", "-") in declared, f"pyproject.toml does not declare {top}"


def offered_names(path: Path) -> list[str]:
    """What a file lists as `__all__`; nothing where it has none."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    lists = [node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    return list(ast.literal_eval(lists[0])) if lists else []


@pytest.mark.parametrize("path", [path for path in CODE if offered_names(path)], ids=name_of)
def test_what_a_module_offers_is_what_it_defines(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = offered_names(path)
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }

    try:
        module = importlib.import_module(f"hyperalign.{name_of(path)}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in EXTRAS:
            raise
        pytest.skip(f"{error.name} is an extra that is not installed")

    assert len(names) == len(set(names))
    assert defined <= set(names)
    assert all(hasattr(module, name) for name in names)


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]

    assert len(first) > 20


READS_PICKLE = {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal", "code", "yaml"}
RUNS_CODE = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pd.eval",
    "pandas.eval",
    "pd.read_pickle",
}
MUST_SAY = {  # by the end of what is called, what must stand in the call
    "torch.load": "weights_only=True",
    "models.load_state_dict": "weights_only=True",
    "np.load": "allow_pickle=False",
    "write_array": "allow_pickle=False",
    "np.save": "allow_pickle=False",
    "open_clip.create_model": "weights_only=True",
    "library.SentenceTransformer": "trust_remote_code=False",
}
MAY_NOT_SAY = ("trust_remote_code=True", "weights_only=False", "allow_pickle=True", "shell=True")
RUNS_A_COMMAND = "embed.streams"  # that the user has typed; one that a record holds is refused
RUNS_A_FACTORY = "embed.factories"  # of a zoo that the user named, or where he trusts who did
SAYS_WHAT_IS_THE_USERS = {  # who may mark words as the user's own, or trust what a record names, by whose word
    "cli.asking": "what was typed, or stands in a configuration file that was named",
    "cli.options": "--trust-code",
    "notebook": "what a program calls `search` with",
    "embed.zoo": "factories of a zoo that is named in the user's words",
    "use.chosen": "zoos that are given beside a run",
    "use.dual": "trust_code of `open_pair`",
    "use.export": "trust_code of `export`",
    "use.folder": "trust_code of `load`",
    "use.picture_module": "trust_remote_code of sentence-transformers",
    "use.weights": "a copy of a factory that has just been run",
    "study.conduct": "helpers of a process that was allowed to",
}


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_nothing_is_unpickled_and_no_code_is_run_from_data(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not READS_PICKLE & {name.split(".")[0] for name in imports(path)}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, words = ast.unparse(call.func), [ast.unparse(word) for word in call.keywords]
        assert name not in RUNS_CODE
        assert not name.endswith("exec_module") or name_of(path) == RUNS_A_FACTORY
        forbidden = {*MAY_NOT_SAY} - ({"shell=True"} if name_of(path) == RUNS_A_COMMAND else set())
        assert not forbidden & {*words}, ast.unparse(call)
        for end, word in MUST_SAY.items():
            assert not f".{name}".endswith(f".{end}") or word in words, ast.unparse(call)


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_words_are_marked_as_the_users_where_they_come_from_him_alone(path: Path) -> None:
    called = {node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)}
    named = {ast.unparse(one).split(".")[-1] for one in called} | {"Written"} & passed_on(path)

    assert not named & {"Written", "trusted", "trusting"} or name_of(path) in SAYS_WHAT_IS_THE_USERS


def passed_on(path: Path) -> set[str]:
    """Names that are handed to a call, as in `map(Written, names)`."""
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    return {
        word.id
        for call in calls
        if ast.unparse(call.func) != "isinstance"
        for word in call.args
        if isinstance(word, ast.Name)
    }


@pytest.mark.parametrize("name", ["embedded", "hub", "hyperclip"])
def test_every_shipped_zoo_loads(name: str) -> None:
    assert load_zoo(name)


def test_no_other_zoo_is_shipped() -> None:
    assert sorted(path.stem for path in zoo_folder().glob("*.toml")) == ["embedded", "hub", "hyperclip"]


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["zoo", "--help"], ["zoo", "list", "hub"]])
def test_nothing_heavy_is_imported_before_it_is_needed(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from hyperalign.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported: {found}' if found else 0)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)

    assert done.returncode == 0, done.stderr


def readme_commands() -> list[list[str]]:
    """The `hyperalign …` commands in the README's code blocks, cut into words."""
    commands: list[list[str]] = []
    for block in re.findall(r"```(?:sh|console|bash)\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("#")[0].split("&&"):
                words = shlex.split(part.strip().removeprefix("$ "))
                if words[:1] == ["hyperalign"]:
                    commands.append(words[1:])
    return commands


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_a_command_of_the_readme_parses(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```toml\n# run\.toml\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert example
    (tmp_path / "run.toml").write_text(example[1], encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    assert parse(words).command.name


def test_the_readme_shows_the_two_commands_as_they_are_tested() -> None:
    text = README.read_text(encoding="utf-8")

    assert "pip install . && hyperalign search --budget 30M" in text
    assert "pip install '.[test]' && pytest" in text


@pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="only the repository has .ci")
def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    assert "pip install '.[test]' && pytest" in script
    assert "hyperalign search --budget 30M" in script
