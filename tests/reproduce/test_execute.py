"""One job: what is there is used, what was stopped goes on, what fails is told; the recipes are replaced here."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest

from svdctl.config.presets import to_toml
from svdctl.errors import CheckpointError, Interrupted, TrainingError
from svdctl.reproduce import execute as module
from svdctl.reproduce.execute import StatusWriter, execute
from svdctl.reproduce.plan import Plan
from svdctl.reproduce.run_store import JOB, Job, Outcome, RunState, RunStore
from svdctl.utils.progress import Reporter
from svdctl.utils.run_dir import locked

MEASURED = Outcome("id", "done", {"accuracy": 0.5}, ("x",), "folder")


@pytest.fixture
def job(planned: Callable[..., Plan]) -> Job:
    plan = planned()
    store = RunStore(plan.request.out_dir)
    store.prepare()
    return plan.jobs()[0]


@pytest.fixture
def recipes(job: Job) -> Iterator[Mock]:
    """`recipe.run`, `recipe.resume` and the evaluation, each as a mock."""
    result = Mock(completed=True, folder=job.store.out_dir / "new")
    with (
        patch.object(module.recipe, "run", return_value=result) as run,
        patch.object(module.recipe, "resume", return_value=result) as resume,
        patch.object(module, "evaluate_run", return_value=MEASURED) as measured,
    ):
        yield Mock(run=run, resume=resume, measured=measured, result=result)


def folder_with(job: Job, *, checkpoint: bool) -> Path:
    folder = job.store.out_dir / "old"
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(job.config))
    if checkpoint:
        (folder / "last.pt").write_bytes(b"")
        (folder / "metrics.jsonl").write_text('{"kind": "epoch", "step": 1, "epoch": 1}\n')
    return folder


def status(job: Job) -> str:
    return str(job.store.read_status(job.key)["state"])


def test_a_new_run_is_trained_and_measured(job: Job, recipes: Mock) -> None:
    outcome = execute(job)
    assert outcome == MEASURED
    recipes.run.assert_called_once()
    assert recipes.run.call_args.args == (job.config,)
    assert recipes.run.call_args.kwargs["base"] == f"preset {job.preset}"
    assert recipes.measured.call_args.args[:2] == (job, recipes.result.folder)
    assert status(job) == "done"


def test_a_stopped_run_goes_on_where_it_was(job: Job, recipes: Mock) -> None:
    folder = folder_with(job, checkpoint=True)
    assert execute(job).state == "done"
    recipes.resume.assert_called_once()
    assert recipes.resume.call_args.args == (folder,)
    recipes.run.assert_not_called()


def test_a_run_that_goes_on_takes_data_and_log_from_this_call(planned: Callable[..., Plan], recipes: Mock) -> None:
    fields: dict[str, Any] = {"set": ("data.kind=cifar10",), "rows": ("none-full",)}
    before = planned(**fields)
    now = planned(**fields, dataset_root=Path("elsewhere"), wandb="offline")
    assert before.jobs()[0].key == now.jobs()[0].key
    folder_with(before.jobs()[0], checkpoint=True)
    assert execute(now.jobs()[0]).state == "done"
    changes = recipes.resume.call_args.kwargs["changes"]
    assert changes["data"] == {"root": Path("elsewhere")}
    assert changes["log"] == {"wandb": "offline", "wandb_project": "svdctl", "wandb_group": "tiny"}


def test_a_finished_run_is_measured_alone(job: Job, recipes: Mock) -> None:
    with patch.object(RunStore, "usable", return_value=[RunState(Path("done"), 9, finished=True)]):
        assert execute(job).state == "done"
    recipes.run.assert_not_called()
    recipes.resume.assert_not_called()
    assert recipes.measured.call_args.args[1] == Path("done")


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_folder_without_a_usable_checkpoint_is_left_and_the_run_starts_anew(
    job: Job, recipes: Mock, checkpoint: bool
) -> None:
    folder_with(job, checkpoint=checkpoint)
    recipes.resume.side_effect = CheckpointError("cut short")
    assert execute(job).state == "done"
    recipes.run.assert_called_once()
    assert ("cut short" in str(job.store.read_status(job.key).get("passed_over"))) == checkpoint


def test_what_another_process_holds_is_busy(job: Job, recipes: Mock) -> None:
    with job.store.lock(job.key):
        assert execute(job).state == "busy"
    for checkpoint in (False, True):
        folder = job.store.out_dir / "old"
        if not folder.exists():
            folder_with(job, checkpoint=False)
        if checkpoint:
            (folder / "last.pt").write_bytes(b"")
        with locked(folder):
            assert execute(job).state == "busy"
    recipes.run.assert_not_called()
    recipes.resume.assert_not_called()


def test_a_run_folder_that_is_a_link_is_a_failure_and_waits_for_nobody(job: Job, recipes: Mock, tmp_path: Path) -> None:
    folder = folder_with(job, checkpoint=False)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    outcome = execute(job)
    assert outcome.state == "failed"
    assert f"{folder} is a link to" in str(outcome.reason)
    recipes.run.assert_not_called()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(TrainingError("the loss was\nnot finite"), "the loss was not finite"), (ValueError("odd"), "ValueError: odd"),
     (MemoryError(), "MemoryError")],
)  # fmt: skip
@pytest.mark.parametrize("where", ["run", "measured"])
def test_a_failure_is_an_outcome_with_its_reason(
    job: Job, recipes: Mock, error: Exception, reason: str, where: str
) -> None:
    getattr(recipes, where).side_effect = error
    outcome = execute(job)
    assert (outcome.state, outcome.reason) == ("failed", reason)
    assert (status(job), job.store.read_status(job.key)["reason"]) == ("failed", reason)
    assert job.store.is_free(job.key)


def test_figures_that_lack_one_metric_are_kept_and_the_run_counts_as_failed(job: Job, recipes: Mock) -> None:
    recipes.measured.return_value = Outcome(job.id, "failed", {"accuracy": 0.5}, (), "f", "autoattacks: out of memory")
    outcome = execute(job)
    assert outcome.state == "failed"
    assert outcome.values == {"accuracy": 0.5}


def test_a_stop_is_no_failure(job: Job, recipes: Mock) -> None:
    recipes.result.completed = False
    assert execute(job).state == "interrupted"
    assert status(job) == "interrupted"
    recipes.measured.assert_not_called()
    recipes.result.completed = True
    for stop in (KeyboardInterrupt(), Interrupted("x")):
        recipes.measured.side_effect = stop
        with pytest.raises(type(stop)):
            execute(job)
        assert status(job) == "interrupted"
        assert job.store.is_free(job.key)


def test_a_job_survives_json(job: Job) -> None:
    assert JOB.validate_json(JOB.dump_json(job)) == job


def test_the_status_has_parts_of_the_work_and_the_time_left(job: Job) -> None:
    job.store.prepare()
    with patch("svdctl.reproduce.execute.time.monotonic") as clock:
        clock.return_value = 0.0
        writer = StatusWriter(job, Reporter())
        writer.begin("autoattacks")
        for second in (10.0, 20.0):
            clock.return_value = second
            writer.advance(int(second), 40, "apgd-ce, of 8 images 7 robust so far")
        known = job.store.read_status(job.key)
        assert (known["detail"], known["seconds_left"]) == (
            "autoattacks 20/40 apgd-ce, of 8 images 7 robust so far",
            20.0,
        )
        with writer.part("proving bounds") as advance:
            clock.return_value = 30.0
            advance(3, 21, "conv1")
            assert job.store.read_status(job.key)["part"] == "proving bounds 3/21 conv1"
            clock.return_value = 31.0
            with writer.part("an inner one"):
                assert job.store.read_status(job.key)["part"] == "an inner one"
                clock.return_value = 32.0
            assert job.store.read_status(job.key)["part"] == "proving bounds 3/21 conv1"
        clock.return_value = 40.0
        writer.advance(40, 40, "")
        known = job.store.read_status(job.key)
        assert not {"part", "seconds_left"} & known.keys()
