"""The documents say what is true: commands parse, files and rooms exist, numbers are the measured ones."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_imports import MODULES, PACKAGE, RANK, ROOT, all_imports

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [*sorted((ROOT / "examples").glob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
EXPERIMENTS = {
    str(path.relative_to(ROOT / "configs" / "experiment").with_suffix(""))
    for path in CONFIGS
    if path.is_relative_to(ROOT / "configs" / "experiment")
}
RESULT_ROWS = [
    "crystals",
    "SMACT, icsd24",
    "unique",
    "novel",
    "SUN, relaxed",
    "MSUN, relaxed (stable ones included)",
    "median RMSD to relaxed, Å",
]
"""What docs/results.md calls the rows of the README's table."""

BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)


def lines_of(path: Path) -> list[str]:
    """Every line of shell in a document: its `bash` blocks, or the comments that open a config."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        blocks = [
            re.sub(r"\s*\\\n\s*", " ", block) for block in BLOCK.findall(text)
        ]  # a command over several lines
        return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    return [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]


def commands(kind: str) -> list[str]:
    """Each different command of a kind in all documents and configs, `&&` taken apart."""
    found = []
    for path in [*DOCUMENTS, *CONFIGS]:
        for line in lines_of(path):
            parts = [part.strip() for part in line.split("&&")] if path.suffix == ".md" else [line]
            # In a config's header, words in brackets after two spaces are a remark.
            found += [re.split(r"\s{2,}\(", part)[0] for part in parts if part.startswith(kind)]
    return list(dict.fromkeys(found))


def two_commands() -> list[str]:
    """The README's two commands: the lines that make a virtual environment."""
    return [line for line in lines_of(ROOT / "README.md") if line.startswith("python3 -m venv")]


TRAINING = commands("python src/train_") + commands("latentite train ")
SAMPLING = commands("python src/sample.py ")


def test_documented_commands_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    from latentite import cli

    refused = []
    for command in [c for c in commands("latentite ") if c not in TRAINING] + SAMPLING:
        words = shlex.split(command.replace("python src/sample.py", "latentite sample"), comments=True)
        try:
            assert callable(cli.parse(words[1:]).func)
        except (SystemExit, ValueError) as error:  # argparse says why on standard error, then exits
            refused.append(f"{command}: {capsys.readouterr().err or error}")
    assert refused == [], "\n".join(refused)


@pytest.mark.parametrize("command", TRAINING)
def test_documented_training_command_composes_and_validates(command: str, tmp_path: Path) -> None:
    from latentite.config import STAGES, compose, load

    words = shlex.split(command, comments=True)
    overrides = words[3:] if words[0] == "latentite" else words[2:]
    if words[0] == "python":
        assert (ROOT / words[1]).is_file()
    stage = STAGES[words[2] if words[0] == "latentite" else Path(words[1]).stem.removeprefix("train_")]
    overrides = [item for item in overrides if item not in ("--cfg", "job") and not item.startswith("[")]
    # The reader's folders are not here: any folder that exists stands for them.
    overrides = [
        f"data.data_dir={tmp_path}" if item.startswith("data.data_dir=") else item for item in overrides
    ]
    values = compose(stage.config_name, [item for item in overrides if not item.startswith("ckpt_path=")])
    load(stage.settings(), values | {"run_dir": str(tmp_path)})


def test_every_experiment_opens_with_its_own_command() -> None:
    for name in EXPERIMENTS:
        text = (ROOT / "configs" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"experiment={name}" in text.splitlines()[1], name


def test_every_experiment_that_is_named_exists() -> None:
    for path in [*DOCUMENTS, *SCRIPTS]:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"\bexperiment=([\w/]+)", text))
        sets = "mp_20|alex_mp_20|prototypes|mp_20_biternary|mp_mix|mpts_52|carbon_24"
        named |= set(re.findall(rf"`((?:{sets})/\w+)`", text))
        assert named <= EXPERIMENTS, path


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_to_a_file_and_to_a_heading_of_it() -> None:
    broken = []
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            file = path.parent / name if name else path
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


def test_the_readme_leads_to_every_document() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"](docs/{path.name})" not in text] == []


def test_tables_have_the_same_number_of_columns_in_every_row() -> None:
    """A pipe inside a cell must be escaped, also within backticks: else GitHub drops what follows."""
    for path in DOCUMENTS:
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            rows = table.splitlines()
            widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
            assert len(widths) == 1, (path.name, rows[0])
            assert re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", rows[1]), (path.name, rows[0])


def map_of_rooms() -> list[str]:
    """First cells of CONTRIBUTING's map: `data/readers/` for a folder, `crystal.py` for a file beside them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?) \|", section(text, "A map of the rooms"), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([\w/.]+)`", row)]


def test_the_map_has_every_room_of_the_package_and_no_other() -> None:
    listed = map_of_rooms()
    folders = {
        f"{path.parent.relative_to(PACKAGE)}/" for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE
    }
    beside = {path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    assert sorted(listed) == sorted(folders | beside)


def test_the_map_has_the_rooms_in_the_order_of_imports() -> None:
    floors = [(RANK[name.split("/")[0].removesuffix(".py")], name) for name in map_of_rooms()]
    assert floors == sorted(floors, key=lambda floor: floor[0])


NAMED_FILE = re.compile(r"(?<![\w./*-])(?:[\w-]+/)*\w+\.py\b")


def missing_files(text: str, *homes: Path) -> list[str]:
    """Python files that a text names and that lie in none of the folders; `path/to/...` stands for the reader's own."""
    return [
        name
        for name in dict.fromkeys(NAMED_FILE.findall(text))
        if not name.startswith("path/to/") and not any((home / name).is_file() for home in homes)
    ]


def test_every_python_file_that_a_document_names_exists() -> None:
    """Written from the root, `src` or the package. Blocks of `text` and the log are history."""
    wrong = []
    for path in [document for document in DOCUMENTS if document.name != "log.md"]:
        now = re.sub(r"```text\n.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        wrong += [
            f"{path.name}: {name}" for name in missing_files(now, ROOT, ROOT / "src", PACKAGE, ROOT / "tests")
        ]
    assert wrong == []


def test_every_python_file_that_a_docstring_of_a_module_names_exists() -> None:
    """Written from the root, the package, or the folder of the module."""
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        wrong += [
            f"{path.relative_to(ROOT)}: {name}"
            for name in missing_files(docstring, ROOT, PACKAGE, path.parent)
        ]
    assert wrong == []


def test_every_file_of_a_walk_has_to_do_with_another_of_it() -> None:
    """Of the two walks in CONTRIBUTING: each file imports one of the same walk, or is imported by one."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = {
        str(path.relative_to(PACKAGE)): name for name, path in MODULES.items() if PACKAGE in path.parents
    }
    for heading in ("The walk of one crystal", "The walk of one condition value"):
        rows = re.findall(r"^\| .*→.*$", section(text, heading), re.MULTILINE)
        walk = {names[file] for row in rows for file in NAMED_FILE.findall(row)}
        pairs = {
            (name, target) for name in walk for _, target in all_imports()[name] if target in walk - {name}
        }
        assert walk - {name for pair in pairs for name in pair} == set(), heading


def is_known(name: str) -> bool:
    """Whether a dotted name is a module or what one has; of what lies deeper, the outermost name counts."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        parent, _, attribute = name.rpartition(".")
        if parent in MODULES:
            return hasattr(importlib.import_module(parent), attribute)
        return "." in parent and is_known(parent)
    return True


def test_every_name_of_the_package_that_a_document_says_exists() -> None:
    """Those in running text, and those that blocks of Python import."""
    wrong = []
    for path in [document for document in DOCUMENTS if document.name != "log.md"]:
        text = path.read_text(encoding="utf-8")
        names = set(re.findall(r"(?<![\w./-])latentite(?:\.[a-zA-Z_]\w*)+", text))
        for module, imported in re.findall(
            r"^from (latentite[\w.]*) import (.+?)(?:  #.*)?$", text, re.MULTILINE
        ):
            names |= {f"{module}.{name.strip()}" for name in imported.split(",")}
        wrong += [f"{path.name}: {name}" for name in sorted(names) if not is_known(name)]
    assert wrong == []


def test_the_numbers_of_the_readme_stand_in_the_results() -> None:
    """Each row of the README's table is one of docs/results.md without its intervals, the columns in another order."""
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [row.strip("| ").split(" | ") for row in section(results, "Samples").splitlines()]
    measured = {row[0]: [leading_number(cell) for cell in row[1:]] for row in rows}
    table = [
        row.strip("| ").split(" | ")
        for row in section(readme, "Results").strip().split("\n\n")[0].splitlines()
    ]
    assert len(table) == 2 + len(RESULT_ROWS)
    for row, name in zip(table[2:], RESULT_ROWS, strict=True):
        samples, after_rl, substitutions, real = (leading_number(cell) for cell in row[1:])
        assert measured[name] == [samples, real, substitutions, after_rl], name
    for count in re.findall(r"\d+ of \d+ crystals", readme):
        assert f"({count.removesuffix(' crystals')};" in results, count


def section(text: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def leading_number(cell: str) -> str:
    """The number that a cell of a table begins with; empty where there is none."""
    match = re.match(r"[\d.]+", cell.replace(",", ""))
    return match.group() if match else ""


def test_readme_has_the_two_commands_and_ci_runs_the_same() -> None:
    demo, tests = two_commands()
    assert demo.endswith("&& latentite demo")
    assert tests.endswith("&& pytest")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("pip install --quiet", "pip install")
    for part in tests.split(" && "):
        if part.startswith(("pip", "pytest")):
            assert part in script.splitlines()
    assert script.rstrip().splitlines()[-1] == "pytest"


def test_picture_of_the_readme_is_small() -> None:
    assert (ROOT / "docs" / "images" / "crystals.png").stat().st_size < 300_000


def test_public_documents_name_no_place_of_one_machine() -> None:
    for path in [*DOCUMENTS, *SCRIPTS, ROOT / ".ci" / "run"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(home|root|work|Users|opt)/", text), path
        assert os.environ.get("HOME", "/root") not in text or os.environ.get("HOME") == "/"


QUESTIONS = ("What", "Whether", "How", "Where", "When", "Which", "Why", "Who")


def opening_words(path: Path) -> Iterator[tuple[int, str]]:
    """Line and first word of every docstring of a file, those below fields and constants included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.lineno, node.value.value.split(maxsplit=1)[0] if node.value.value.strip() else ""


def test_docstrings_open_with_the_thing_that_they_describe() -> None:
    """Not with a question word: `True if somebody sees the bars`, not `Whether somebody sees the bars`."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} opens with {word}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, word in opening_words(path)
        if word in QUESTIONS
    ]
    assert wrong == [], "\n".join(wrong)
