"""What an installation asks for: ranges that fit any torch of the supported ones, and replace none."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def asked(lines: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines]
    return {requirement.name: requirement for requirement in found if requirement.marker is None}


SOURCES = {
    "pyproject.toml": asked(PROJECT["dependencies"]),
    # Of the wheel that was installed; where it differs from pyproject.toml, the project must be installed again.
    "installed": asked(importlib.metadata.requires("svdctl") or []),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("package", "oldest", "supported"),
    [
        ("torch", "2.8.0", ["2.8.0", "2.8.0+cu128", "2.9.1", "2.11.0+cu126", "2.14.1+cpu", "2.15.0", "2.99", "3.0"]),
        ("torchvision", "0.23.0", ["0.23.0", "0.23.0+cu128", "0.26.0+cu126", "0.29.2", "0.99", "1.0"]),
    ],
)
def test_torch_is_a_range_that_no_installed_build_falls_out_of(
    source: str, package: str, oldest: str, supported: list[str]
) -> None:
    requirement = SOURCES[source][package]
    # A pin, an upper bound or an address of its own would replace a build for a certain CUDA.
    assert {part.operator for part in requirement.specifier} == {">="}
    assert requirement.url is None
    assert all(requirement.specifier.contains(version) for version in supported)
    assert requirement.specifier.contains(oldest)
    assert not requirement.specifier.contains("2.7.1" if package == "torch" else "0.22.1")


def test_python_from_3_11_on() -> None:
    from packaging.specifiers import SpecifierSet

    versions = SpecifierSet(PROJECT["requires-python"])
    assert [minor for minor in range(8, 16) if f"3.{minor}.0" in versions] == [11, 12, 13, 14, 15]


def test_the_tests_take_the_extras_that_users_have() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {"lightning", "transformers", "onnx", "tensorboard", "wandb", "docs", "peers"} <= set(extras)
    taken = next(requirement for requirement in map(Requirement, extras["test"]) if requirement.name == "svdctl")
    assert taken.extras == {"docs", "lightning", "transformers", "onnx", "tensorboard", "wandb"}
    # Without it the tests of that logger are skipped.
    assert "mlflow-skinny" in asked(extras["test"])
