"""Engines give every job one outcome; lost workers are replaced; the driver leaves what others hold for later."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock, patch

import pytest

from svdctl import plugins
from svdctl.config.presets import to_toml
from svdctl.data.npz import Npz
from svdctl.errors import Interrupted, UsageError
from svdctl.reproduce import executors, worker
from svdctl.reproduce import reproduction as module
from svdctl.reproduce.estimate import run_bytes
from svdctl.reproduce.executors import ATTEMPTS, Executor, OnRay, Processes
from svdctl.reproduce.plan import Plan, everywhere, make_plan
from svdctl.reproduce.reproduction import check_disk, disk_needed, drive, make_executor
from svdctl.reproduce.run_store import JOB, OUTCOME, Job, Outcome, RunStore
from svdctl.reproduce.table_files import Request
from svdctl.utils.progress import Reporter


@pytest.fixture
def jobs(planned: Callable[..., Plan]) -> list[Job]:
    plan = planned(seeds=(1, 2))
    store = RunStore(plan.request.out_dir)
    store.prepare()
    return plan.jobs()


class Scripted(Executor):
    """An engine of one place whose outcomes are given, by job and attempt."""

    def __init__(self, script: dict[str, list[str]]) -> None:
        super().__init__(1)
        self.script, self.order = script, list[str]()

    def run(self, job: Job) -> Outcome:
        self.order.append(job.id)
        return Outcome(job.id, self.script.get(job.id, ["done"]).pop(0))  # type: ignore[arg-type]


def states(jobs: Sequence[Job], engine: Scripted) -> dict[str, str]:
    return {outcome.id: outcome.state for outcome in drive(jobs, engine, Reporter())}


def test_a_failed_row_does_not_stop_the_others_and_a_busy_one_comes_again(jobs: list[Job]) -> None:
    a, b, c, d = (job.id for job in jobs)
    engine = Scripted({a: ["failed"], b: ["busy", "done"]})
    with patch.object(module.time, "sleep"), patch.object(module, "BUSY_PAUSE", 0.0):
        assert states(jobs, engine) == {a: "failed", b: "done", c: "done", d: "done"}
    assert engine.order == [a, b, c, d, b]


def test_a_stopped_row_ends_the_work(jobs: list[Job]) -> None:
    engine = Scripted({jobs[1].id: ["interrupted"]})
    with patch.object(module.time, "sleep"), pytest.raises(Interrupted):
        states(jobs, engine)
    assert len(engine.order) == 2


def test_a_folder_that_another_command_holds_is_not_asked_for_without_end(jobs: list[Job]) -> None:
    key = jobs[0].id
    engine, said = Scripted({key: ["busy"] * 3 + ["done"]}), list[str]()
    with patch.object(module, "BUSY_PAUSE", 2.0), patch.object(module, "time", Clock()) as clock:
        assert [outcome.id for outcome in drive(jobs[:1], engine, Mock(say=said.append))] == [key]
    assert clock.now >= 6
    assert said == [f"another command works on {jobs[0].config.name}: waiting for it"]


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_what_another_command_holds_is_waited_for(jobs: list[Job]) -> None:
    store = jobs[0].store
    said: list[str] = []
    held = store.lock(jobs[0].key)
    held.__enter__()
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 5:
            held.__exit__(None, None, None)

    engine = Scripted({})
    with patch.object(module.time, "sleep", nap):
        order = [outcome.id for outcome in drive(jobs, engine, Mock(say=said.append))]
    assert order[-1] == jobs[0].id
    assert len(order) == 4
    assert len(said) == 1
    assert "waiting for it" in said[0]


PRINTED = 'print(\'noise\'); print(\'{"id": "%s", "state": "done"}\')'


class Fake(Processes):
    def __init__(self, count: int, code: str, gpus: list[str] | None = None) -> None:
        super().__init__(count, gpus or [])
        self.command = (sys.executable, "-c", code)


def finish(engine: Processes, *jobs: Job) -> list[Outcome]:
    """The outcomes of jobs that run at a time."""
    return [started.result(30) for started in [engine.submit(job) for job in jobs]]


def started(engine: Processes, *jobs: Job, submit: bool = True) -> "list[subprocess.Popen[str]]":
    """Submit jobs, and return their processes once all are there."""
    for job in jobs if submit else ():
        engine.submit(job)
    until = time.monotonic() + 30
    while len(engine.processes) < len(jobs) and time.monotonic() < until:
        time.sleep(0.01)
    return list(engine.processes)


def test_a_lost_worker_is_replaced(jobs: list[Job], tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    code = (
        "import os, pathlib, signal, sys; sys.stdin.read()\n"
        f"marks = pathlib.Path({str(marks)!r}); (marks / str(os.getpid())).touch()\n"
        "if len(list(marks.iterdir())) < 3: os.kill(os.getpid(), signal.SIGKILL)\n" + PRINTED % jobs[0].id
    )
    engine = Fake(1, code)
    (outcome,) = finish(engine, jobs[0])
    assert (outcome.id, outcome.state) == (jobs[0].id, "done")
    assert len(list(marks.iterdir())) == 3
    assert not engine.processes


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("import sys; print('why', file=sys.stderr); sys.exit(3)", "exit code 3: why"),
        ("print('no outcome')", "exit code 0"),
    ],
)
def test_a_worker_that_keeps_failing_is_a_failed_row(jobs: list[Job], code: str, words: str) -> None:
    engine = Fake(2, code)
    with patch.object(executors.subprocess, "Popen", wraps=subprocess.Popen) as started:
        (outcome,) = finish(engine, jobs[0])
    assert started.call_count == (ATTEMPTS if "kill" in code else 1)
    assert outcome.state == "failed"
    assert words in str(outcome.reason)
    assert jobs[0].store.read_status(jobs[0].key)["state"] == "failed"


def test_workers_share_threads_and_have_their_own_gpu(jobs: list[Job]) -> None:
    code = (
        "import os, sys, json; job = json.load(sys.stdin)\n"
        "import time; time.sleep(0.5)\n"
        "said = os.environ.get('OMP_NUM_THREADS') + ' ' + os.environ.get('CUDA_VISIBLE_DEVICES', '-')\n"
        "print(json.dumps({'id': 'x', 'state': 'done', 'reason': said}))"
    )
    cores = len(os.sched_getaffinity(0))
    engine = Fake(2, code, ["4", "7"])
    for _ in range(2):  # places are free again
        said = {str(outcome.reason) for outcome in finish(engine, *jobs[:2])}
        assert said == {f"{max(1, cores // 2)} 4", f"{max(1, cores // 2)} 7"}


def test_workers_do_not_hear_the_terminal(jobs: list[Job]) -> None:
    engine = Fake(1, "import time; time.sleep(600)")
    (process,) = started(engine, *jobs[:1])
    assert os.getpgid(process.pid) != os.getpgid(0)
    engine.stop()


def test_a_folder_without_a_checkpoint_needs_its_whole_space(jobs: list[Job]) -> None:
    run, store = jobs[0], jobs[0].store
    folder = store.out_dir / "begun"
    folder.mkdir()
    (folder / "config.toml").write_text(to_toml(run.config))
    whole = disk_needed([run], store.states([run]))
    assert whole > 0
    (folder / "last.pt").write_bytes(b"")
    assert disk_needed([run], store.states([run])) == 0
    config = run.config.model_copy(
        update={"checkpoint": run.config.checkpoint.model_copy(update={"keep": True, "every_epochs": 1})}
    )
    assert run_bytes(config) > run_bytes(run.config)


def test_a_worker_whose_parent_was_killed_before_it_could_ask_who_that_is_stops() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = "from svdctl.reproduce import worker; import time; worker.work = lambda text: time.sleep(60); worker.main()"
    ended = subprocess.run([sys.executable, "-c", code, str(gone.pid)], input="{}", text=True, timeout=30, check=False)
    assert ended.returncode == -signal.SIGTERM


EVALUATING = """
import sys, time
from pathlib import Path
from svdctl.reproduce import execute, worker
execute.train_run = lambda job, status: Path("run")
def evaluate_run(job, folder, status, kept):
    status.begin("autoattacks")
    time.sleep(60)
execute.evaluate_run = evaluate_run
worker.main()
"""


def test_a_worker_that_evaluates_says_that_it_was_stopped(jobs: list[Job]) -> None:
    job, engine = jobs[0], Fake(1, EVALUATING)
    outcome = engine.submit(job)
    until = time.monotonic() + 60
    while job.store.read_status(job.key).get("detail") != "autoattacks":
        assert time.monotonic() < until
        time.sleep(0.05)
    engine.stop()
    assert outcome.result(5) == Outcome(job.id, "interrupted")
    status = job.store.read_status(job.key)
    assert (status["state"], status["detail"]) == ("interrupted", "autoattacks")


def test_stopping_ends_the_workers(jobs: list[Job]) -> None:
    engine = Fake(2, "import time; time.sleep(600)")
    outcomes = [engine.submit(job) for job in jobs[:3]]
    processes = started(engine, *jobs[:2], submit=False)
    engine.stop()
    assert all(process.poll() is not None for process in processes)
    assert [future.result(5).state for future in outcomes[:2]] == ["interrupted"] * 2
    assert outcomes[2].cancelled() or outcomes[2].result(5).state == "interrupted"
    assert len(processes) == 2
    assert not engine.processes


def test_ray_that_is_not_there_is_a_sentence(planned: Callable[..., Plan]) -> None:
    with patch.dict(sys.modules, {"ray": None}), pytest.raises(UsageError, match=r"pip install 'svdctl\[ray\]'"):
        make_executor(planned(engine="ray").request, Reporter())
    with pytest.raises(UsageError, match="add `engine = ray`"):
        make_executor(planned(address="auto").request, Reporter())


class FakeRay(ModuleType):
    """As much of Ray as an executor uses: a job is done when it is waited for, one of TT layers never."""

    class exceptions:  # noqa: N801 - as in Ray
        RayError = RuntimeError

        class GetTimeoutError(RuntimeError):
            """Nothing has come yet."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.cancelled, self.is_up = list[object](), False

    def init(self, address: str | None, **options: object) -> None:
        self.is_up = True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **options: object) -> Callable[[Callable[[str], str]], Mock]:
        assert options == {"max_retries": 3, "num_cpus": 1}
        return lambda work: Mock(remote=lambda text: (work, text, object()))

    def get(self, reference: Any, timeout: float) -> str:
        job = JOB.validate_json(reference[1])
        if "tt8" in job.config.name:
            time.sleep(0.01)
            raise self.exceptions.GetTimeoutError
        if job.config.seed == 2:
            raise self.exceptions.RayError("the node died\nat night")
        return OUTCOME.dump_json(Outcome(job.id, "done", {"accuracy": 0.5})).decode()

    def cancel(self, reference: object) -> None:
        self.cancelled.append(reference)

    def shutdown(self) -> None:
        self.is_up = False


def test_jobs_on_ray(jobs: list[Job]) -> None:
    ray = FakeRay()
    with patch.dict(sys.modules, {"ray": ray}):
        executor = OnRay(None)
        assert executor.slots >= len(jobs)
        outcomes = [executor.submit(job) for job in jobs]
        assert [job.config.seed for job in jobs][:2] == [1, 2]
        done, lost = (future.result(10) for future in outcomes[:2])
        assert (done.id, done.state, done.values) == (jobs[0].id, "done", {"accuracy": 0.5})
        assert (lost.id, lost.reason) == (jobs[1].id, "the worker was lost 4 times: the node died")
        assert jobs[1].store.read_status(jobs[1].key)["state"] == "failed"
        executor.stop()
    assert (len(ray.cancelled), ray.is_up) == (2, False)
    assert [future.result(1).state for future in outcomes[2:]] == ["interrupted"] * 2


def test_paths_are_absolute_for_a_cluster() -> None:
    request = everywhere(
        Request(tables=("table2",), out_dir=Path("runs"), reuse=(Path("a"),), cifar_c_root=Path("c"), engine="ray")
    )
    for path in (request.out_dir, *request.reuse, request.cifar_c_root):
        assert path is not None
        assert path.is_absolute()


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ({}, {"root": Path.cwd() / "data"}),
        ({"set": ("data.root=/mnt/cifar",)}, {"root": Path("/mnt/cifar")}),
        ({"set": ("data.root=/mnt/cifar",), "dataset_root": Path("d")}, {"root": Path.cwd() / "d"}),
        ({"set": ("data.kind=npz", "data.path=my.npz")}, {"path": Path.cwd() / "my.npz"}),
        ({"set": ("data.kind=folder", "data.path=my")}, {"path": Path.cwd() / "my"}),
    ],
)
def test_data_are_where_they_were_given_on_every_machine(words: dict[str, Any], place: dict[str, Path]) -> None:
    request = Request(tables=("table2",), rows=("none-full",), engine="ray", **words)
    data = make_plan(request).jobs()[0].config.data
    assert {name: getattr(data, name) for name in place} == place


def test_no_cluster_at_the_address_is_a_sentence() -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match="no Ray cluster answers"):
        OnRay("127.0.0.1:1")


def test_a_plan_that_the_disk_cannot_hold_is_refused_before_training(jobs: list[Job]) -> None:
    check_disk(jobs, jobs[0].store, jobs[0].store.states(jobs))
    with (
        patch.object(module.shutil, "disk_usage", return_value=type("Usage", (), {"free": 1000})),
        pytest.raises(UsageError, match=r"the plan needs 0\.\d GB .* are free; .*`out_dir`"),
    ):
        check_disk(jobs, jobs[0].store, jobs[0].store.states(jobs))


def test_figures_survive_the_way_from_a_worker(jobs: list[Job]) -> None:
    outcome = Outcome("x", "done", {"accuracy": 0.1 + 0.2}, ("a", "b"), "f")
    assert OUTCOME.validate_json(OUTCOME.dump_json(outcome)) == outcome


def test_a_worker_loads_the_plugins_of_its_job_before_it_begins(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named.py").write_text("import sys\nsys.plugin_of_a_worker = __name__\n")
    monkeypatch.setattr(sys, "plugin_of_a_worker", None, raising=False)
    monkeypatch.setattr(plugins, "_loaded", {})
    begun = []

    def execute(job: Job) -> Outcome:
        begun.append(sys.plugin_of_a_worker)  # type: ignore[attr-defined]
        return Outcome(job.id, "done")

    monkeypatch.setattr("svdctl.reproduce.execute.execute", execute)
    config = jobs[0].config.model_copy(update={"plugins": (str(tmp_path / "named.py"),)})
    worker.work(JOB.dump_json(replace(jobs[0], config=config)).decode())
    assert begun == ["svdctl_plugin_named"]


def test_a_worker_imports_nothing_from_the_current_folder(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = jobs[0].store.out_dir
    for name in ("torch", "typing", "pydantic"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    engine = Processes(1, [])
    (outcome,) = finish(
        engine,
        replace(jobs[0], config=jobs[0].config.model_copy(update={"data": Npz(path=Path("none.npz")), "plugins": ()})),
    )
    assert "none.npz" in str(outcome.reason)
