"""Random configurations and lists of flags: a plan, or faults one a line; never a traceback, never a hang.

2,000 of each kind in the slow suite, some dozens by default. What flags mean: `tests/config/`.
"""

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tomli_w
import typer
from click import Parameter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svdctl.analysis import inspect_files
from svdctl.cli import app as command_line
from svdctl.cli import eval_robust, inspect_spectrum, reproduce
from svdctl.cli.training_flags import LIPCONV, TRAIN, resolve
from svdctl.config.presets import list_presets
from svdctl.config.train_config import TrainConfig
from svdctl.errors import SvdctlError
from svdctl.evaluate import runner
from svdctl.reproduce.plan import make_plan

GROUP: Any = typer.main.get_command(command_line.app)
COMMANDS = {name: GROUP.resolve_command(typer.Context(GROUP), [name])[1] for name in GROUP.commands}
"""The commands with their options, which are imported when a command is called."""
PRESETS = [*list_presets(lipconv=False), *list_presets(lipconv=True)]


class _ReachedError(SvdctlError):
    """Everything was understood; the work would begin here."""

    exit_code = 0


def _reached(*arguments: Any, **named: Any) -> None:
    raise _ReachedError("reached")


def assert_answered(arguments: list[str]) -> int:
    """Run the command line in this process, up to where work would begin; its exit code."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["svdctl", *arguments]),
        patch.object(runner, "run", _reached),
        patch.object(runner, "show_corruptions", _reached),
        patch.object(inspect_files, "run", _reached),
        # Whether a random name is that of a file is not this test's business.
        patch.object(eval_robust, "require_any_existing"),
        patch.object(inspect_spectrum, "require_existing"),
        patch.object(reproduce, "_dry_run", make_plan),
        patch.object(reproduce, "_reproduce", make_plan),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
    ):
        command_line.main()
    code = caught.value.code
    told = err.getvalue()
    assert code in (0, 2), f"{arguments}: {code}: {told}"
    assert "did not expect" not in told, arguments
    assert "Traceback" not in told, arguments
    if code == 2:
        lines = told.strip().splitlines()
        assert lines, arguments
        assert all(line.startswith(("svdctl: ", "note: ")) for line in lines), f"{arguments}: {told}"
    return int(code)


RIGHT_AND_WRONG = (
    "0 1 -1 2 3 8 16 0.5 1e-3 1e9 1e308 -1e400 nan inf 99999999999999999999 007 0x10 1_000 ٣ auto none all true tt "
    "standard soc sott clip divide-by-largest divide_by_largest assign cifar10 cifar100 digits folder:x npz:y folder: "
    "npz: wrn16-10 wrn10-1 wrn999999994-1 wrn10-999999999 wrn-16-4 vgg19 resnet50 sgd SGD adam Adam cpu cuda "
    "bf16-mixed certified paper retract parametrize last validation test table2 table3 divide* 3407,3408 "
    "torchvision:resnet18 os:system x:y 32 32x32 3x224x224 0x0 epochs=3 model.depth=6000000004 control.kind=clip "
    "control.max_sigma=-1 layer.rank=[1,2] layer.kind=tt a.b.c=[1] = =1 a= optimizer.lr=nan name=../x seed=-1 "
    "data.kind=folder data.path=/dev/null hardware.devices=9999 model.kind=lipconv layer.rank=999999999999 fgsm "
    "apgd-ce cifar-c accuracy gaussian_noise"
)
TAGS = "none clip divide tt soc sott wrn vgg lipconv sgd adam cosine steps digits folder npz"
WORDS = st.one_of(
    st.sampled_from(RIGHT_AND_WRONG.split()),
    st.sampled_from(PRESETS),
    st.text(max_size=8).filter(lambda text: "\0" not in text),
    st.integers().map(str),
    st.floats().map(str),
)


def _given(parameter: Parameter) -> st.SearchStrategy[list[str]]:
    """An option of a command with a value, right or wrong."""
    names = [*parameter.opts, *parameter.secondary_opts]
    name = st.sampled_from(names)
    if parameter.param_type_name == "argument":
        return st.lists(WORDS, min_size=1, max_size=2)
    if getattr(parameter, "is_flag", False):
        return name.map(lambda name: [name])
    return st.tuples(name, st.lists(WORDS, min_size=parameter.nargs, max_size=parameter.nargs)).map(
        lambda drawn: [drawn[0], *drawn[1]]
    )


@st.composite
def flag_lists(draw: st.DrawFn) -> list[str]:
    """A command and some of its options, mostly well-formed."""
    name = draw(st.sampled_from(["train", "train-lipconv", "train", "eval-robust", "inspect-spectrum", "reproduce"]))
    known = [one for one in COMMANDS[name].params if one.name not in ("debug", "help", "resume", "list_presets")]
    chosen = draw(st.lists(st.sampled_from(known), max_size=6))
    arguments = [word for one in chosen for word in draw(_given(one))]
    if draw(st.integers(0, 9)) == 0:
        arguments.insert(draw(st.integers(0, len(arguments))), draw(WORDS))
    # What trains and measures is not this test's business.
    dry = ["--dry-run"] if name.startswith("train") else []
    return [name, *dry, *arguments]


VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, 2, 3, 4, 10, 16, 64, 10**6, 10**12]),
    st.floats(),
    st.booleans(),
    st.text(max_size=6),
    st.sampled_from(TAGS.split()),
    st.lists(st.integers(-2, 300), max_size=7),
    st.dictionaries(st.sampled_from(["kind", "max", "every", "rank", "x"]), st.integers(-1, 9), max_size=3),
)
KEYS = sorted(
    {key for name in ("model", "layer", "control", "optimizer", "schedule", "data") for key in (name, "kind")}
    | {"max", "every", "rank", "rank_scale", "frames", "width", "depth", "block_size", "in_channels", "lr", "path", "x"}
    | {"at", "factor", "lr_min", "linear_max", "procedure", "init", "weight", "count", "method", "size", "mean", "std"}
    | set(TrainConfig.model_fields)
)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """A shipped configuration with some entries changed, added or taken away, at any depth."""
    name = draw(st.sampled_from(PRESETS))
    command = TRAIN if name in list_presets(lipconv=False) else LIPCONV
    table = _tidy(resolve({"preset": name}, command).config.model_dump(mode="json"))
    for _ in range(draw(st.integers(0, 4))):
        place = table
        while inner := [value for value in place.values() if isinstance(value, dict) and value]:
            if draw(st.booleans()):
                break
            place = draw(st.sampled_from(inner))
        key = draw(st.one_of(st.sampled_from(sorted(place) or ["x"]), st.sampled_from(KEYS)))
        if draw(st.integers(0, 3)) == 0:
            place.pop(key, None)
        else:
            place[key] = draw(VALUES)
    return table


def _tidy(table: dict[str, Any]) -> dict[str, Any]:
    """Without None, which TOML has no word for."""
    return {
        key: _tidy(value) if isinstance(value, dict) else value for key, value in table.items() if value is not None
    }


def check_tables(table: dict[str, Any], more: list[str], folder: Path) -> None:
    path = folder / "preset.toml"
    path.write_bytes(tomli_w.dumps(table).encode(errors="surrogatepass"))
    for command in ("train", "train-lipconv"):
        assert_answered([command, "--dry-run", "--preset", str(path), *more])


SETTING = st.lists(
    st.tuples(st.sampled_from(KEYS), st.sampled_from(KEYS), WORDS).map(
        lambda parts: f"{parts[0]}.{parts[1]}={parts[2]}"
    ),
    max_size=2,
).map(lambda found: [word for setting in found for word in ("--set", setting)])
SLOW: Callable[[Any], Any] = settings(
    max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
QUICK: Callable[[Any], Any] = settings(SLOW, max_examples=60)  # type: ignore[arg-type]


@QUICK
@given(flag_lists())
def test_some_lists_of_flags(arguments: list[str]) -> None:
    assert_answered(arguments)


@QUICK
@given(table=tables(), more=SETTING)
def test_some_configurations(table: dict[str, Any], more: list[str], tmp_path: Path) -> None:
    check_tables(table, more, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@SLOW
@given(flag_lists())
def test_2000_lists_of_flags(arguments: list[str]) -> None:
    assert_answered(arguments)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@SLOW
@given(table=tables(), more=SETTING)
def test_2000_configurations(table: dict[str, Any], more: list[str], tmp_path: Path) -> None:
    check_tables(table, more, tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--dry-run", "--architecture", "wrn1996-1"],
        ["train", "--dry-run", "--architecture", "wrn999999994-1"],
        ["train", "--dry-run", "--architecture", "wrn10-999999999"],
        ["train", "--dry-run", "--architecture", "wrn16-10", "--new-layer", "tt", "--dec-rank", "9" * 18],
        ["train-lipconv", "--dry-run", "--block-size", "9" * 15],
        ["train-lipconv", "--dry-run", "--in-channels", "9" * 14 + "8"],
        ["train", "--dry-run", "--set", "model.depth=" + "9" * 5000],
        ["train", "--dry-run", "--preset", "x" * 5000],
        ["train", "--dry-run", "--preset", "~nobody-of-that-name/x.toml"],
        ["train", "--dry-run", "--set", "layer.rank=" + "[" * 5000],
        ["train", "--dry-run", "--preset", "/dev/null"],
        ["train", "--dry-run", "--preset", "/proc/self/mem"],
        ["train", "--dry-run", "--epochs", "9" * 18, "--batch-size", "9" * 18],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_requests_of_absurd_size(arguments: list[str]) -> None:
    assert_answered(arguments)


def test_some_requests_are_understood() -> None:
    """The other tests would pass on a command line that refuses everything, and on commands without options."""
    assert min(len(command.params) for command in COMMANDS.values()) > 10
    for name in PRESETS:
        command = "train" if name in list_presets(lipconv=False) else "train-lipconv"
        assert assert_answered([command, "--dry-run", "--preset", name]) == 0
    assert assert_answered(["eval-robust", "x.pt"]) == 0
    assert assert_answered(["inspect-spectrum", "x.pt"]) == 0
    assert assert_answered(["reproduce", "table2", "--dry-run"]) == 0
