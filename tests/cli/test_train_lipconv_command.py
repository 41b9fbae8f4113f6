"""`svdctl train-lipconv`: its flags reach the recipe of `svdctl train`; its faults are told together."""

import tomllib
from unittest.mock import Mock

import pytest

from svdctl.cli.training_flags import LIPCONV, resolve
from tests.cli.test_train_command import recipe, svdctl_exits  # noqa: F401

pytestmark = pytest.mark.usefixtures("recipe")


def resolved(**flags: object) -> object:
    return resolve(flags, LIPCONV).config


def test_alone_it_runs_its_quick_start(recipe: Mock) -> None:  # noqa: F811
    assert svdctl_exits("train-lipconv") == 0
    (config,), named = recipe.run.call_args
    assert config == resolved(preset="lipconv-quickstart")
    assert named["base"] == "preset lipconv-quickstart (no --preset or --conv-type is given)"


def test_every_flag_of_the_papers_command_sets_its_field(recipe: Mock) -> None:  # noqa: F811
    line = (
        "--batch-size 64 --data-dir d --epochs 3 --lr-schedule cyclic --lr-min 0.01 --lr-max 0.2 --weight-decay 1e-3 "
        "--momentum 0.8 --epsilon 72 --in-channels 16 --block-size 2 --out-dir o --seed 7 --conv-type tt "
        "--dataset cifar100 --dec-rank 12 --assigning-freq 5 --clipping clip --clip_to 1.5 --orthogonal-k 3"
    )
    assert svdctl_exits("train-lipconv", *line.split()) == 0
    assert (
        svdctl_exits("train-lipconv", *line.replace("--data-dir", "--dataset_root").replace("r-m", "r_m").split()) == 0
    )
    (first,), (second,) = (call.args for call in recipe.run.call_args_list)
    assert first == second
    assert first.model_dump(mode="json", exclude={"hardware", "log", "evaluation", "normalize", "augment"}) == {
        "name": "lipconv10-tt12-cifar100",
        "seed": 7,
        "epochs": 3,
        "max_steps": None,
        "batch_size": 64,
        "accumulate": None,
        "ema": None,
        "out_dir": "o",
        "init": "paper",
        "initial": None,
        "data": {"kind": "cifar100", "root": "d"},
        "model": {"kind": "lipconv", "block_size": 2, "in_channels": 16, "checkpoint_activations": False},
        "layer": {
            "kind": "tt", "rank": 12, "rank_scale": None, "compress_first": True, "init": None,
            "frames": {"kind": "penalty", "weight": 3, "count": "paper"},
        },
        "control": {
            "kind": "clip", "max_sigma": 1.5, "every_steps": 5, "prove_every_steps": "auto", "linear_max": None,
            "procedure": "certified", "max_sigma_start": None, "max_sigma_epochs": None,
        },
        "batchnorm": None,
        "certificate": {"epsilon": 72, "radii": [36, 72, 108, 255]},
        "optimizer": {
            "kind": "sgd", "lr": 0.2, "momentum": 0.8, "nesterov": False, "weight_decay": 1e-3, "clip_norm": None,
        },
        "schedule": {"kind": "cyclic", "lr_min": 0.01, "up": 0.05, "down": 0.15, "peak_momentum": 0.8},
        "loss": {"kind": "cross-entropy", "label_smoothing": None},
        "checkpoint": {"every_epochs": 10, "every_steps": None, "keep": False},
        "plugins": [],
    }  # fmt: skip


def test_flags_of_a_retired_library_are_taken_with_a_notice(
    recipe: Mock,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert svdctl_exits("train-lipconv", "--opt-level", "O2", "--loss_scale", "dynamic", "--print-config") == 0
    shown = capsys.readouterr()
    assert tomllib.loads(shown.out)["hardware"]["precision"] == "32"
    assert [line.split()[1] for line in shown.err.splitlines()] == ["--opt-level", "--loss-scale"]
    assert all("--precision" in line for line in shown.err.splitlines())


def test_resume_is_for_its_own_runs(recipe: Mock) -> None:  # noqa: F811
    assert svdctl_exits("train-lipconv", "--resume", "runs/x", "--devices", "2") == 0
    assert recipe.resume.call_args.kwargs["refused"] == LIPCONV.refused


def test_all_faults_come_together_before_torch(
    recipe: Mock,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = (
        "--dataset cifar100 --conv-type sott --dec-rank 1,2 --block-size 0 --in-channels 2 --clipping clip "
        "--lr-schedule cyclic --lr-min 0.3"
    )
    assert svdctl_exits("train-lipconv", *line.split()) == 2
    lines = capsys.readouterr().err.splitlines()
    for part in ("--dec-rank (layer.rank): 6 ranks", "--block-size", "--in-channels 4", "--clipping", "--lr-min"):
        assert sum(part in line for line in lines) == 1, part
    assert len(lines) == 5
    recipe.run.assert_not_called()
