"""Too little memory (RLIMIT_AS): the analysis of a large network works in chunks that fit, or a sentence says it.

Attacks and evaluations, which halve their batches: `tests/evaluate/test_attacks.py`. Files of weights:
`tests/checkpoint/test_refuse.py`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from svdctl.errors import is_out_of_memory
from svdctl.evaluate.auto_batch_size import AutoBatchSize
from tests.faults.small import Command, limit_more_memory, make, only_run, train

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve convolutions of 512 channels: 113 MB of weights; all symbols of one on 32 x 32 would take 4 GB."""
    path = tmp_path_factory.mktemp("large") / "large.pt"
    torch.manual_seed(0)
    torch.save({f"layer{place}.weight": torch.randn(512, 512, 3, 3) / 50 for place in range(12)}, path)
    return path


def inspect(large: Path, folder: Path, room: int | None) -> Command:
    arguments = ["inspect-spectrum", large, "--layer", "layer3", "--accuracy", "fast", "--tolerance", "0.3"]
    prepare = () if room is None else (limit_more_memory, room * MEGABYTE)
    return Command([*arguments, "--format", "csv"], folder / "log", *prepare)


def test_the_analysis_of_a_large_network(large: Path, tmp_path: Path) -> None:
    """At every limit the same figures or one sentence; with 400 MB besides the program, the figures."""
    whole = inspect(large, tmp_path, None).end()
    assert whole.code == 0
    told = []
    for room in (20, 100, 180, 260, 400):
        ended = inspect(large, tmp_path, room).end()
        if ended.code == 0:
            assert ended.out == whole.out
        else:
            assert ended.code in (1, 2)
            # Below the line that says what is inspected.
            opening, sentence = ended.err.strip().splitlines()
            assert opening.startswith("svdctl inspect-spectrum: ")
            assert "memory" in sentence
        told.append(ended.code == 0)
    assert told[0] is False
    assert told[-1] is True


PEAK = """
import sys
import torch
from pathlib import Path
import svdctl.cli.app, svdctl.analysis.inspect_files

def megabytes(key):
    return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) / 1024

torch.set_num_threads(2)
before = megabytes("VmRSS:")
try:
    svdctl.cli.app.main()
finally:
    print(megabytes("VmHWM:") - before, file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak of a process")
def test_layers_side_by_side_take_no_more_than_fits(tmp_path: Path) -> None:
    """Of 33 MB of weights on two threads: as many layers at once as fit, within 500 MB."""
    file = tmp_path / "weights.pt"
    torch.manual_seed(0)
    shapes = [(512, 512)] * 3 + [(128, 128)] * 8
    torch.save({f"layer{place}.weight": torch.randn(*shape, 3, 3) / 50 for place, shape in enumerate(shapes)}, file)
    arguments = ["inspect-spectrum", str(file), "--tolerance", "0.3", "--format", "csv"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
        check=True,
    )
    assert ended.stdout.count("\n") == 1 + len(shapes)
    assert float(ended.stderr.splitlines()[-1]) < 500


@pytest.mark.slow
def test_all_its_values_on_a_grid(large: Path, tmp_path: Path) -> None:
    """524,288 singular values out of 1,024 matrices of 512 x 512, 2 GB of them in float64, within 700 MB."""
    arguments = ["inspect-spectrum", large, "--layer", "layer3", "--input-size", "32", "--accuracy", "fast"]
    more = ["--tolerance", "0.3", "--format", "csv", "--all"]
    ended = Command([*arguments, *more], tmp_path / "log", limit_more_memory, 700 * MEGABYTE).end(280)
    assert ended.code == 0, ended.err
    assert ended.out.count("\n") > 500_000


def test_a_training_that_does_not_fit(tmp_path: Path) -> None:
    # Activations of 55 MB each: it is one of them that does not fit, with room left for all small things.
    config = make(tmp_path, "model.width=100", batch_size=60)
    ended = train(tmp_path, config, limit_more_memory, 500 * MEGABYTE).end()
    assert ended.code == 1
    assert "out of memory" in ended.sentence
    assert "--batch-size" in ended.sentence
    assert not list(only_run(tmp_path).glob("*.pt")) if (tmp_path / "runs").exists() else True


def within(limit: int, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """`svdctl ARGUMENTS` in an address space of this many bytes from its start on, as after `ulimit -v`."""
    prepared = f"ulimit -v {limit // 1024}; exec {sys.executable} -m svdctl {' '.join(arguments)}"
    command = ["sh", "-c", prepared]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def test_too_little_address_space_for_torch_is_a_sentence_with_what_is_needed(tmp_path: Path) -> None:
    found = within(400 * MEGABYTE, "inspect-spectrum", "w.pt", cwd=tmp_path)
    assert found.returncode == 2
    (sentence,) = found.stderr.splitlines()
    needed = re.fullmatch(
        r"svdctl: torch needs about (\d+\.\d) GB of address space here, and the limit is 0\.4 GB; raise it .*", sentence
    )
    assert needed is not None
    assert 0.7 < float(needed[1]) < 20
    # What needs no torch works.
    assert within(400 * MEGABYTE, "train", "--print-config", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_at_every_limit_of_the_address_space_it_works_or_says_why_not(tmp_path: Path) -> None:
    torch.save({"weight": torch.eye(3)}, tmp_path / "w.pt")
    codes = []
    for limit in (*range(200, 5000, 600), 20_000):
        found = within(limit * MEGABYTE, "inspect-spectrum", "w.pt", cwd=tmp_path)
        codes.append(found.returncode)
        if found.returncode != 0:
            *_, sentence = found.stderr.splitlines()  # behind what it does, if it came so far
            assert re.match("svdctl: (torch needs about .* of address space|out of memory; )", sentence), (
                limit,
                sentence,
            )
    assert codes[0] == 2
    assert codes[-1] == 0
    assert codes == sorted(codes, reverse=True)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 3 bytes"), True),
        (RuntimeError("shapes do not match"), False),
        (OSError(28, "No space left on device"), False),
        (ValueError("can't allocate memory"), False),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (ImportError("cannot import name x"), False),
    ],
)
def test_what_counts_as_lack_of_memory(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


def test_a_batch_is_halved_when_a_processor_runs_out_of_memory() -> None:
    """As on a GPU; other failures are not tried again."""
    tried = []

    def work(size: int) -> int:
        tried.append(size)
        if size > 3:
            torch.empty(2**60, dtype=torch.uint8)
        return size

    assert AutoBatchSize(12).run(work) == 3
    assert tried == [12, 6, 3]

    def broken(size: int) -> int:
        tried.append(size)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        AutoBatchSize(12).run(broken)
    assert tried == [12, 6, 3, 12]
