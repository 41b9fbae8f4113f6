"""Files that ask for far more memory or work than they have bytes: a sentence, soon and with little memory."""

import pickle
import resource
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from svdctl.checkpoint import work_limit
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.errors import CheckpointError
from tests.checkpoint.files import state_dict, with_pickle

SECONDS, MEMORY = 8, 400_000_000
"""Most is refused within a tenth of a second; the stated limit of memory for a file of 2 MB is 200 MB."""


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def call(name: str, arguments: bytes) -> bytes:
    """The call of a function with the arguments that the bytes push above a mark."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n(" + arguments + b"tR"


def often(make: str, first: bytes, times: int = 20_000) -> bytes:
    """A list of one function's results for one big thing."""
    return b"\x80\x02]" + first + b"q\x00a" + (call(make, b"h\x00") + b"a") * times + b"."


def shared_list(length: int) -> bytes:
    return b"](" + b"K\x01" * length + b"e"


NESTED = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(40))
TENSOR = call(
    "torch._utils _rebuild_tensor_v2",
    b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQK\x00))\x89"
    b"ccollections\nOrderedDict\n)R",
)
WORK: dict[str, bytes] = {
    "a key of nested tuples": b"\x80\x02}" + NESTED + b"Ns.",
    "a set of nested tuples": b"\x80\x02" + call("__builtin__ set", b"](" + NESTED + b"e") + b".",
    "an entry of nested tuples": b"\x80\x02}" + text("model") + NESTED + b"s.",
    "a slow encoding": b"\x80\x02}" + text("a") + call("_codecs encode", text("é" * 30_000) + text("punycode")) + b"s.",
    "a string encoded again and again": b"\x80\x02]" + text("x" * 400_000) + b"q\x00a" + text("latin1") + b"q\x01a"
    + (b"c_codecs\nencode\nh\x00h\x01\x86Ra") * 20_000 + b".",
    "sets of one thing": often("__builtin__ set", shared_list(100_000)),
    "ordered dicts of one thing": often("collections OrderedDict", b"](" + b"]K\x01aK\x02a" * 30_000 + b"e"),
    "counters of one thing": often(
        "collections Counter", b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"K\x01" for n in range(100_000)) + b"u"
    ),
    "sizes of one thing": often("torch Size", b"(" + b"K\x01" * 100_000 + b"t"),
    "byte strings of one thing": often(
        "__builtin__ bytearray", call("_codecs encode", text("x" * 400_000) + text("latin1"))
    ),
    "a long key above many names": b"\x80\x02}" + text("k" * 50_000) + b"}("
    + b"".join(text(str(n)) + (TENSOR + b"q\x00" if n == 0 else b"h\x00") for n in range(100_000)) + b"us.",
    "a long key above many names in steps": b"\x80\x02}" + text("k" * 900) + b"}" + text("l" * 900) + b"}("
    + b"".join(text(str(n)) + (TENSOR + b"q\x00" if n == 0 else b"h\x00") for n in range(300_000)) + b"uss.",
    "a wrapper around itself": b"\x80\x02}" + text("module." * 150_000 + "w") + TENSOR + b"s.",
    "numbers of one hash as keys": b"\x80\x02}("
    + b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(60_000)) + b"u.",
    "tuples of numbers as keys": b"\x80\x02}("
    + b"".join(b"J" + struct.pack("<i", n) + b"\x85N" for n in range(60_000)) + b"u.",
    "lists of one list": b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60)) + b".",
    "states of training within each other": b"\x80\x02" + (b"}" + text("optimizer")) * 90 + b"]("
    + TENSOR + b"q\x00" + b"h\x00" * 200_000 + b"e" + b"s" * 90 + b".",
    "many tensors of no numbers": b"\x80\x02](" + TENSOR + b"q\x00"
    + b"".join(TENSOR for _ in range(5_000)) + b"e.",
}  # fmt: skip


@pytest.mark.parametrize("contents", WORK.values(), ids=WORK)
def test_work_without_bound_is_refused(contents: bytes, tmp_path: Path) -> None:
    with_pickle(tmp_path / "work.pt", contents)
    began = time.process_time()
    with pytest.raises(CheckpointError, match=r"work\.pt") as caught:
        read_tensors(tmp_path / "work.pt")
    assert time.process_time() - began < SECONDS
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_000


@pytest.mark.slow
def test_nor_does_it_take_much_memory(tmp_path: Path) -> None:
    """In a process of its own, whose address space is limited."""
    command = [sys.executable, "-m", "tests.checkpoint.test_work", str(tmp_path / "work.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("work.pt") == len(WORK), done.stdout
    assert "free" not in done.stdout


def read_all(path: Path) -> None:
    """Print the sentence for each file, within a limit of memory."""
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    for contents in WORK.values():
        with_pickle(path, contents)
        try:
            read_tensors(path)
        except CheckpointError as error:
            print(error)


def test_wrappers_are_taken_off_as_often_as_they_are_there(tmp_path: Path) -> None:
    torch.save({"module." * 130 + name: tensor for name, tensor in state_dict().items()}, tmp_path / "a.pt")
    assert list(read_tensors(tmp_path / "a.pt").tensors) == list(state_dict())


def test_many_names_of_one_tensor_are_copied_once_or_refused(tmp_path: Path) -> None:
    """Conjugate numbers are made anew for each name."""
    one = torch.zeros(200_000, dtype=torch.complex64).conj()
    torch.save({f"w{n}": one for n in range(20_000)}, tmp_path / "many.pt")
    began = time.process_time()
    with pytest.raises(CheckpointError, match="tensors claim"):
        read_tensors(tmp_path / "many.pt")
    assert time.process_time() - began < SECONDS


def test_a_state_that_overrides_the_methods_of_its_dict_is_dropped(tmp_path: Path) -> None:
    class Overridden:
        def __reduce__(self) -> tuple[object, ...]:
            state = {"items": None, "__class__": 3, "keys": "text", "_metadata": {}}
            return OrderedDict, (), state, None, iter(state_dict().items())

    torch.save(Overridden(), tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt").tensors
    assert list(found) == list(state_dict())


def test_the_limit_is_in_proportion_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same contents beside more numbers are read."""
    monkeypatch.setattr(work_limit, "FLOOR", 10_000)
    contents = pickle.dumps({"a": dict.fromkeys(range(3000))}, 2)
    with_pickle(tmp_path / "a.pt", contents)
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_tensors(tmp_path / "a.pt")
    monkeypatch.setattr(work_limit, "PER_BYTE", 1)
    with pytest.raises(CheckpointError, match="far more memory or work than a file of its size"):
        read_tensors(tmp_path / "a.pt")


def test_what_people_keep_is_far_below_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State dicts, optimisers' states, logs of numbers: with no floor and half of the proportion."""
    monkeypatch.setattr(work_limit, "FLOOR", 0)
    monkeypatch.setattr(work_limit, "PER_BYTE", work_limit.PER_BYTE // 2)
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(40)))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    log = [{"loss": n / 7, "step": n, "epoch": n // 100, "name": None, "on": True} for n in range(5_000)]
    kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": log, "order": list(range(50_000))}
    for save in (torch.save, lambda *a: torch.save(*a, _use_new_zipfile_serialization=False)):
        save(kept, tmp_path / "a.pt")
        assert len(read_tensors(tmp_path / "a.pt").tensors) == 80


if __name__ == "__main__":
    read_all(Path(sys.argv[1]))
