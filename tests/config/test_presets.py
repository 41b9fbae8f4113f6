"""Every shipped preset loads, says what it is, survives TOML, and equals the paper's command of the same name."""

import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from svdctl.cli.training_flags import LIPCONV, TRAIN, Command, resolve
from svdctl.config.presets import list_presets, preset_folder, read_preset, run_name, to_toml
from svdctl.config.train_config import TrainConfig
from svdctl.errors import UsageError
from tests.cli.flags import flags_of

WRN = "--architecture wrn16-10 --epochs 200 --init-lr 0.1 --opt SGD --batch-size 128 --nesterov --gouk-transforms"
VGG = "--architecture vgg19 --epochs 140 --init-lr 0.0001 --opt Adam --batch-size 128 --weight-dec 0"
VGG_DIVIDE = (
    f"{VGG} --new-layer standard --clipping divide-by-largest --clip_freq 1 --clip_to 1.5 --lip-bn --freq-bn 1 "
    "--bn-eps 8 --clip-linear --clip_linear_to 1.5 --nesterov"
)
DIVIDE = "--clipping divide-by-largest --clip_freq 1 --lip-bn --freq-bn 1 --clip-linear"
TT = "--new-layer tt --orthogonal-k 100000"
COMMANDS = {
    "wrn-cifar10": f"--dataset cifar10 {WRN} --new-layer standard --weight-dec 0.0001",
    "wrn-cifar100": f"--dataset cifar100 {WRN} --new-layer standard --weight-dec 0.0001",
    "wrn-cifar10-tt": f"--dataset cifar10 {WRN} {TT} --dec-rank 192 --weight-dec 0.0001",
    "wrn-cifar100-clip": f"--dataset cifar100 {WRN} {TT} --dec-rank 320 --clipping clip --clip_to 2 --clip_freq 100 "
    "--weight-dec 0.0001",
    "wrn-cifar10-divide": f"--dataset cifar10 {WRN} {TT} --dec-rank 192 {DIVIDE} --clip_to 7 --bn-eps 10 "
    "--clip_linear_to 7 --weight-dec 0.0001",
    "wrn-cifar100-divide": f"--dataset cifar100 {WRN} {TT} --dec-rank 320 {DIVIDE} --clip_to 10 --bn-eps 6.1 "
    "--clip_linear_to 3.9 --weight-dec 0.00005",
    "vgg-cifar10": VGG,
    "vgg-cifar100": f"--dataset cifar100 {VGG}",
    "vgg-cifar10-clip": f"{VGG} {TT} --dec-rank 256 --clipping clip --clip_freq 100 --clip_to 0.5",
    "vgg-cifar10-divide": VGG_DIVIDE,
    "vgg-cifar100-divide": f"{VGG_DIVIDE} --dataset cifar100",
}
SOTT = "--conv-type sott --dec-rank"
LIPCONV_COMMANDS = {
    # The six lines of the paper's README.
    "lipconv5-sott128": f"--block-size 1 --lr-max 0.1 {SOTT} 128 --orthogonal-k 5000",
    "lipconv5-sott256": f"--block-size 1 --lr-max 0.1 {SOTT} 256 --orthogonal-k 5000",
    "lipconv20-sott128": f"--block-size 4 --lr-max 0.05 {SOTT} 128 --orthogonal-k 70000",
    "lipconv20-sott256": f"--block-size 4 --lr-max 0.05 {SOTT} 256 --orthogonal-k 70000",
    "lipconv30-sott128": f"--block-size 6 --lr-max 0.05 {SOTT} 128 --orthogonal-k 200000",
    "lipconv30-sott256": f"--block-size 6 --lr-max 0.05 {SOTT} 256 --orthogonal-k 200000",
    "lipconv5-soc": "--block-size 1 --lr-max 0.1 --conv-type skew",
    "lipconv20-soc": "--lr-max 0.05 --conv-type skew",
    "lipconv30-soc": "--block-size 6 --lr-max 0.05 --conv-type skew --lr-schedule multistep --lr-min 0",
    "lipconv5-cifar100-soc": "--dataset cifar100 --block-size 1 --conv-type skew --weight-decay 5e-4 --momentum 0.9",
    "lipconv5-cifar100-sott128": f"--dataset cifar100 --block-size 1 {SOTT} 128 --orthogonal-k 5e3 --epsilon 36",
}
ALL = {**{name: (TRAIN, line) for name, line in COMMANDS.items()},
       **{name: (LIPCONV, line) for name, line in LIPCONV_COMMANDS.items()}}  # fmt: skip
SHIPPED = sorted(path.stem for path in preset_folder().glob("*.toml"))


def family(preset: str) -> Command:
    return LIPCONV if preset.startswith("lipconv") else TRAIN


def without_place(config: TrainConfig) -> dict[str, Any]:
    return config.model_dump(exclude={"name", "out_dir"})


def test_the_shipped_presets_are_the_papers_commands_and_the_quick_start() -> None:
    assert sorted([*ALL, "quickstart", "lipconv-quickstart"]) == SHIPPED
    assert list(list_presets()) == SHIPPED


@pytest.mark.parametrize("name", ALL)
def test_a_paper_command_and_its_preset_are_one_configuration(name: str) -> None:
    command, line = ALL[name]
    place = "--checkpoints-path" if command is TRAIN else "--out-dir"
    flags = resolve(flags_of(shlex.split(f"{line} {place} somewhere"), command.name), command)
    preset = resolve({"preset": name}, command)
    assert without_place(flags.config) == without_place(preset.config)
    assert flags.config.out_dir == Path("somewhere")
    assert preset.config.name == name


@pytest.mark.parametrize("name", SHIPPED)
def test_a_preset_is_described_and_survives_toml(name: str) -> None:
    assert len(list_presets()[name]) > 10
    assert (preset_folder() / f"{name}.toml").read_text().startswith("# ")
    config = resolve({"preset": name}, family(name)).config
    text = to_toml(config)
    assert TrainConfig.model_validate(tomllib.loads(text)) == config


def test_written_configuration_is_a_preset_again(tmp_path: Path) -> None:
    config = resolve({"preset": "wrn-cifar10", "set": ["seed=5", "max_steps=7"]}).config
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    assert resolve({"preset": str(file)}).config == config


def test_a_file_without_a_name_gives_its_own_to_the_run(tmp_path: Path) -> None:
    file = tmp_path / "my net (2).toml"
    file.write_text("epochs = 3\n")
    resolved = resolve({"preset": str(file), "init_lr": 0.5})
    assert resolved.config.name == "my-net-2-"
    assert resolved.config.optimizer.lr == 0.5


@pytest.mark.parametrize(
    ("text", "name"), [("a b", "a-b"), ("é", "run"), (".x", "x"), ("-_1", "1"), ("a" * 200, "a" * 100)]
)
def test_run_names(text: str, name: str) -> None:
    assert run_name(text) == name


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("wrn-cifar10-divid", "did you mean wrn-cifar10-divide?"),
        ("WRN_CIFAR100", "did you mean wrn-cifar100?"),
        ("zzzzzzzz", "there is no such preset or file (`list_presets`"),
        ("nowhere.toml", "cannot be read"),
    ],
)
def test_unknown_presets(name: str, fragment: str) -> None:
    with pytest.raises(UsageError, match="preset = ") as caught:
        read_preset(name)
    assert fragment in str(caught.value)


def test_files_that_are_no_toml(tmp_path: Path) -> None:
    for content in (b"epochs = = 2", b"\xff\xfe\x00"):
        file = tmp_path / "broken.toml"
        file.write_bytes(content)
        with pytest.raises(UsageError, match="no TOML"):
            read_preset(str(file))
    with pytest.raises(UsageError, match="cannot be read"):
        read_preset(str(tmp_path / "folder.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_preset_belongs_to_one_command(name: str) -> None:
    other = TRAIN if family(name) is LIPCONV else LIPCONV
    with pytest.raises(UsageError, match=f"use svdctl {family(name).name} in place of svdctl {other.name}") as caught:
        resolve({"preset": name, "epochs": 0}, other)
    assert len(caught.value.faults) == 2
