"""Imports point down, names are given once, no public name is hidden by a module, and the list of files is whole.

`python -m tests.test_architecture` writes the list at the end of docs/architecture.md anew.
"""

import ast
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import svdctl

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
LIST = "<!-- files -->\n"


def ranks() -> dict[str, int]:
    """Package to layer, as the document says."""
    found = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| (\d) \| ([^|]+) \|", line):
            found |= {name: int(match[1]) for name in re.findall(r"`(\w+)`", match[2])}
    return found


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(tree: ast.AST) -> list[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "svdctl":
            found += [f"svdctl.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            found.append(node.module or "")
    return [name for name in found if name.split(".")[0] == "svdctl"]


def test_every_import_points_down() -> None:
    rank, upward, packages = ranks(), [], set()
    for path in sorted((ROOT / "svdctl").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        here = package_of(module)
        if here in ("", "__main__"):
            continue
        packages.add(here)
        for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            there = package_of(name)
            if there != here and (there not in rank or rank[there] >= rank[here]):
                upward.append(f"{module} imports {name}")
    assert not upward
    assert packages == set(rank), "the document and the package have different packages"


def modules() -> list[Path]:
    return sorted(path for path in (ROOT / "svdctl").rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))


def listing() -> str:
    """The list of files, each with the first line of its docstring."""
    lines: list[str] = []
    folder = None
    for path in sorted(modules(), key=lambda path: (path.parent, path.name)):
        if path.parent != folder:
            folder = path.parent
            lines += ["", f"**{folder.relative_to(ROOT)}**", ""]
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"- `{path.name}`: {text.splitlines()[0]}")
    return "\n".join(lines[1:]) + "\n"


def test_the_document_lists_every_file() -> None:
    listed = DOCUMENT.read_text(encoding="utf-8").split(LIST)[1]
    pattern = r"^\*\*(.+)\*\*$|^- `(\w+\.py)`: ."
    found, folder = [], ""
    for match in re.finditer(pattern, listed, re.MULTILINE):
        folder = match[1] or folder
        if match[2]:
            found.append(f"{folder}/{match[2]}")
    there = [str(path.relative_to(ROOT)) for path in modules()]
    assert sorted(found) == sorted(there), "python -m tests.test_architecture writes the list anew"


def test_files_that_the_document_names_exist() -> None:
    text = DOCUMENT.read_text(encoding="utf-8").split(LIST)[0]
    for name in re.findall(r"`((?:\w+/)+\w+\.\w+|functional\.py)`", text):
        assert any((root / name).exists() for root in (ROOT, ROOT / "svdctl")), name


def repeated(places: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_two_modules_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path in modules():
        # Of the command line a file has the name of its command.
        if path.parent.name != "cli":
            places.setdefault(path.stem, []).append(str(path.relative_to(ROOT)))
    assert not repeated(places)


def test_no_two_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path in modules():
        # Of the trainers of other packages each has a Control.
        if path.parent.name == "integrations":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not repeated(places)


def test_no_subpackage_has_the_name_of_a_public_function() -> None:
    inside = {path.stem for path in (ROOT / "svdctl").iterdir() if path.suffix == ".py" or path.is_dir()}
    for name in inside & set(svdctl.__all__):
        assert isinstance(getattr(svdctl, name), types.ModuleType), name


USED_TWICE = """
import contextlib, importlib, pkgutil, sys
import svdctl
import torch
from torch import nn

net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
uses = {
    "TTConv1d": lambda made: made(4, 6, 3, rank=2),
    "TTConv2d": lambda made: made(4, 6, 3, rank=2),
    "TTConv3d": lambda made: made(4, 6, 3, rank=2),
    "clip_": lambda call: call(net, max_sigma=0.5),
    "divide_": lambda call: call(net, max_sigma=0.5),
    "lipschitz_bound": lambda call: call(net, (3, 8, 8)),
    "singular_values": lambda call: call(net[0], 4),
    "spectral_norm_bound": lambda call: call(net[0]),
    "spectrum": lambda call: call(net, (3, 8, 8)),
    "tensorize_": lambda call: call(nn.Sequential(nn.Conv2d(4, 4, 3)), rank=2),
    "to_plain": lambda call: call(net),
    "untensorize_": lambda call: call(nn.Sequential(svdctl.TTConv2d(4, 4, 3, rank=2))),
    "orthogonalize_": lambda call: call(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))),
    "SOC": lambda made: made(2, 2, 3),
    "SOTT": lambda made: made(4, 4, 3, rank=2),
    "MinMax": lambda made: made()(torch.zeros(1, 2, 1)),
    "Controller": lambda made: made(net, max_sigma=0.9),
    "Convolution": lambda made: made.make(torch.ones(1, 1, 3)),
}

def use() -> dict:
    found = {name: getattr(svdctl, name) for name in svdctl.__all__}
    for name, thing in found.items():
        uses.get(name, lambda _: None)(thing)
        assert callable(thing) or type(thing) is type(sys), name
    return found

first = use()
assert use() == first
for part in pkgutil.walk_packages(svdctl.__path__, "svdctl."):
    if part.name != "svdctl.__main__":
        with contextlib.suppress(svdctl.errors.MissingExtraError):
            importlib.import_module(part.name)
later = use()
assert all(later[name] is first[name] for name in first)
assert use() == first
"""


def test_the_library_names_no_flags() -> None:
    """Messages of the library name parameters and keys; the command line turns them into flags."""
    allowed = {"--plugin", "--head"}  # of worker processes, and of Ray
    found = []
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.is_relative_to(ROOT / "svdctl" / "cli"):
            continue
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                flags = set(re.findall(r"--[a-z][a-z-]*", node.value)) - allowed
                if flags or re.search(r"svdctl (train|eval-robust|reproduce|inspect-spectrum)", node.value):
                    found.append(f"{path}:{node.lineno}: {node.value}")
    assert not found


@pytest.mark.slow
def test_every_public_name_is_used_twice_and_again_after_every_import() -> None:
    """In a process of its own, where nothing was imported before."""
    # With torchmetrics, which Lightning's integrations need.
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", USED_TWICE], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    before = DOCUMENT.read_text(encoding="utf-8").split(LIST)[0]
    DOCUMENT.write_text(before + LIST + listing(), encoding="utf-8")
