"""`CITATION.cff` keeps to the Citation File Format 1.2.0, in what it uses of it, and says what the project says."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

jsonschema = pytest.importorskip("jsonschema", reason="the extra `test` is not installed")
yaml = pytest.importorskip("yaml", reason="the extra `docs` is not installed")
ROOT = Path(__file__).parents[2]
TEXT = {"type": "string", "minLength": 1}
PERSON = {
    "type": "object",
    "properties": {"family-names": TEXT, "given-names": TEXT},
    "required": ["family-names", "given-names"],
    "additionalProperties": False,
}
ENTITY = {"type": "object", "properties": {"name": TEXT}, "required": ["name"], "additionalProperties": False}
AUTHORS = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"anyOf": [PERSON, ENTITY]}}
REFERENCE = {
    "type": "object",
    "properties": {
        "type": {"enum": ["conference-paper", "article", "software"]},
        "title": TEXT,
        "authors": AUTHORS,
        "collection-title": TEXT,
        "year": {"type": "integer"},
        "url": {"type": "string", "pattern": "^(https|http|ftp|sftp)://.+"},
        "identifiers": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"enum": ["doi", "url", "swh", "other"]}, "value": TEXT, "description": TEXT},
                "required": ["type", "value"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["authors", "title", "type"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "cff-version": {"type": "string", "pattern": r"^1\.2\.0$"},
        "message": TEXT,
        "type": {"enum": ["software", "dataset"]},
        "title": TEXT,
        "abstract": TEXT,
        "authors": AUTHORS,
        "version": {"anyOf": [TEXT, {"type": "number"}]},
        "license": {"enum": ["MIT"]},
        "keywords": {"type": "array", "minItems": 1, "uniqueItems": True, "items": TEXT},
        "date-released": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
        "references": {"type": "array", "minItems": 1, "items": REFERENCE},
    },
    "required": ["authors", "cff-version", "message", "title"],
    "additionalProperties": False,
}
"""Of the format's own schema, the parts that the file uses."""


def citation() -> dict[str, Any]:
    found = yaml.load((ROOT / "CITATION.cff").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    for reference in found["references"]:
        reference["year"] = int(reference["year"])
    return found


def test_it_keeps_to_the_format() -> None:
    jsonschema.validate(citation(), SCHEMA)


def test_it_says_what_the_project_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = citation()
    for key in ("version", "license"):
        assert found[key] == project[key]
    assert found["title"] == project["name"]
    assert found["abstract"] == project["description"]


def test_it_names_the_paper_as_the_readme_does() -> None:
    (paper,) = citation()["references"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert paper["url"] in readme
    assert paper["title"] in readme
    names = " and ".join(f"{one['family-names']}, {one['given-names']}" for one in paper["authors"])
    assert re.search(rf"author\s+= {{{names}}}", readme)
