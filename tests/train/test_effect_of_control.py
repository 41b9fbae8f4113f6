"""What a run says of its control at the end: true of the counts, and of the run that it would have been."""

from pathlib import Path

import pytest

from svdctl.checkpoint.checkpoint_file import read_checkpoint, write_checkpoint
from svdctl.cli.messages import with_flags
from svdctl.cli.training_flags import TRAIN
from svdctl.control.change_counts import Applications, Changes
from svdctl.control.control_report import LayerReport
from svdctl.reproduce.execute import training_figures
from svdctl.train import start as recipe
from svdctl.train.effect_of_control import effect_of_control
from svdctl.train.metrics_log import read_log
from svdctl.utils.rounded_figures import at_least
from tests.train.test_resume import make, no_pictures
from tests.train.test_runs import Recorder

__all__ = ["no_pictures"]

NOTE = "Control changed no layer in a run of this row: none was found above its maximum."
HIGH = (
    "control.kind=divide",
    "control.max_sigma=1000",
    "control.linear_max=1000",
    "batchnorm.max_gain=1000",
    "layer.frames.kind=retract",
)


def changes(*counts: int, applied: int = 9, proofs: tuple[int, ...] = (), since: int = 0) -> Changes:
    names = [f"conv{number}" for number in range(len(counts))]
    control = Applications(applied, dict(zip(names, counts, strict=True)))
    return Changes(since, control, proofs=dict(zip(names, proofs or (0,) * len(counts), strict=True)))


CASES: dict[str, tuple[Changes, str, tuple[str, ...]]] = {
    "some": (
        changes(0, 4, 1, 0), "control changed 2 of 4 layers, conv1 most often, in 4 of 9 steps; 2 layers were never "
        "found above the maximum", (),
    ),
    "all, and one of them by proofs too": (
        changes(9, 4, proofs=(0, 2)), "control changed 2 of 2 layers, conv0 most often, in 9 of 9 steps; proofs at "
        "evaluations and checkpoints scaled 1 layer", (),
    ),
    "one alone": (changes(3), "control changed 1 of 1 layer, in 3 of 9 steps", ()),
    "none": (
        changes(0, 0), "control changed none of 2 layers in 9 steps: none was found above its maximum; a lower "
        "`control.max_sigma` would", (),
    ),
    "none, of two copies": (
        changes(0, 0), "control changed none of 2 layers in 9 steps: none was found above its maximum in the weights "
        "that are trained; a lower `control.max_sigma` would", ("ema.decay=0.9",),
    ),
    "none but by proofs": (
        changes(0, 0, proofs=(1, 0)), "control changed none of 2 layers in 9 steps; proofs at evaluations and "
        "checkpoints scaled 1 layer", (),
    ),
    "seldom": (
        changes(1, 0, applied=2), "control changed 1 of 2 layers, conv0 most often, in 1 of 2 applications (one every "
        "4 steps); 1 layer was never found above the maximum", ("control.every_steps=4",),
    ),
    "never applied": (
        changes(0, applied=0), "control was never applied: it is due every 100 steps, and the run made 9; no proof "
        "found a layer above its maximum; a lower `control.max_sigma` would", ("control.every_steps=100",),
    ),
    "never applied, and nothing is proved": (
        changes(0, applied=0), "control was never applied: it is due every 100 steps, and the run made 9",
        ("control.kind=clip", "control.every_steps=100", "control.procedure=paper"),
    ),
    "begun by an older version": (
        changes(0, 0, applied=4, since=5), "control changed none of 2 layers in 4 steps: none was found above its "
        "maximum; not counted up to step 5, which an older version made", (),
    ),
    "without a control": (Changes(), "", ("control.kind=none",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_sentences(name: str, tmp_path: Path) -> None:
    counts, wanted, sets = CASES[name]
    config = make(tmp_path, "train", *HIGH[3:], *sets)
    assert next(effect_of_control(counts, config, 9), "") == wanted


def test_a_run_that_proves_nothing_names_no_maximum_that_would_have_changed_it(tmp_path: Path) -> None:
    """Its estimates lie below the norms of the report, and its last application before the last step."""
    config = make(tmp_path, "train", "control.max_sigma=10", "control.procedure=paper")
    row = LayerReport("conv0", "Conv2d", "4 x 3 x 3 x 3", 5.0, 5.1, 10.0)
    said = next(effect_of_control(changes(0), config, 9, [row]))
    assert said.endswith("none was found above its maximum; the nearest, conv0, is at 5 of 10 at the end")


def test_frames_are_said_not_to_be_counted(tmp_path: Path) -> None:
    for kind, words in (("retract", "put back"), ("penalty", "penalty"), ("free", None)):
        config = make(tmp_path, "train", f"layer.frames.kind={kind}")
        last = [*effect_of_control(changes(1), config, 9)][-1]
        assert (words in last) if words else last.startswith("control changed")


@pytest.mark.parametrize(("every", "said"), [(9, False), (10, True)])
def test_a_control_that_is_never_due_is_told_before_the_first_step(tmp_path: Path, every: int, said: bool) -> None:
    recorder = Recorder()
    recipe.run(make(tmp_path, "train", f"control.every_steps={every}"), base="test", reporter=recorder)
    told = [text for text in recorder.lines if "control is due every 10 steps, and the run makes 9" in text]
    assert bool(told) == said


def test_a_run_below_its_maximum_says_so_and_which_maximum_would_have_changed_it(tmp_path: Path) -> None:
    result = recipe.run(make(tmp_path, "train", *HIGH), base="test", reporter=Recorder())
    said = next(line for line in result.summary if line.startswith("control"))
    controlled = [row for row in result.layers if row.maximum and "BatchNorm" not in row.kind]
    largest = max(row.largest for row in controlled)
    row = next(row for row in controlled if row.largest == largest)
    key = "linear_max" if row.kind == "Linear" else "max_sigma"
    assert said == (
        f"control changed none of {len(controlled)} layers in 9 steps: none was found above its maximum; the nearest, "
        f"{row.name}, is at {at_least(largest)} of 1000, so that a `control.{key}` below {at_least(largest)} would "
        "have changed this training"
    )
    flag = {"linear_max": "--clip-linear-to", "max_sigma": "--clip-to"}[key]
    assert f"so that a {flag} below" in with_flags(said, TRAIN.words)
    assert "none of 7 layers of BatchNorm was above the gain of 1000" in result.summary
    assert training_figures(result.folder)[1] == [NOTE]
    lines = [line for line in read_log(result.folder / "metrics.jsonl") if line["kind"] == "epoch"]
    assert [(line["control_calls"], line["batchnorm_calls"]) for line in lines] == [(3, 3), (6, 6), (9, 9)]
    assert {value for line in lines for key, value in line.items() if key.startswith("changed/")} == {0}

    # And it is true.
    lower = make(tmp_path, "train", *HIGH, f"control.{key}={0.999 * largest}")
    reached = recipe.run(lower, base="test", reporter=Recorder())
    state = read_checkpoint(reached.folder / "last.pt").training["controller"]["changes"]
    assert not Changes.of_state(state).is_none
    assert training_figures(reached.folder)[1] == []
    assert not any("would have changed" in line for line in reached.summary)


@pytest.mark.parametrize("kind", ["divide", "clip"])
def test_stopped_and_resumed_it_says_the_same(kind: str, tmp_path: Path) -> None:
    sets = (f"control.kind={kind}", "control.max_sigma=0.9", "control.every_steps=2", "control.prove_every_steps=4")
    config = make(tmp_path, "train", *sets, "evaluation.every_epochs=2")
    whole = recipe.run(config, base="test", reporter=Recorder())
    part = recipe.run(config, base="test", reporter=Recorder(interrupt_after=3))
    part = recipe.resume(part.folder, reporter=Recorder(interrupt_after=5))
    resumed = recipe.resume(part.folder, reporter=Recorder())
    assert resumed.summary == whole.summary
    found, wanted = (read_checkpoint(one.folder / "last.pt").training["controller"] for one in (resumed, whole))
    assert found["changes"] == wanted["changes"]
    assert sum(wanted["changes"]["control"]["changed"].values()) > 0
    assert wanted["changes"]["control"]["applied"] == 4


def test_a_run_that_an_older_version_began_says_from_where_it_counts(tmp_path: Path) -> None:
    part = recipe.run(make(tmp_path, "train", *HIGH), base="test", reporter=Recorder(interrupt_after=5))
    file = part.folder / "last.pt"
    checkpoint = read_checkpoint(file)
    step = checkpoint.training["controller"]["step"]
    del checkpoint.training["controller"]["changes"]
    write_checkpoint(file, checkpoint)
    result = recipe.resume(part.folder, reporter=Recorder())
    said = next(line for line in result.summary if line.startswith("control"))
    assert f" in {9 - step} steps: none was found above its maximum; not counted up to step {step}, " in said
    assert training_figures(result.folder)[1] == []  # nobody knows
