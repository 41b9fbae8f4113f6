"""What programs that draw curves are given: names, steps, pictures and the summary, and none of it twice."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from svdctl.cli.training_flags import resolve
from svdctl.config.run_config import Log
from svdctl.control.control_report import LayerReport
from svdctl.errors import SvdctlError, UsageError
from svdctl.train import start as recipe
from svdctl.train.logger import RunEnd, RunInfo, RunLog
from svdctl.train.loggers.tracking import flat_configuration, named_figures, named_results, summary_text
from svdctl.train.metrics_log import read_log
from tests.train.test_runs import Recorder, data, make

__all__ = ["data"]

TENSORBOARD = 'log.loggers=[{kind="tensorboard"}]'
STEP = {"kind": "step", "step": 3, "epoch": 1, "loss": 1.5, "orthogonal_loss": None, "acc": 0.5, "lr": 0.1}
EPOCH = {
    **STEP, "kind": "epoch", "epochs": 4, "train_time": 2.0, "clipping_time": 0.5, "val_acc": 0.75, "val_time": 0.1,
    "val_certified_acc": 0.4, "epsilon": 36.0, "lipschitz": 2.0, "sigma/conv1": 1.0, "bound/conv1": 1.1,
}  # fmt: skip
PROOF = {"kind": "proof", "step": 3, "epoch": 1, "found": 1.0, "bound/block.0.a/b\x1b": 2.0}


def events(folder: Path) -> Any:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def steps_of(found: Any, tag: str) -> list[int]:
    return [event.step for event in found.Scalars(tag)]


def opened(folder: Path, *kinds: str, **info: Any) -> RunLog:
    log = Log.model_validate({"loggers": [{"kind": kind} for kind in kinds]})
    return RunLog(RunInfo(folder, {"seed": 0, "data": {"kind": "digits"}}, **info), log)


def test_figures_by_step_by_epoch_and_of_proofs_have_names_of_their_own() -> None:
    assert named_figures(STEP) == {"train/loss_step": 1.5, "train/acc_step": 0.5, "train/lr_step": 0.1}
    by_epoch = named_figures(EPOCH)
    assert by_epoch == {
        "epoch": 1, "train/loss_epoch": 1.5, "train/acc_epoch": 0.5, "train/lr_epoch": 0.1, "time/train": 2.0,
        "time/clipping": 0.5, "time/val": 0.1, "val/acc": 0.75, "val/certified_acc": 0.4, "val/epsilon": 36.0,
        "network/lipschitz": 2.0, "sigma/conv1": 1.0, "bound/conv1": 1.1,
    }  # fmt: skip
    proved = named_figures(PROOF)
    assert proved == {"proof/found": 1.0, "proof/bound/block.0.a_x2f_b_x1b_": 2.0}
    names = [*named_figures(STEP), *by_epoch, *proved]
    assert len(set(names)) == len(names)


def test_final_figures_and_configuration_are_pairs() -> None:
    figures = {"test_acc": 0.5, "best_test_acc": 0.6, "test_certified_acc_36": 0.4, "seconds": 9.0}
    assert named_results(RunEnd(1, figures, [], [], {})) == {
        "test/acc": 0.5, "best_test/acc": 0.6, "test/certified_acc_36": 0.4, "time/total": 9.0,
    }  # fmt: skip
    assert flat_configuration({"a": {"b c": True, "d": None}, "e": "f"}) == {"a.b_x20_c": True, "e": "f"}


def test_a_summary_is_no_markup_of_its_layers() -> None:
    layers = [LayerReport("a|b`<b>", "Conv2d", "4 x 4", 1.0, 1.5, None)]
    text = summary_text(RunEnd(1, {}, ["# 50 % of [all](http://x)"], layers, {}))
    assert text.startswith("\\# 50 % of \\[all\\]")
    assert "| a\\|b\\`&lt;b> | Conv2d | 1 | 1.5 |  |" in text


def test_a_run_leaves_curves_pictures_and_summary_in_tensorboard(data: Path) -> None:
    config = make(
        data, TENSORBOARD, "control.kind=clip", "control.max_sigma=1.5", "control.prove_every_steps=3", epochs=2
    )
    folder = recipe.run(config, base="test", reporter=Recorder()).folder
    found = events(folder)
    lines = read_log(folder / "metrics.jsonl")
    for kind, tag, key in (
        ("step", "train/loss_step", "loss"),
        ("epoch", "train/loss_epoch", "loss"),
        ("epoch", "val/acc", "val_acc"),
        ("proof", "proof/found", "found"),
    ):
        logged = [line for line in lines if line["kind"] == kind]
        assert logged
        assert steps_of(found, tag) == [line["step"] for line in logged]
        assert [event.value for event in found.Scalars(tag)] == pytest.approx([line[key] for line in logged])
    tags = found.Tags()
    assert {"test/acc", "time/total"} <= set(tags["scalars"])
    assert any(tag.startswith("proof/bound/") for tag in tags["scalars"])
    assert set(tags["images"]) == {"pictures/curves", "pictures/spectrum"}
    assert found.Images("pictures/curves")[0].encoded_image_string[:4] == b"\x89PNG"
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"] if "text" in tag}
    assert '"max_sigma": 1.5' in texts["configuration/text_summary"]
    assert "test accuracy" in texts["summary/text_summary"]
    assert "_hparams_/session_start_info" in found.summary_metadata
    assert [path.name for path in (folder / "tensorboard").iterdir() if path.is_dir()] == []


def test_a_resumed_run_has_no_step_twice_in_tensorboard(data: Path) -> None:
    config = make(data, TENSORBOARD, epochs=3)
    whole = recipe.run(make(data, epochs=3), base="test", reporter=Recorder()).folder
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=6)).folder
    # Steps that were logged after the checkpoint, as by a run that was killed.
    log = opened(part, "tensorboard", lines=read_log(part / "metrics.jsonl"), step=6)
    for step in (7, 8):
        log.write({**STEP, "step": step})
    log.write({**EPOCH, "step": 8})
    log.close()
    recipe.resume(part, reporter=Recorder())
    found = events(part)
    for kind, tag in (("step", "train/loss_step"), ("epoch", "train/loss_epoch")):
        lines = [line for line in read_log(whole / "metrics.jsonl") if line["kind"] == kind]
        assert steps_of(found, tag) == [line["step"] for line in lines]
        assert [event.value for event in found.Scalars(tag)] == pytest.approx([line["loss"] for line in lines])
    assert len(found.Tensors("configuration/text_summary")) == 1


def test_event_files_that_were_removed_are_written_anew_from_the_log(tmp_path: Path) -> None:
    opened(tmp_path, "tensorboard", lines=[{**STEP, "step": step} for step in (1, 2, 3)], step=3).close()
    assert steps_of(events(tmp_path), "train/loss_step") == [1, 2, 3]


def test_without_the_package_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(UsageError, match=r"pip install 'svdctl\[tensorboard\]'$"):
        opened(tmp_path, "tensorboard")
    with pytest.raises(UsageError, match=r"pip install mlflow-skinny$"):
        opened(tmp_path, "mlflow")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"pip install 'svdctl\[wandb\]'$"):
        opened(tmp_path, "wandb")


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SvdctlError, match="move it away"):
        opened(tmp_path / "run", "tensorboard")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_metrics_jsonl_is_the_same_beside_other_logs(tmp_path: Path) -> None:
    log = opened(tmp_path)
    lines = [STEP, PROOF, EPOCH]
    for line in lines:
        log.write(line)
    log.finish(RunEnd(3, {"test_acc": 1.0}, ["done"], [], {}))
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(json.dumps(line) + "\n" for line in lines)


def mlflow_runs(folder: Path) -> tuple[Any, list[Any]]:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlflow").as_uri())
    (experiment,) = (one for one in client.search_experiments() if one.name == "svdctl")
    return client, list(client.search_runs([experiment.experiment_id]))


def test_a_resumed_run_leaves_curves_pictures_and_summary_in_mlflow_and_no_step_twice(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setattr("socket.socket.connect", None)  # nobody is told
    config = make(data, 'log.loggers=[{kind="mlflow"}]', epochs=3)
    folder = recipe.run(config, base="test", reporter=Recorder(interrupt_after=6)).folder
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ
    recipe.resume(folder, reporter=Recorder())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client, (run,) = mlflow_runs(folder)
    assert (run.info.status, run.info.run_name) == ("FINISHED", folder.name)
    lines = read_log(folder / "metrics.jsonl")
    for kind, tag in (("step", "train/loss_step"), ("epoch", "train/loss_epoch")):
        logged = [(line["step"], line["loss"]) for line in lines if line["kind"] == kind]
        assert [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, tag)] == logged
    assert run.data.metrics.keys() >= {"test/acc", "val/acc"}
    assert run.data.params["control.kind"] == "divide"
    pictures = client.list_artifacts(run.info.run_id, "pictures")
    assert [Path(one.path).name for one in pictures] == ["curves.png", "spectrum.png"]
    assert run.info.artifact_uri.startswith(folder.as_uri())
    assert not Path("mlruns").exists()


def test_a_store_of_mlflow_that_was_there_is_not_gone_on_with(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (tmp_path / "mlflow" / "0").mkdir(parents=True)
    (tmp_path / "mlflow" / "0" / "meta.yaml").write_text("artifact_location: file:///elsewhere")
    (tmp_path / "elsewhere").mkdir()
    opened(tmp_path, "mlflow", lines=[{**STEP, "bound/a b/../c": 1.0}], step=3).close()
    assert not any("elsewhere" in file.read_text() for file in (tmp_path / "mlflow").rglob("meta.yaml"))
    assert list((tmp_path / "mlflow").rglob("a_x20_b_x2f_.._x2f_c"))
    shutil.rmtree(tmp_path / "mlflow")
    (tmp_path / "mlflow").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SvdctlError, match="move it away"):
        opened(tmp_path, "mlflow", lines=[], step=3)
    assert not list((tmp_path / "elsewhere").iterdir())


class _Run:
    """A run of Weights & Biases that keeps what it is given."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.summary: dict[str, Any] = {}

    def log(self, figures: dict[str, Any], step: int) -> None:
        self.logged.append((step, figures))

    def finish(self) -> None:
        self.logged.append((-1, {}))


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Mapping[str, Any], _Run]]:
    import wandb

    runs: list[tuple[Mapping[str, Any], _Run]] = []

    def init(**settings: Any) -> _Run:
        runs.append((settings, _Run()))
        return runs[-1][1]

    monkeypatch.setattr(wandb, "init", init)
    return runs


def test_names_and_the_summary_in_wandb(tmp_path: Path, wandb_runs: list[tuple[Mapping[str, Any], _Run]]) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "curves.png")
    log = opened(tmp_path, "wandb")
    for line in (STEP, PROOF, EPOCH):
        log.write(line)
    layers = [LayerReport("conv1", "Conv2d", "4 x 4", 1.0, 1.5, 2.0)]
    log.finish(RunEnd(3, {"test_acc": 0.5}, ["done"], layers, {"curves": tmp_path / "curves.png"}))
    log.close()
    ((settings, run),) = wandb_runs
    assert (settings["id"], settings["resume"]) == (None, None)
    assert run.logged[:3] == [(3, named_figures(line)) for line in (STEP, PROOF, EPOCH)]
    assert run.logged[3][1].keys() == {"pictures/curves", "layers"}
    assert run.logged[3][1]["layers"].data == [["conv1", "Conv2d", 1.0, 1.5, 2.0]]
    assert run.summary == {"test/acc": 0.5, "text": "done"}


@pytest.mark.parametrize(("mode", "resume"), [("offline", None), ("online", "allow")])
def test_a_resumed_run_goes_on_with_its_run_in_wandb(
    tmp_path: Path, wandb_runs: list[tuple[Mapping[str, Any], _Run]], mode: str, resume: str | None
) -> None:
    for name in ("run-20260102_000000-first", "offline-run-20260103_000000-second", "latest-run", "run-x-\x1b"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    log = Log.model_validate({"loggers": [{"kind": "wandb", "mode": mode}]})
    RunLog(RunInfo(tmp_path, {}, lines=[]), log).close()
    assert [(settings["id"], settings["resume"]) for settings, _ in wandb_runs] == [("second", resume)]


def test_wandb_offline_has_pictures_and_one_id(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = make(data, "log.wandb=offline", epochs=2)
    folder = recipe.run(config, base="test", reporter=Recorder(interrupt_after=3)).folder
    recipe.resume(folder, reporter=Recorder())
    parts = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(parts) == 2
    assert len({part.name for part in parts}) == 1
    assert list(folder.glob("wandb/offline-run-*/files/media/images/pictures/curves_*.png"))


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [(["tensorboard"], ["tensorboard"]), (["jsonl", "tensorboard", "tensorboard"], ["jsonl", "tensorboard"])],
)
def test_flags_name_logs(kinds: list[str], wanted: list[str]) -> None:
    assert [logger.kind for logger in resolve({"log": kinds}).config.log.loggers] == wanted


def test_a_log_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match=r"there is no logger 'tensorbord': .* tensorboard"):
        resolve({"log": ["tensorbord"]})
