"""The rules of the house, one test a rule, and for each rule a deliberate break that it catches."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnunet_ext.cli import VERBS

ROOT = Path(__file__).parents[2]
PACKAGES = ("nnunet_ext", "migrate", "monitor")
MOST_LINES_OF_A_FUNCTION = 50
MOST_LINES_OF_A_FILE = 350

# which files may import what; everything not named here is free
WHO_MAY_IMPORT = {
    "click": ("nnunet_ext/cli.py", "nnunet_ext/options.py", "*/commands/*"),
    **dict.fromkeys(
        ("torch", "torchvision", "nnunetv2", "numpy", "batchgenerators", "batchgeneratorsv2", "SimpleITK", "blosc2"),
        ("nnunet_ext/trainers/*", "nnunet_ext/shelf/*"),
    ),
    **dict.fromkeys(
        ("subprocess", "multiprocessing", "socket", "paramiko"), ("nnunet_ext/host.py", "nnunet_ext/trainers/*")
    ),
}
# what nnU-Net calls its files and folders; a docstring may speak of them, code may not
NAMES_OF_NNUNET = (
    "checkpoint_latest",
    "checkpoint_best",
    "checkpoint_final",
    "training_log_",
    "splits_final",
    "gt_segmentations",
    "dataset_fingerprint",
    "predicted_next_stage",
    "debug.json",
    "fold_{",
)
LIGHT = {"click", "tomli", *PACKAGES}  # the only modules from outside the standard library that `--help` may import


def files(root: Path) -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            yield str(path.relative_to(root)), ast.parse(path.read_text())


def wrong_imports(root: Path) -> list[str]:
    wrong = []
    for name, tree in files(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            else:
                continue
            for module in {module.split(".")[0] for module in modules}:
                allowed = WHO_MAY_IMPORT.get(module)
                if allowed is not None and not any(Path(name).match(pattern) for pattern in allowed):
                    wrong.append(f"{name}:{node.lineno} imports {module}")
    return wrong


def names_spelled_outside_the_layout(root: Path) -> list[str]:
    wrong = []
    for name, tree in files(root):
        if name == "nnunet_ext/layout.py":
            continue
        prose = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and id(node) not in prose else None
            if isinstance(text, str) and " " not in text and any(known in text for known in NAMES_OF_NNUNET):
                wrong.append(f"{name}:{node.lineno} spells '{text}'")
    return wrong


def errors_defined_elsewhere(root: Path) -> list[str]:
    errors = {"Exception", "BaseException", "RuntimeError", "ValueError", "OSError", "NnxError"}
    errors |= {
        node.name
        for node in ast.walk(ast.parse((root / "nnunet_ext/errors.py").read_text()))
        if isinstance(node, ast.ClassDef)
    }
    return [
        f"{name}:{node.lineno} defines {node.name}"
        for name, tree in files(root)
        if name != "nnunet_ext/errors.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id in errors for base in node.bases)
    ]


def too_long(root: Path) -> list[str]:
    wrong = []
    for name, tree in files(root):
        lines = (root / name).read_text().count("\n")
        if lines > MOST_LINES_OF_A_FILE:
            wrong.append(f"{name} has {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > MOST_LINES_OF_A_FUNCTION:
                    wrong.append(f"{name}:{node.lineno} {node.name} has {length} lines")
    return wrong


def verbs_and_files_that_differ(root: Path) -> list[str]:
    table = {verb.module.replace(".", "/") + ".py" for verb in VERBS}
    there = {
        str(path.relative_to(root))
        for package in PACKAGES
        for path in (root / package / "commands").glob("*.py")
        if path.name != "__init__.py"
    }
    return sorted(table ^ there)


def imports_that_lint_imports_refuses(root: Path) -> list[str]:
    shutil.copy(ROOT / ".importlinter", root) if root != ROOT else None
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return [] if done.returncode == 0 else [done.stdout + done.stderr]


Rule = Callable[[Path], list[str]]

BREAKS: list[tuple[Rule, str, str]] = [
    (wrong_imports, "monitor/late.py", "import torch\n"),
    (wrong_imports, "migrate/late.py", "def f():\n    from nnunetv2.paths import nnUNet_raw\n"),
    (wrong_imports, "nnunet_ext/plain.py", "import click\n"),
    (wrong_imports, "monitor/quick.py", "import subprocess\n"),
    (wrong_imports, "migrate/quick.py", "import paramiko.client\n"),
    (names_spelled_outside_the_layout, "monitor/own.py", "NAME = 'checkpoint_latest.pth'\n"),
    (names_spelled_outside_the_layout, "monitor/own.py", "def f(n):\n    return f'fold_{n}/checkpoint_best.pth'\n"),
    (errors_defined_elsewhere, "monitor/own.py", "class Lost(Exception): ...\n"),
    (errors_defined_elsewhere, "monitor/own.py", "class Gone(HostError): ...\n"),
    (too_long, "monitor/long.py", "def f():\n" + "    pass\n" * MOST_LINES_OF_A_FUNCTION),
    (too_long, "monitor/long.py", "x = 1\n" * (MOST_LINES_OF_A_FILE + 1)),
    (verbs_and_files_that_differ, "monitor/commands/secret.py", ""),
    (imports_that_lint_imports_refuses, "migrate/spy.py", "import monitor\n"),
    (imports_that_lint_imports_refuses, "nnunet_ext/up.py", "import migrate\n"),
    (imports_that_lint_imports_refuses, "nnunet_ext/down.py", "import nnunet_ext.commands.runs\n"),
    (imports_that_lint_imports_refuses, "monitor/inside.py", "import nnunet_ext.trainers\n"),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in BREAKS))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rule(rule: Rule) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize(("rule", "file", "text"), BREAKS, ids=lambda part: getattr(part, "__name__", str(part)[:40]))
def test_a_deliberate_break_is_caught(rule: Rule, file: str, text: str, tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / file).write_text(text)
    assert len(set(rule(tmp_path)) - set(rule(ROOT))) == 1


def modules_after(code: str, *argv: str) -> tuple[set[str], str]:
    """The names of the modules that are there after `code` has run, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules, file=sys.stderr)", *argv],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in done.stderr.splitlines()[-1].split()}, done.stdout


def heavy(modules: set[str]) -> set[str]:
    """What is neither Python's own, nor light, nor loaded by Python itself at every start (sitecustomize, ...)."""
    return modules - sys.stdlib_module_names - LIGHT - modules_after("pass")[0]


@pytest.mark.parametrize("verb", [None, *(verb.name for verb in VERBS)])
def test_help_imports_nothing_heavy(verb: str | None) -> None:
    words = [verb] if verb else []
    modules, printed = modules_after("from nnunet_ext.cli import run; run(sys.argv[1:])", *words, "--help")
    assert "Usage: nnx" in printed
    assert heavy(modules) == set()


def test_a_heavy_import_would_be_noticed() -> None:
    assert heavy({"click", "nnunet_ext", "os", "torch", "rich"}) == {"torch", "rich"}


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_of_the_table_is_a_command_of_that_name_with_help(verb) -> None:
    command = getattr(importlib.import_module(verb.module), verb.name)
    assert command.name == verb.name
    assert command.help
