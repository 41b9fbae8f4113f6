"""The help of every command: its groups, choices, defaults and examples, at the widths of usual terminals."""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from svdctl.cli.app import app, main
from svdctl.cli.command_table import COMMANDS, load_command
from svdctl.cli.evaluation_flags import EVALUATION
from svdctl.cli.help_page import PANEL_NOTES, Panel
from svdctl.cli.inspect_spectrum import INSPECT
from svdctl.cli.options import Flags, spelled
from svdctl.cli.reproduce import REQUEST
from svdctl.cli.training_flags import LIPCONV, TRAIN
from tests.faults.test_random_requests import COMMANDS as PARSED
from tests.faults.test_random_requests import assert_answered

TABLES: dict[str, Flags] = {
    "train": TRAIN.flags,
    "train-lipconv": LIPCONV.flags,
    "eval-robust": EVALUATION,
    "inspect-spectrum": INSPECT,
    "reproduce": REQUEST,
}
FINITE = {
    "train": "dataset storage architecture new_layer frames clipping procedure opt lr_schedule init conv_init select "
    "wandb log accelerator devices precision capture",
    "train-lipconv": "dataset storage conv_type frames clipping procedure opt lr_schedule init select wandb log "
    "accelerator devices precision capture",
    "eval-robust": "which metrics dataset corruptions severities norm attacks examples protocol format accelerator "
    "precision capture",
    "inspect-spectrum": "format accuracy",
    "reproduce": "scale columns wandb engine",
}
"""Flags that take one of a few words."""


def shown(name: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    capsys.readouterr()
    PARSED[name].main([*["--help"]], prog_name=f"svdctl {name}", standalone_mode=False)
    return capsys.readouterr().out


def options_of(name: str) -> dict[str, Any]:
    return {param.name.rstrip("_"): param for param in PARSED[name].params if param.param_type_name == "option"}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [80, 120, 160])
def test_no_name_is_cut_and_no_line_is_too_long(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(name, columns, monkeypatch, capsys).splitlines()
    assert max(map(len, lines)) <= columns
    assert not any("…" in line for line in lines)
    heads = [line for line in lines if line.startswith("  --")]
    for param in options_of(name).values():
        names = ", ".join(sorted(param.opts, key=len, reverse=True))
        assert any(re.match(rf"  {re.escape(names)}( |$)", line) for line in heads), param.opts
    # The text beside an option has 50 columns at least.
    assert all(line[26] != " " for line in lines if line.startswith(" " * 26))


def test_headings_are_ascii_where_the_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    PARSED["train"].main(["--help"], prog_name="svdctl train", standalone_mode=False)
    assert f"- Control {'-' * 70}\n" in written.getvalue().decode("ascii")


@pytest.mark.parametrize("name", COMMANDS)
def test_groups_stand_in_their_order_and_the_papers_spellings_last(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(name, 80, monkeypatch, capsys)
    panels = re.findall(r"^─ (.*?) ─+$", text, re.MULTILINE)
    assert panels[-1] == "Examples"
    order = [str(panel) for panel in Panel if panel in panels]
    assert panels[:-1] == order
    if name != "reproduce":
        assert order[-1] == Panel.PAPER
        assert PANEL_NOTES[Panel.PAPER] in " ".join(text.split())
    if name.startswith("train"):
        assert order[:-1] == ["Data", "Model", "Layer", "Control", "Optimiser", "Run", "Devices", "Output"]


def test_own_options_do_not_stand_with_the_papers_spellings() -> None:
    for flags in (TRAIN.flags, LIPCONV.flags):
        assert all(flags[name].panel is not Panel.PAPER for name in ("frames", "procedure", "init", "clip_to"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_flag_of_a_few_words_shows_them(name: str) -> None:
    options = options_of(name)
    choices = {flag for flag, param in options.items() if (param.metavar or "").startswith("[")}
    assert choices >= set(FINITE[name].split())
    for flag in choices:
        words = options[flag].metavar.strip("[]").split("|")
        assert len(words) > 1
        fixed = [word for word in words if not re.search(r"[A-Z]{3}", word)]
        # A shell offers what the help shows.
        offered = [item.value for item in options[flag].shell_complete(None, "")]
        assert set(fixed) <= set(offered)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_flag_says_in_a_sentence_what_it_does_and_what_holds_without_it(name: str) -> None:
    for flag, param in options_of(name).items():
        assert re.fullmatch(r"[A-Z].{10,}\.", param.help), flag
        assert "`" not in param.help, flag
        assert "absent" not in param.help.lower(), flag
        declared = TABLES[name][flag]
        if param.metavar is not None and declared.default != "":
            assert isinstance(param.show_default, str), flag
            assert re.match(r"(default|quick start): .", param.show_default), flag


def test_what_holds_without_a_flag_is_that_of_the_quick_start() -> None:
    train, lipconv = options_of("train"), options_of("train-lipconv")
    for name, value in {"epochs": "20", "init_lr": "0.05", "clip_to": "4",
                        "clipping": "divide-by-largest; with --model: none",
                        "new_layer": "tt; with --model: standard",
                        "dec_rank": "24", "lr_schedule": "cosine", "nesterov": "on",
                        "batch_size": "64", "dataset": "digits", "select": "validation"}.items():  # fmt: skip
        assert train[name].show_default == f"quick start: {value}"
    for name, value in {
        "epochs": "15",
        "lr_max": "0.1",
        "conv_type": "sott",
        "dec_rank": "32",
        "epsilon": "36",
    }.items():
        assert lipconv[name].show_default == f"quick start: {value}"
    # No control there, and methods differ in it.
    assert lipconv["assigning_freq"].show_default == "default: as the method has it"
    assert options_of("eval-robust")["seed"].show_default == "default: 3407"


def test_the_help_of_all_commands_begins_with_them_and_ends_with_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    app(["--help"], prog_name="svdctl", standalone_mode=False)
    text = capsys.readouterr().out
    assert re.findall(r"─ (\w+) ", text) == ["Commands", "Run", "Examples"]
    lines = [line.split() for line in text.splitlines() if line.startswith("    svdctl ")]
    assert len(lines) == 2
    assert all(line[1] in COMMANDS for line in lines)


def test_the_help_of_a_training_lists_what_options_change_in_their_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, bases in {"train": 4, "train-lipconv": 3}.items():
        about = shown(name, 80, monkeypatch, capsys).partition("─ Data")[0]
        items = re.findall(r"^- .*(?:\n  .*)*", about, re.M)
        assert about.count("\n- ") == about.count("\n\n- ") + bases - 1 == bases
        assert "--preset" in items[0]
        assert ("with --model" in items[1] and "no control" in " ".join(items[1].split())) == (name == "train")
        assert "quick start" in items[-1]
    assert (
        "LipConvNet" not in shown("train", 200, monkeypatch, capsys).partition("─ Layer")[2].partition("─ Control")[0]
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_two_examples_are_shown_and_understood(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = shown(name, 80, monkeypatch, capsys).partition("─ Examples")[2].replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("svdctl ")]
    examples = load_command(name).examples
    assert [" ".join(line.split()) for line in lines] == [line for _, line in examples]
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    for line in lines:
        _, command, *arguments = shlex.split(line)
        assert command == name
        dry = ["--dry-run"] if name.startswith("train") and "--dry-run" not in arguments else []
        assert assert_answered([name, *dry, *arguments]) == 0


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("train --clipping clop", "clip"),
        ("train --dataset cifar", "cifar10"),
        ("train --architecture vgg16", "vgg19"),
        ("train --opt adan", "adam"),
        ("train --lr-schedule cosin", "cosine"),
        ("train --select tset", "test"),
        ("train --frames retrakt", "retract"),
        ("train --precision bf16", "bf16-mixed"),
        ("train --storage stream --dataset folder:x", "streamed"),
        ("train --set optimizer.kind=adm", "adam"),
        ("train --preset quikstart", "quickstart"),
        ("eval-robust x --which lst", "last"),
        ("eval-robust x --format jsn", "json"),
        ("eval-robust x --norm l2", "L2"),
        ("eval-robust x --metrics acuracy", "accuracy"),
        ("eval-robust x --corruptions fogg", "fog"),
        ("inspect-spectrum x --format jsn", "json"),
        ("inspect-spectrum x --accuracy ful", "full"),
        ("reproduce table2 --scale smok", "smoke"),
        ("reproduce table2 --engine rya", "ray"),
    ],
)
def test_a_wrong_word_names_the_nearest(line: str, meant: str) -> None:
    assert f"did you mean {meant}?" in _told(line.split())


def _told(arguments: list[str]) -> str:
    err = io.StringIO()
    with (
        patch.object(sys, "argv", ["svdctl", *arguments]),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
    ):
        main()
    assert caught.value.code == 2
    return err.getvalue()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("inspect-spectrum x --top x", "svdctl: --top x: a whole number is wanted, as --top 3"),
        ("train --epochs 1.5", "svdctl: --epochs 1.5: a whole number is wanted, as --epochs 3"),
        ("train --epochs", "svdctl: --epochs: a value is wanted behind it"),
        ("train --seed 3 4", "svdctl: 4: no such argument is taken here; a value stands behind its option"),
        ("train --init-lr fast", "svdctl: --init-lr fast: a number is wanted, as --init-lr 0.5"),
    ],
)
def test_what_the_parser_refuses_is_told_in_a_sentence(line: str, sentence: str) -> None:
    assert _told(line.split()).startswith(sentence)


def test_underscores_do_for_dashes() -> None:
    assert all("_" not in spelled(flag) for flags in TABLES.values() for flag in flags)
    assert assert_answered(["train", "--dry-run", "--clip_to", "2"]) == 0


def test_a_pattern_without_a_layer_names_a_few(tmp_path: Path) -> None:
    import torch
    from torch import nn

    file = tmp_path / "weights.pt"
    layers = {f"block{number}": nn.Conv2d(3, 3, 3) for number in range(30)} | {"head": nn.Linear(3, 3)}
    torch.save(nn.ModuleDict(layers).state_dict(), file)
    for pattern, told in {
        "nothing": "there are 31, as block0, block1 and block2",
        "hed": "of 31 the nearest is head",
        "block30": "of 31 the nearest are block3, block0 and block29",
    }.items():
        *_, line = _told(["inspect-spectrum", str(file), "--layer", pattern]).splitlines()
        assert line.startswith(f"svdctl: no layer of {file} matches {pattern}; {told.split(' are ')[0]}"), line
        assert line.count("block") <= 4
    assert "block3" in line


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "eval-robust x",
            "take 3 numbers each, one for each channel, or 1 for all; 2 and 2 are given",
        ),
        ("train --dataset digits", "2 numbers are given; give 3, one for each channel, or 1 for all"),
    ],
)
def test_the_number_of_channels_is_told(command: str, told: str) -> None:
    arguments = f"{command} --model torchvision:resnet18 --mean 0.5,0.5 --std 0.5,0.5"
    assert told in _told(arguments.split())
