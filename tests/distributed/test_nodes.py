"""Every way of starting several processes, two nodes simulated on one machine."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from svdctl.checkpoint.checkpoint_file import read_checkpoint
from svdctl.cli.app import app
from tests.distributed.runs import write
from tests.distributed.start import free_ports, own_words, start
from tests.distributed.test_same_weights import deviation

Started = list["subprocess.Popen[str]"]


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    """Eight steps in float32 on the command line, of a network without BatchNorm, which would amplify rounding."""
    return [
        "train-lipconv", "--preset", "lipconv-quickstart", "--dataset", f"npz:{data}", "--in-channels", "2",
        "--batch-size", "16", "--epochs", "7", "--max-steps", "8", "--accelerator", "cpu", "--out-dir", str(out),
        *more,
    ]  # fmt: skip


def lightning(data: Path, folder: Path) -> Started:
    """One command a node, as `--num-nodes` asks for."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0]}
    nodes = ("--devices", "1", "--num-nodes", "2")
    return [
        start(["-m", "svdctl", *arguments(data, folder / f"node{node}", *nodes)], **where, NODE_RANK=str(node))
        for node in (0, 1)
    ]


def torchrun(data: Path, folder: Path) -> Started:
    """One launcher a node."""
    nodes = ("--devices", "1", "--num-nodes", "2")
    [port] = free_ports(1)
    return [
        start(
            ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node),
             "--master-addr", "127.0.0.1", "--master-port", port, "-m", "svdctl",
             *arguments(data, folder / f"node{node}", *nodes)]
        )
        for node in (0, 1)
    ]  # fmt: skip


def slurm(data: Path, folder: Path) -> Started:
    """What srun does: one process a task, its place in variables."""
    common: Mapping[str, str] = {
        "SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": free_ports(1)[0],
    }  # fmt: skip
    return [
        start(
            ["-m", "svdctl", *arguments(data, folder / f"node{node}", "--devices", "1", "--num-nodes", "2")],
            **common, SLURM_PROCID=str(node), SLURM_NODEID=str(node), SLURM_LOCALID="0",
        )
        for node in (0, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "launcher", [pytest.param(launcher, marks=pytest.mark.slow) for launcher in (lightning, torchrun, slurm)]
)
def test_two_nodes_train_one_network_and_the_first_alone_writes_and_speaks(launcher, tmp_path: Path) -> None:
    data = write(tmp_path / "data.npz", 38)
    started = launcher(data, tmp_path)
    alone = CliRunner().invoke(app, arguments(data, tmp_path / "alone"))
    assert alone.exit_code == 0, alone.output
    outputs = [process.communicate(timeout=250) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    first, second = (output for output, _ in outputs)
    assert "test accuracy" in first
    assert own_words(second) == ""
    assert not (tmp_path / "node1").exists()
    shared, single = (next((tmp_path / name).iterdir()) for name in ("node0", "alone"))
    assert {path.name for path in shared.iterdir()} == {path.name for path in single.iterdir()}
    assert deviation(read_checkpoint(shared).model, read_checkpoint(single).model) < 1e-4


@pytest.mark.slow
def test_another_number_of_tasks_than_asked_for_is_a_sentence(tmp_path: Path) -> None:
    data = write(tmp_path / "data.npz", 38)
    process = start(
        ["-m", "svdctl", *arguments(data, tmp_path, "--devices", "2")],
        SLURM_JOB_ID="1", SLURM_JOB_NAME="x", SLURM_NTASKS="3", SLURM_NTASKS_PER_NODE="3", SLURM_NNODES="1",
        SLURM_NODELIST="127.0.0.1", SLURM_PROCID="0", SLURM_NODEID="0", SLURM_LOCALID="0",
    )  # fmt: skip
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "--devices and --num-nodes do not fit how the processes were started" in errors
    assert "Traceback" not in errors
