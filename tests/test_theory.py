"""docs/theory.md names functions, constants, tests and sections that exist."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    part = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


LEMMAS, CONSTANTS = rows("Lemmas, functions, tests"), rows("Constants")


def found(dotted: str) -> object:
    """What a dotted name stands for: the longest module, then attributes."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            thing = getattr(thing, part)
        return thing
    raise ModuleNotFoundError(dotted)


def defined(path: str) -> set[str]:
    """Names of a test file's functions, those of classes as `Class::name`."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("row", LEMMAS, ids=lambda row: row[1])
def test_each_lemma_has_its_function_and_its_test(row: list[str]) -> None:
    functions, tests = (re.findall(r"`([^`]+)`", cell) for cell in row[2:])
    assert functions
    assert tests
    for name in functions:
        assert callable(found(name)), name
    for name in tests:
        path, _, test = name.partition("::")
        assert test in defined(path), name


@pytest.mark.parametrize("row", CONSTANTS, ids=lambda row: row[0])
def test_each_constant_is_in_its_module_and_has_a_purpose(row: list[str]) -> None:
    modules = [found(name) for name in re.findall(r"`([^`]+)`", row[1])]
    assert modules
    for module in modules:
        for name in re.findall(r"`([A-Z_0-9]+)`", row[0]):
            assert hasattr(module, name), name
    assert re.match(r"soundness|speed|neither|what float64 can", row[2])


def test_factors_against_rounding_stand_in_the_modules_that_the_table_names() -> None:
    for factor, row in ((row[0].split("`")[1], row) for row in CONSTANTS if row[0].startswith("factors")):
        folders = ("spectral", "layers", "control", "certificates")
        files = [path for folder in folders for path in (ROOT / "svdctl" / folder).rglob("*.py")]
        using = {path.relative_to(ROOT) for path in files if factor in path.read_text(encoding="utf-8")}
        named = {".".join(path.with_suffix("").parts) for path in using}
        assert set(re.findall(r"`([^`]+)`", row[1])) == named


def test_every_section_with_a_proof_has_a_lemma_in_the_table() -> None:
    named = {re.match(r"\[(.+)\]", row[0])[1] for row in LEMMAS if row[0]}  # type: ignore[index]
    assert named == set(SECTIONS) - {"Constants", "Lemmas, functions, tests"}


def test_links_of_the_page_and_citations_in_the_code_name_its_sections() -> None:
    anchors = {re.sub(r"[^\w -]", "", section.lower()).replace(" ", "-") for section in SECTIONS}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors
    cited = 0
    for path in (ROOT / "svdctl").rglob("*.py"):
        code = " ".join(path.read_text(encoding="utf-8").replace("#", " ").split())
        for match in re.finditer(r"docs/theory\.md,((?: (?:and )?\"[^\"]+\",?)+)", code):
            for section in re.findall(r'"([^"]+?),?"', match[1]):
                assert section in SECTIONS, f"{path}: {section}"
                cited += 1
    assert cited > 5
