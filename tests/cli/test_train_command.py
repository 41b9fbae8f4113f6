"""The training commands give the recipe exactly what the flags say; every mistake is a sentence and an exit code."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock, patch

import pytest

import svdctl.train
from svdctl.cli import opening, training_commands
from svdctl.cli.app import main
from svdctl.cli.training_flags import LIPCONV, TRAIN, Command, resolve
from svdctl.cli.training_progress import TrainingDisplay
from svdctl.config.presets import list_presets
from svdctl.config.train_config import TrainConfig
from svdctl.errors import CheckpointError, Interrupted, TrainingError, UsageError
from svdctl.utils.progress import Reporter

COMMANDS = (TRAIN, LIPCONV)


@pytest.fixture
def recipe() -> Iterator[Mock]:
    """The recipe, replaced whole, so that torch is not imported; checkpoints need not be there."""
    fake = Mock(spec=["plan", "run", "resume"])
    fake.plan.return_value = ["base     X", "model    Y"]
    fake.run.return_value = fake.resume.return_value = Mock(completed=True)
    module = ModuleType("svdctl.train.start")
    module.__dict__.update(plan=fake.plan, run=fake.run, resume=fake.resume)
    with (
        patch.dict(sys.modules, {"svdctl.train.start": module}),
        patch.object(svdctl.train, "start", module, create=True),
        patch.object(training_commands, "checkpoint_at"),
    ):
        yield fake


def svdctl_exits(*arguments: str) -> int:
    with patch.object(sys, "argv", ["svdctl", *arguments]), pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_alone_it_runs_the_quick_start(recipe: Mock) -> None:
    assert svdctl_exits("train") == 0
    recipe.run.assert_called_once()
    (config,), named = recipe.run.call_args
    assert config == resolve({"preset": "quickstart"}).config
    assert named.keys() == {"base", "download_weights", "reporter", "to_resume"}
    assert not named["download_weights"]
    assert named["to_resume"](Path("runs/x")) == "svdctl train --resume runs/x"
    assert "quickstart" in named["base"]
    assert isinstance(named["reporter"], TrainingDisplay)
    recipe.plan.assert_not_called()
    recipe.resume.assert_not_called()


def test_flags_reach_the_recipe_with_dashes_or_underscores(recipe: Mock) -> None:
    dashes = "--preset wrn-cifar10-divide --dec-rank 256 --clip-to 5 --clip-freq 2 --checkpoints-path x_y --no-nesterov"
    underscores = dashes.replace("x_y", "x+y").replace("-", "_").replace("__", "--").replace("x+y", "x_y")
    assert "--dec_rank 256" in underscores
    for line in (dashes.split(), underscores.split(), underscores.replace("_path ", "_path=").split()):
        assert svdctl_exits("train", *line) == 0
    first, second, third = (call.args[0] for call in recipe.run.call_args_list)
    assert first == second == third
    expected = [
        "layer.rank=256",
        "control.max_sigma=5",
        "control.every_steps=2",
        "out_dir=x_y",
        "optimizer.nesterov=false",
    ]
    assert first == resolve({"preset": "wrn-cifar10-divide", "set": expected}).config


@pytest.mark.parametrize(
    ("command", "preset"),
    [(command, preset) for command in COMMANDS for preset in list_presets(lipconv=command is LIPCONV)],
)
def test_a_printed_configuration_gives_itself_back(
    command: Command, preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: Mock
) -> None:
    assert svdctl_exits(command.name, "--preset", preset, "--print-config", "--seed", "9") == 0
    text = capsys.readouterr().out
    file = tmp_path / "config.toml"
    file.write_text(text)
    assert svdctl_exits(command.name, "--preset", str(file), "--print-config") == 0
    assert capsys.readouterr().out == text
    config = TrainConfig.model_validate(tomllib.loads(text))
    assert config == resolve({"preset": preset, "seed": 9}, command).config
    recipe.run.assert_not_called()


def test_notes_go_to_stderr_and_leave_the_printed_configuration_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert svdctl_exits("train", "--opt", "Adam", "--nesterov", "--print-config") == 0
    shown = capsys.readouterr()
    assert tomllib.loads(shown.out)["optimizer"]["kind"] == "adam"
    assert shown.err == "note: --nesterov has no effect with Adam\n"


def test_a_dry_run_prints_the_plan_alone(recipe: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    assert svdctl_exits("train", "--preset", "wrn-cifar100-divide", "--dry-run") == 0
    config = resolve({"preset": "wrn-cifar100-divide"}).config
    recipe.plan.assert_called_once_with(config, "preset wrn-cifar100-divide (--preset names it)")
    recipe.run.assert_not_called()
    assert capsys.readouterr().out == "base     X\nmodel    Y\n"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_lists_its_own_presets(command: Command, capsys: pytest.CaptureFixture[str], recipe: Mock) -> None:
    assert svdctl_exits(command.name, "--list-presets") == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [name for name in list_presets() if name.startswith("lipconv") == (command is LIPCONV)]
    recipe.run.assert_not_called()


def test_resume_takes_hardware_and_wandb_flags(recipe: Mock) -> None:
    assert svdctl_exits("train", "--resume", "runs/x", "--devices", "2", "--dataset-root", "d", "--wandb", "off") == 0
    (path,), named = recipe.resume.call_args
    assert path == Path("runs/x")
    assert isinstance(named.pop("reporter"), TrainingDisplay)
    changes = {"hardware": {"devices": 2}, "log": {"wandb": "off"}, "data": {"root": Path("d")}}
    assert named.pop("to_resume")(path) == "svdctl train --resume runs/x"
    assert named == {"refused": TRAIN.refused, "changes": changes, "allow_changed_data": False}
    recipe.run.assert_not_called()


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ("--epochs 40", {"epochs": 40}),
        ("--dataset folder:new/place", {"data": {"kind": "folder", "path": "new/place"}}),
        ("--dataset cifar10 --dataset-root d", {"data": {"kind": "cifar10", "root": Path("d")}}),
        ("--dataset npz:x --epochs 3 --devices 2",
         {"data": {"kind": "npz", "path": "x"}, "epochs": 3, "hardware": {"devices": 2}}),
    ],
)  # fmt: skip
def test_resume_takes_epochs_and_the_place_of_the_data(recipe: Mock, flags: str, changes: dict[str, object]) -> None:
    assert svdctl_exits("train", "--resume", "runs/x", *flags.split()) == 0
    assert recipe.resume.call_args.kwargs["changes"] == changes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--epochs 0", "--epochs: 0 is not valid"),
        ("--dataset folder", "--dataset folder needs a path"),
        ("--dataset nothing:x", "--dataset nothing:x: not one of"),
    ],
)
def test_faults_of_what_resume_takes(recipe: Mock, capsys: pytest.CaptureFixture[str], flags: str, words: str) -> None:
    assert svdctl_exits("train", "--resume", "runs/x", *flags.split()) == 2
    assert words in capsys.readouterr().err
    recipe.resume.assert_not_called()


def test_resume_refuses_everything_else_at_once(recipe: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--batch-size", "3", "--clip_to", "2", "--set", "seed=1", "--dry-run", "--no-nesterov", "--precision", "8"]
    assert svdctl_exits("train", "--resume", "runs/x", *flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    for flag in ("--batch-size", "--clip-to", "--set", "--dry-run", "--nesterov", "--precision"):
        assert sum(flag in line for line in lines) == 1
    recipe.resume.assert_not_called()


def test_what_a_run_is_called_names_its_folder(
    recipe: Mock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for given, path in ((".", tmp_path), ("last.pt", tmp_path / "last.pt"), ("runs/x", Path("runs/x"))):
        assert svdctl_exits("train", "--resume", given) == 0
        assert recipe.resume.call_args.args == (path,)
        assert capsys.readouterr().out.splitlines()[0] == f"svdctl train: resume {path}"
        assert svdctl_exits("train", "--resume", given, "--seed", "3") == 2
        folder = path.parent if path.suffix else path
        assert f"start a new run with --preset {folder}/config.toml" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train"], ["train-lipconv"], ["train", "--resume", "x"]])
def test_further_processes_of_a_run_show_nothing(
    recipe: Mock, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert svdctl_exits(*arguments) == 0
    assert capsys.readouterr() == ("", "")
    call = recipe.resume.call_args if "--resume" in arguments else recipe.run.call_args
    assert type(call.kwargs["reporter"]) is Reporter


@pytest.mark.parametrize(
    ("flags", "device"),
    [
        ("", "a GPU if torch finds one, else the CPU, precision 32, 1 process, steps as CUDA graphs where they can be"),
        ("--accelerator cpu --devices 2", "cpu, precision 32, 2 processes"),
        (
            "--accelerator cuda --devices auto --precision bf16-mixed --capture off",
            "cuda, precision bf16-mixed, a process for each device, no CUDA graphs",
        ),
    ],
)
def test_the_second_line_says_what_was_asked_of_the_devices(
    recipe: Mock, flags: str, device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (opening, training_commands):
        monkeypatch.setattr(module, "may_have_gpu", lambda: True)
    assert svdctl_exits("train", *flags.split()) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"device   {device}"


@pytest.mark.parametrize("action", ["run", "resume"])
@pytest.mark.parametrize("command", ["train", "train-lipconv"])
def test_an_interrupted_run_exits_130(recipe: Mock, action: str, command: str) -> None:
    getattr(recipe, action).return_value = Mock(completed=False)
    assert svdctl_exits(command, *(["--resume", "x"] if action == "resume" else [])) == 130


def test_all_faults_come_together_before_the_recipe(recipe: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    line = "--architecture wrn16-10 --dec-rank 3 --clip_to 2 --bn-eps 3 --epochs -1 --set modle.depth=3"
    assert svdctl_exits("train", *line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("svdctl: ") for line in lines)
    assert "did you mean model?" in shown.err
    recipe.run.assert_not_called()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError(["a is wrong", "b is wrong"]), 2, "svdctl: a is wrong\nsvdctl: b is wrong\n"),
        (CheckpointError("the file is cut short"), 2, "svdctl: the file is cut short\n"),
        (TrainingError("the loss was not finite"), 1, "svdctl: the loss was not finite\n"),
        (Interrupted("stopped"), 130, "svdctl: stopped\n"),
        (KeyboardInterrupt(), 130, "svdctl: interrupted; nothing was begun\n"),
        (FileNotFoundError(2, "No such file or directory", "x.npz"), 1, "svdctl: x.npz: no such file or directory;"),
        (PermissionError(13, "Permission denied", "runs"), 1, "--out-dir"),
        (OSError(28, "No space left on device", "runs/last.pt"), 1, "runs/last.pt: no space left on device; free"),
        (MemoryError(), 1, "--batch-size"),
        (RuntimeError("odd\nthing"), 1, "RuntimeError: odd thing; svdctl did not expect this: run again with --debug"),
    ],
)
def test_exceptions_become_sentences(
    recipe: Mock, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: str
) -> None:
    recipe.run.side_effect = error
    assert svdctl_exits("train") == code
    shown = capsys.readouterr()
    assert words in shown.err
    assert "Traceback" not in shown.err
    opening, device = shown.out.splitlines()
    assert opening.startswith("svdctl train: preset quickstart (no --preset")
    assert device.startswith("device   ")


@pytest.mark.parametrize("error", [None, TrainingError("stop"), KeyboardInterrupt()])
def test_the_terminal_is_given_back_however_the_run_ends(recipe: Mock, error: BaseException | None) -> None:
    recipe.run.side_effect = error
    with patch("svdctl.cli.training_progress.TrainingDisplay") as choose:
        svdctl_exits("train")
    choose.return_value.close.assert_called_once_with()


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_tracebacks_on_request(
    recipe: Mock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    recipe.run.side_effect = ZeroDivisionError("here")
    if way == "variable":
        monkeypatch.setenv("SVDCTL_DEBUG", "1")
    assert svdctl_exits("train", *["--debug"] * (way == "flag")) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.splitlines()[-1].startswith("svdctl: ZeroDivisionError: here")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--epoch", "3"], "did you mean --epochs"),
        (["train", "--epohcs", "3"], "did you mean --epochs"),
        (["train", "--epochs", "x"], "--epochs"),
        (["train", "extra"], "extra"),
        (["trian"], "trian"),
        (["train-lipconv", "--blok-size", "3"], "--block-size"),
        (["train", "--lerning-rate", "0.1"], "did you mean --init-lr, --lr-schedule?)"),
        (["train", "--lr", "0.1"], "did you mean --init-lr, --lr-schedule?)"),
        (["train", "--optimizer", "sgd"], "did you mean --opt?)"),
        (["train", "--nothing-of-this-kind", "0.1"], "No such option: --nothing-of-this-kind (--help shows all)"),
    ],
)
def test_what_the_parser_refuses(
    recipe: Mock, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert svdctl_exits(*arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("svdctl: ")
    assert shown.count("\n") == 1
    assert words in shown


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["train", "--help"], ["train-lipconv", "--help"]])
def test_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert svdctl_exits(*arguments) == 0
    assert "Usage: svdctl" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert svdctl_exits("--version") == 0
    assert capsys.readouterr().out.startswith("svdctl 0.")
