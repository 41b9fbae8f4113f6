"""Imports point down: the table of docs/architecture.md against every import of the package."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def ranks() -> dict[str, int]:
    """Room to layer, as the document says."""
    found = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| (\d) \| ([^|]+) \|", line):
            found |= {room: int(match[1]) for room in re.findall(r"`(\w+)`", match[2])}
    return found


def room_of(module: str) -> str:
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
    rank, upward, rooms = ranks(), [], set()
    for path in sorted((ROOT / "svdctl").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        here = room_of(module)
        if here in ("", "__main__"):
            continue
        rooms.add(here)
        for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            there = room_of(name)
            if there != here and (there not in rank or rank[there] >= rank[here]):
                upward.append(f"{module} imports {name}")
    assert not upward
    assert rooms == set(rank), "the document and the package have different rooms"
