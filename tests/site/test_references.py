"""The references of the site are made from code, and nothing in them lacks a description."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import svdctl
from svdctl.cli.help_page import Panel
from svdctl.cli.training_flags import TRAIN
from svdctl.config.schema_keys import schema_keys
from svdctl.config.train_config import TrainConfig
from tests.faults.test_random_requests import COMMANDS

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
HOOKS = Path(__file__).parents[2] / "docs/hooks"


def hook(name: str) -> Any:
    """A module of the site's hooks."""
    sys.path.insert(0, str(HOOKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(HOOKS))


configuration = hook("configuration_reference")


def sections() -> Iterator[tuple[str, Any]]:
    for title, (model, _, _) in configuration.ROOTS.items():
        for section in configuration.sections_of(model):
            yield title, section


def test_each_key_of_a_configuration_has_a_description() -> None:
    # In a process of its own: other tests register variants of their own, without descriptions.
    code = "from tests.site.test_references import *; [check_descriptions(title) for title in configuration.ROOTS]"
    ended = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def check_descriptions(title: str) -> None:
    found = [section for of, section in sections() if of == title]
    assert found, title
    assert [key.path for section in found for key in section.keys if not key.text.endswith((".", ")"))] == []
    assert [section.path for section in found if section.path and not section.text and not section.kinds] == []
    kinds = [(section.path, kind, text) for section in found for kind, text in section.kinds.items()]
    assert [entry for entry in kinds if len(entry[2]) < 10] == []


def test_the_reference_has_every_key_that_the_schema_has() -> None:
    listed = {key.path for title, section in sections() if title == "Training" for key in section.keys}
    listed |= {section.path for title, section in sections() if title == "Training"}
    # The kind of a section is told in its first sentence.
    wanted = {key for key, _ in schema_keys(TrainConfig) if not key.endswith("kind")}
    wanted = {re.sub(r"^log\.loggers\..*", "log.loggers", key) for key in wanted}
    assert sorted(wanted - listed) == []


def test_flags_that_set_a_key_by_a_rule_are_found() -> None:
    flags = configuration.flags_of([("train", TRAIN.flags)])
    assert "--clip-to" in flags["control.max_sigma"]
    assert "--clip-linear" in flags["control.linear_max"]
    assert "--architecture" in flags["model.depth"]
    assert "--lip-bn" in flags["batchnorm.max_gain"]
    assert "--gouk-transforms" in flags["augment.pad"]


def test_presets_that_change_a_key_are_named() -> None:
    page = configuration.configuration_page()
    row = next(line for line in page.splitlines() if line.startswith("| `control.max_sigma` "))
    assert "`4` in `quickstart`" in row
    row = next(line for line in page.splitlines() if line.startswith("| `augment.pad` "))
    assert '`"symmetric"` in `wrn-*`' in row


def test_every_option_of_every_command_is_in_the_reference() -> None:
    page = hook("command_reference").command_page()
    for name, command in COMMANDS.items():
        part = page.partition(f"\n## svdctl {name}\n")[2].partition("\n## svdctl ")[0]
        for option in command.params:
            if option.param_type_name != "argument" and not option.hidden:
                row = next((line for line in part.splitlines() if line.startswith(f"| `{option.opts[0]}`")), "")
                assert row.rstrip("| ").rpartition("|")[2].strip(), f"{name} {option.opts[0]} is not described"


def test_options_stand_in_the_order_of_the_help() -> None:
    page = hook("command_reference").command_page()
    for name, command in COMMANDS.items():
        part = page.partition(f"\n## svdctl {name}\n")[2].partition("\n## svdctl ")[0]
        headings = re.findall(rf"^### {name}: (.*)$", part, re.M)
        assert len(headings) > 3
        assert headings == [panel.value for panel in Panel if panel.value in headings]
        for _, line in command.examples:
            assert f"```sh\n{line}\n```" in part


def test_parameters_with_one_description_have_a_line_each() -> None:
    made = hook("docstring_examples").with_single_parameters(
        "Return.\n\nArgs:\n    a: one.\n    b, c: two,\n        of two lines.\n\nReturns:\n    x, y: both."
    )
    assert made == (
        "Return.\n\nArgs:\n    a: one.\n    b: two,\n        of two lines.\n    c: two,\n        of two lines."
        "\n\nReturns:\n    x, y: both."
    )


def test_defaults_that_are_named_numbers_are_shown_as_numbers() -> None:
    value_of = hook("docstring_examples").value_of
    assert value_of("svdctl.functional", "bounds.TOLERANCE") == "0.005"
    assert value_of("svdctl.analysis.network_spectrum", "TOLERANCE") == "0.02"
    assert value_of("svdctl.functional", "None") == "None"
    assert value_of("svdctl.functional", "'full'") == "'full'"


def test_every_public_name_is_in_the_reference() -> None:
    named = {name for names in hook("python_reference").groups().values() for name in names}
    assert {f"svdctl.{name}" for name in svdctl._HOME} <= named
    for name in sorted(named):
        module, _, attribute = name.rpartition(".")
        if "integrations" not in module:  # the packages may be missing
            assert getattr(importlib.import_module(module), attribute).__doc__
