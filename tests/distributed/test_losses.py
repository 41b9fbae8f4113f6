"""The end of one process is the end of all, said once, and what was saved goes on with any number of processes."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.distributed.failure_detector import ANSWER_SECONDS
from svdctl.train.metrics_log import read_log
from tests.distributed.runs import write
from tests.distributed.start import HERE, finish, free_ports, own_words, start
from tests.distributed.test_same_weights import deviation

ENDS = {
    "second killed, first busy": (1, ["process 1 of 2 was lost, killed or cut off; .*: this is the advice"]),
    "first killed, second busy": (-signal.SIGKILL, ["process 0 of 2 was lost, killed or cut off; .*"]),
    "second killed, first sends": (1, ["process 1 of 2 was lost, killed or cut off; .*"]),
    "second fails": (1, ["process 1 of 2: the second has no data"]),
    "first fails": (2, ["the first has no data"]),
    "both fail": (2, ["nobody has data"]),
    "second breaks": (1, ["KeyError: 'surprise'; .*", "process 1 of 2 failed, as it says above; .*"]),
    "second interrupted": (1, ["process 1 of 2: interrupted"]),
    "fine, the first takes longer": (0, []),
    "second killed, starting": (1, ["process 1 of 2 was killed by signal 9 while the processes started; nothing .*"]),
    "second fails, starting": (1, ["the second has no data", "process 1 of 2 ended with exit code 2 while .*"]),
    "first killed, starting": (-signal.SIGKILL, ["process 0 of 2 was lost, .* while the processes started; .*"]),
    "first terminated, starting": (-signal.SIGTERM, ["process 0 of 2 was lost, .* while the processes started; .*"]),
    "first killed, second joins": (-signal.SIGKILL, ["process 0 of 2 was lost, .* while the processes started; .*"]),
    "second stopped, first told": (1, ["process 1 of 2 has not answered for 3 s, .*: this is the advice"]),
    "second stopped, first told twice": (130, ["interrupted at once by a second signal; this is the advice"]),
    "second stopped, first told by Ctrl-C": (1, ["process 1 of 2 has not answered for 3 s, .*: this is the advice"]),
    "first stopped, second told": (
        1, ["process 0 of 2 has not answered for 3 s, .*: this is the advice", "process 1 of 2 failed, as it says .*"],
    ),
    "first stopped, second told twice": (
        1, ["interrupted at once by a second signal; this is the advice", "process 1 of 2 failed, as it says above; .*"]
    ),
}  # fmt: skip


QUICK = ["second killed, first busy", "second fails", "second stopped, first told twice"]
STARTING = [how for how in ENDS if "start" in how or "join" in how]
STOPPED = [how for how in ENDS if "stopped" in how]
OTHERS = [how for how in ENDS if how not in (*QUICK, *STARTING, *STOPPED)]
SLOW = [some[begin : begin + 3] for some in (OTHERS, STARTING, STOPPED) for begin in range(0, len(some), 3)]


@pytest.mark.parametrize(
    "ends",
    [QUICK, *(pytest.param(some, marks=pytest.mark.slow) for some in SLOW)],
)
def test_every_end_is_the_end_of_both_and_said_once(ends: list[str]) -> None:
    # At the same time: most of it is waiting.
    started = {
        how: start([str(HERE / "waits.py"), how], MASTER_PORT=port)
        for how, port in zip(ends, free_ports(len(ends)), strict=True)
    }
    for how, process in started.items():
        # Both hold these pipes: they close when the last one is gone.
        output, errors = process.communicate(timeout=200)
        code, sentences = ENDS[how]
        said = [line.removeprefix("svdctl: ") for line in errors.splitlines() if line.startswith("svdctl: ")]
        assert process.returncode == code, (how, errors)
        assert len(said) == len(sentences), (how, errors)
        assert all(re.fullmatch(pattern, line) for pattern, line in zip(sentences, said, strict=True)), (how, said)
        assert "Traceback" not in errors, (how, errors)
        assert own_words(output) == ""


@pytest.mark.slow
def test_a_killed_process_leaves_a_checkpoint_that_any_number_of_processes_finishes(tmp_path: Path) -> None:
    data, script = str(write(tmp_path / "data.npz", 38)), str(HERE / "runs.py")
    undisturbed = start([script, "train", data, str(tmp_path), "1", "20", "clip-retract"])
    lost = start([script, "lose", data, str(tmp_path), "2", "clip-retract"])
    _, errors = lost.communicate(timeout=100)
    assert lost.returncode == 1
    assert re.search(r"process 1 of 2 was lost.*go on from what was saved with resume ", errors)
    finish(undisturbed, 100)
    folder = next(tmp_path.glob("clip-retract-*-*"))
    assert read_checkpoint(folder).training["counters"]["step"] == 8
    assert {path.name for path in folder.iterdir()} == {
        "config.toml", "environment.json", "metrics.jsonl", "last.pt", ".lock", "starting_spectrum.json",
    }  # fmt: skip
    finish(start([script, "resume", str(folder), "3"]), 100)
    expected = torch.load(tmp_path / "clip-retract-1.0.pt")
    assert read_checkpoint(folder).training["counters"]["step"] == 20
    assert deviation(read_checkpoint(folder).model, expected) < 1e-9


def command(folder: Path, *more: str) -> "subprocess.Popen[str]":
    """A long training on two processes, on the command line."""
    return start(
        ["-m", "svdctl", "train", "--devices", "2", "--accelerator", "cpu", "--epochs", "500", "--out-dir", str(folder),
         "--set", "checkpoint.every_steps=5", *more]
    )  # fmt: skip


def child_of(process: "subprocess.Popen[str]") -> int:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    return int(found.stdout)


def wait_for(folder: Path, seconds: float) -> Path:
    """The run folder, once it has a checkpoint."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := list(folder.glob("*/last.pt")):
            return found[0].parent
        time.sleep(0.1)
    raise AssertionError("no checkpoint was written")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["child", "main"])
def test_sigkill_on_the_command_line_ends_both_within_half_a_minute(tmp_path: Path, victim: str) -> None:
    process = command(tmp_path)
    folder = wait_for(tmp_path, 120)
    began = time.monotonic()
    os.kill(child_of(process) if victim == "child" else process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == (1 if victim == "child" else -signal.SIGKILL)
    sentences = errors.strip().splitlines()
    assert len(sentences) == 1
    assert re.fullmatch(
        rf"svdctl: process [01] of 2 was lost, .* what was saved with svdctl train --resume {folder}", sentences[0]
    )
    steps = read_checkpoint(folder).training["counters"]["step"]
    # On one process it goes on, here until it is told to stop.
    resumed = start(["-m", "svdctl", "train", "--resume", str(folder), "--devices", "1"])
    while read_checkpoint(folder).training["counters"]["step"] == steps:
        assert resumed.poll() is None
        time.sleep(0.2)
    resumed.send_signal(signal.SIGINT)
    resumed.communicate(timeout=60)
    assert resumed.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("told", ["child", "main", "both"])
def test_a_signal_to_any_process_stops_all_and_saves_the_same_step(tmp_path: Path, told: str) -> None:
    process = command(tmp_path)
    folder = wait_for(tmp_path, 120)
    targets = {"child": [child_of(process)], "main": [process.pid], "both": [process.pid, child_of(process)]}[told]
    for target in targets:
        os.kill(target, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    # The first process answers where it is told itself.
    answer = r"note: stopping: the step is finished and saved in \S+/last\.pt; a second request .*\n"
    assert errors == "" if told == "child" else re.fullmatch(answer, errors)
    assert f"svdctl train --resume {folder}" in output
    assert "interrupted after step" in output


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_partner_that_is_stopped_holds_up_no_request_to_stop(tmp_path: Path, times: int) -> None:
    """Told once, the run ends within the partner's limit; told twice, at once. What was saved goes on."""
    process = command(tmp_path)
    folder = wait_for(tmp_path, 120)
    os.kill(child_of(process), signal.SIGSTOP)
    time.sleep(1)
    began = time.monotonic()
    for _ in range(times):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.2)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < (ANSWER_SECONDS + 6 if times == 1 else 4)
    assert process.returncode == (1 if times == 1 else 130)
    *notes, sentence = errors.strip().splitlines()
    assert all(note.startswith("note: stopping: ") for note in notes)
    told = "process 1 of 2 has not answered" if times == 1 else "interrupted at once by a second signal"
    assert sentence.startswith(f"svdctl: {told}")
    assert sentence.endswith(f"go on from what was saved with svdctl train --resume {folder}")
    assert read_checkpoint(folder)


@pytest.mark.slow
def test_two_processes_that_are_stopped_go_on_to_the_lines_of_two_that_are_not(tmp_path: Path) -> None:
    """Stopped in the middle of an epoch: each process goes on with its own sums, and every figure is the same."""
    data, script = str(write(tmp_path / "data.npz", 38)), str(HERE / "runs.py")
    folders = []
    for mode in ("whole", "stop"):
        finish(start([script, mode, data, str(tmp_path / mode), "2", "divide-retract"]), 100)
        folders.append(next((tmp_path / mode).iterdir()))
    assert read_checkpoint(folders[1]).metrics["step"] == 8
    finish(start([script, "resume", str(folders[1]), "2"]), 100)
    first, second = (
        [{k: v for k, v in line.items() if not k.endswith("_time")} for line in read_log(folder / "metrics.jsonl")]
        for folder in folders
    )
    assert first == second
    assert len(first) == 27
    states = [read_checkpoint(folder) for folder in folders]
    assert all(torch.equal(value, states[1].model[name]) for name, value in states[0].model.items())
    assert states[0].training["counters"] == states[1].training["counters"]
