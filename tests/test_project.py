"""The project's own rules: which way imports point, how long a file may be, what may not be in it."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from shards.errors import SettingsError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("shards", "prep", "train")
BIN = Path(sys.executable).parent
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 400, 60

# Written in two parts, or this file would hold what it forbids.
MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:wor" + r"k|home|ro" + r"ot|mnt|Users)/")
REAL_DATA = "../sha" + "red"


def name(path: Path) -> str:
    """A path as people read it."""
    return str(path.relative_to(ROOT))


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    """Every call in a module as (dotted name, keyword arguments)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: k.value for k in node.keywords if k.arg}


def is_true(node: ast.expr | None) -> bool:
    """Whether an argument is the literal True."""
    return isinstance(node, ast.Constant) and node.value is True


def tracked() -> list[Path]:
    """The files under version control; a test that needs them is skipped outside of a clone."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git clone: the list of tracked files is not known")
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def test_imports_point_one_way() -> None:
    done = subprocess.run([BIN / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_shards_and_prep_work_without_torch() -> None:
    """Imports every module of both packages where torch, timm and faiss cannot be imported."""
    code = """
import importlib, pkgutil, sys
for heavy in ("torch", "timm", "faiss", "torchvision", "segmentation_models_pytorch"):
    sys.modules[heavy] = None
import shards, prep
for package in (shards, prep):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_module_says_what_it_is() -> None:
    silent = [name(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent, f"no module docstring: {silent}"


def test_files_and_functions_stay_short() -> None:
    long = []
    for path in MODULES:
        text = path.read_text()
        if text.count("\n") > MAX_FILE:
            long.append(f"{name(path)}: {text.count(chr(10))} lines, at most {MAX_FILE}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long.append(f"{name(path)}: {node.name} has {lines} lines, at most {MAX_FUNCTION}")
    assert not long, long


def test_no_module_is_a_drawer_for_everything() -> None:
    assert not [name(path) for path in MODULES if path.stem in {"utils", "util", "common", "helpers", "misc"}]


def test_nothing_is_unpickled() -> None:
    """Bytes from a file never become code: no pickle, no object arrays, no torch.load without weights_only."""
    wrong = []
    for path in MODULES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [
                f"{name(path)}: imports {n}" for n in names if re.match(r"(dill|shelve|marshal|cloudpickle)\b", n)
            ]
            if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                wrong += [f"{name(path)}: pickle.{a.name}" for a in node.names if a.name != "UnpicklingError"]
            if (
                isinstance(node, ast.Attribute)
                and ast.unparse(node.value) == "pickle"
                and node.attr != "UnpicklingError"
            ):
                wrong.append(f"{name(path)}: pickle.{node.attr}")  # the error alone is what torch.load may raise
        for function, keywords in calls(tree):
            if is_true(keywords.get("allow_pickle")):
                wrong.append(f"{name(path)}: {function}(allow_pickle=True)")
            if function == "torch.load" and not is_true(keywords.get("weights_only")):
                wrong.append(f"{name(path)}: torch.load without weights_only=True")
    assert not wrong, wrong


def test_no_machine_is_written_into_the_project() -> None:
    """No absolute path of somebody's machine; only tests/real.py knows where real data may lie."""
    wrong = []
    for path in tracked():
        if path.suffix in {".png", ".svg", ".tar", ".npz"} or path.is_relative_to(ROOT / "tests" / "golden"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        wrong += [f"{name(path)}: {found}" for found in MACHINE_PATH.findall(text)]
        if REAL_DATA in text and name(path) != "tests/real.py":
            wrong.append(f"{name(path)}: {REAL_DATA}")
    assert not wrong, wrong


@pytest.mark.parametrize("command", sorted(SCRIPTS))
def test_commands_explain_themselves_by_example(command: str) -> None:
    module, function = SCRIPTS[command].split(":")
    code = f"import sys; from {module} import {function}; sys.argv = [{command!r}, '--help']; {function}()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Example" in done.stdout, done.stdout
    assert f"{command} " in done.stdout.split("Example", 1)[1], "the example does not call the command"


def test_readme_tree_names_every_folder() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if len(path.relative_to(ROOT).parts) > 1}
    readme = (ROOT / "README.md").read_text()
    trees = [
        block for block in re.findall(r"```\w*\n(.*?)```", readme, re.DOTALL) if re.search(r"^shards/", block, re.M)
    ]
    assert trees, "README.md shows no tree of the repository"
    named = set(re.findall(r"^([.\w-]+)/", trees[0], re.MULTILINE))
    assert folders <= named, f"not in README's tree: {sorted(folders - named)}"


def test_readme_points_at_what_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", readme) if "://" not in link]
    assert not [link for link in links if not (ROOT / link).exists()]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set(re.findall(r"^(?:\$ )?make ([a-z]+)", readme, re.MULTILINE))
    assert {"demo", "test"} <= called <= targets
    commands = set(re.findall(r"\bseg-[a-z]+\b", readme))
    assert commands == set(SCRIPTS)


def test_make_targets_named_like_folders_are_phony() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(" ".join(re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)).split())
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert targets <= phony
    described = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    assert targets == described, "a target without a line in `make help`"


def test_make_shards_says_what_is_missing() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "shards", "DATASET=camvid"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "make shards DATASET=cityscapes ROOT=" in done.stderr


def test_make_refuses_an_old_python(tmp_path: Path) -> None:
    """One line that says what was found and what to do, before anything is installed."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    command = ["make", "install", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Python 3.9.1, expected 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_every_folder_with_modules_is_a_package():
    """Without its __init__.py (ignored by git, say) a folder works in this tree and is missing from a wheel."""
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert len(folders) > len(PACKAGES)
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


WRITES = {"--out", "--save", "--maps", "--report", "--json", "--plot"}


def options(command: click.Command) -> Iterator[click.Option]:
    """The options of a command and of those below it."""
    yield from (p for p in command.params if isinstance(p, click.Option))
    for below in getattr(command, "commands", {}).values():
        yield from options(below)


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_command_takes_a_url_for_a_place_to_write_to(script: str) -> None:
    """It would become a folder "s3:" where the command runs."""
    module = importlib.import_module(SCRIPTS[script].partition(":")[0])
    commands = [value for value in vars(module).values() if isinstance(value, click.Command)]
    written = [o for c in commands for o in options(c) if WRITES & set(o.opts) and not o.is_flag]
    assert written or script == "seg-norms"  # writes into its run alone
    for option in written:
        with pytest.raises(SettingsError, match="s3://bucket/x found for a place to write to"):
            option.type("s3://bucket/x", option, click.Context(commands[0]))
