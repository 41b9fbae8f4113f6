"""What docs/reliability.md states in numbers is so: limits at their last step and one beyond, and what was tried."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from svdctl.checkpoint import tensors
from svdctl.checkpoint.extract_state_dict import MAX_DEPTH as WEIGHTS_DEPTH
from svdctl.checkpoint.pickles import MAX_DEPTH, MAX_NAME, MAX_NUMBER_KEYS
from svdctl.checkpoint.weight_file import read_tensors
from svdctl.checkpoint.work_limit import FLOOR, PER_BYTE, WorkLimit
from svdctl.config.validation_errors import MOST_FAULTS
from svdctl.data import decode_image, folder_layout, read_npz
from svdctl.data.decode_image import _check_size
from svdctl.data.read_npz import _check
from svdctl.distributed.failure_detector import ANSWER_SECONDS
from svdctl.errors import CheckpointError, DataError, MalformedFileError
from svdctl.train import loop
from svdctl.utils import files
from tests import test_odd_inputs as odd
from tests.checkpoint import test_own as own
from tests.checkpoint import test_records as records
from tests.checkpoint import test_refuse as refuse
from tests.checkpoint import test_work as work
from tests.checkpoint import test_zip_reading as zip_reading
from tests.checkpoint.files import state_dict
from tests.cli import test_current_folder as current_folder
from tests.cli import test_output as output
from tests.distributed import test_losses as losses
from tests.evaluate import test_kept as kept
from tests.faults import test_damage as damage
from tests.faults import test_degenerate_layers as degenerate
from tests.faults import test_hostile_data as hostile_data
from tests.faults import test_hostile_names as hostile_names
from tests.faults import test_malice as malice
from tests.faults import test_numbers as numbers
from tests.faults import test_several_runs as several_runs
from tests.reproduce import test_lost_files as lost
from tests.reproduce import test_store as store
from tests.train import test_resumed_files as resumed
from tests.utils import test_escapes as escapes
from tests.utils import test_files as door

DOCUMENT = " ".join((Path(__file__).parents[2] / "docs/reliability.md").read_text(encoding="utf-8").split())
MIB = 2**20


@pytest.mark.parametrize(
    "words",
    [
        f"within one every {('ten', loop.SAVE_EVERY)[loop.SAVE_EVERY != 600]} minutes",
        f"JSON of at most {files.TEXT_LIMIT // MIB} MiB and TOML of at most {files.TOML_LIMIT // MIB} MiB",
        f"nested at most {files.DEPTH_LIMIT} levels, with keys of at most {files.KEY_LIMIT} signs",
        f"at most {round(decode_image._LARGE / MIB)} million pixels (or ({decode_image._LONGEST} x `data.size`)^2)",
        f"up to {round(decode_image._MOST / 10**6)} million, or {decode_image._OF_WANTED} x `data.size`^2, or ten for",
        f"no side more than {decode_image._LONGEST} times the other",
        f"beyond {read_npz.SMALL // MIB} MiB unfold at most {read_npz._DENSEST} times",
        f"{FLOOR // MIB} MiB of objects, and {PER_BYTE} bytes more for each byte of the file",
        f"nest at most {MAX_DEPTH} deep, weights {WEIGHTS_DEPTH}, names have at most {MAX_NAME:,} characters",
        f"keys whose hashes a file can choose are at most {MAX_NUMBER_KEYS:,}",
        f"at most {tensors._SHARING} times the file and {tensors.SMALL // MIB} MiB",
        f"none of the others for {ANSWER_SECONDS} s",
        f"the first {MOST_FAULTS} and how many more",
        f"of at most {folder_layout.MOST_FOLDERS:,}",
    ],
)
def test_the_document_has_the_numbers_of_the_code(words: str) -> None:
    assert words in DOCUMENT


COUNTS = [
    f"{len(resumed.LOSSES) + len(resumed.IMPOSTORS) + 3} ways | `tests/train/test_resumed_files.py`",
    f"{len(resumed.CHANGES)} changes | `tests/train/test_resumed_files.py`",
    f"{len(resumed.FOREIGN)} lines; a foreign one in 6 places; half of it, none of it, 28 random damages; "
    f"{len(lost.DAMAGES)} in tables",
    f"{len(output.CAUSES)} causes; 7 commands that print, 4 that work, a failure; 2 pipes",
    f"{2 * len(kept.CHANGES) - 1} changed values, some with a checksum made anew; {len(kept.CHANGES) - 1} without one",
    f"network far larger than the weights | {len(damage.PARTS) + len(damage.STATES) + 4} |",
    f"{len(malice.CHECKPOINTS)} forms by 3 commands",
    f"{len(refuse.EVIL)} forms of weights, {len(refuse.ACTING)} names",
    f"| {len(work.WORK)} kinds; many names of one tensor; {len(own.LARGE)} checkpoints",
    f"{len(zip_reading.CHANGES)} changes of headers, {len(zip_reading.NAMES) + 3} of names",
    f"{records.number_of_things()} kinds of objects in {len(records.SAVES)} formats; "
    f"{len(records.NUMBERS) + 3} of arrays",
    f"{len(numbers.CASES)} controls and frames, in the middle",
    f"{2 * len(numbers.CASES)}; 6 | `test_numbers.py`",
    f"{len(numbers.CASES)} trainings; {2 * len(degenerate.KINDS) - 2} layers; 3 networks",
    f"{len(degenerate.DEFECTS)} defects, 3 kinds of frames, {len(degenerate.KINDS)} controls",
    f"| {len(losses.STARTING)} | `tests/distributed/test_losses.py`",
    f"| {len(losses.STOPPED)}; 2 trainings | `tests/distributed/test_losses.py`",
    f"{len(door.NO_FILES)} kinds by {len(door.READERS)} readers and 2 writers",
    f"a sentence with the file | {len(door.JSON)}; {len(door.TOML)} |",
    f"| 2; 2; 7; {len(hostile_data.HEADERS)} of an npz and of CIFAR-C",
    f"{len(escapes.NAMES)} names in 8 formats",
    f"{len(hostile_names.NAMES)} names; 5 calls",
    f"{len(several_runs.FILES)} files, {len(several_runs.BROKEN)} ways",
    f"{len(current_folder.NAMES)} modules; 5 commands",
    f"9 entries by {len(store.ODD)} values",
    f"3 kinds of layers by {len(odd.WRITERS) + len(odd.READERS)} functions; {len(odd.TYPES)} arguments by "
    f"{len(odd.WRONG)} values",
]
"""What the document says was tried, made of what the tests try."""


@pytest.mark.parametrize("words", COUNTS)
def test_the_document_has_the_counts_of_the_tests(words: str) -> None:
    assert words in DOCUMENT


def test_every_file_that_the_document_names_is_there() -> None:
    tests, root = Path(__file__).parents[1], Path(__file__).parents[2]
    named = set(re.findall(r"`([\w/]+\.py)`", DOCUMENT)) - {"difflib.py"}
    # A file of the same row is named without its folder.
    places = (Path(__file__).parent, root, root / "svdctl", *(path for path in tests.iterdir() if path.is_dir()))
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []
    assert len(named) > 50


# JSON and TOML.


def _nested(levels: int) -> str:
    return "[" * levels + "]" * levels


JSON: dict[str, tuple[str, str]] = {
    "levels": (_nested(100), _nested(101)),
    "keys": (json.dumps({"k" * 500: 1}), json.dumps({"k" * 501: 1})),
    "numbers": (str(2**64 - 1), str(2**64)),
    "numbers below 0": (str(-(2**63)), str(-(2**63) - 1)),
    "bytes": ("1".rjust(64 * MIB), "1".rjust(64 * MIB + 1)),
}
TOML: dict[str, tuple[str, str]] = {
    "levels": (f"a = {_nested(99)}", f"a = {_nested(100)}"),
    "keys": (f"{'k' * 500} = 1", f"{'k' * 501} = 1"),
    "numbers": (f"a = {2**64 - 1}", f"a = {2**64}"),
    "bytes": ("a = 1".ljust(MIB, "\n"), "a = 1".ljust(MIB + 1, "\n")),
}


@pytest.mark.parametrize(
    ("read", "within", "beyond"),
    [
        *(pytest.param(files.read_json, *texts, id=f"JSON, {what}") for what, texts in JSON.items()),
        *(pytest.param(files.read_toml, *texts, id=f"TOML, {what}") for what, texts in TOML.items()),
    ],
)
def test_json_and_toml(read: Callable[[Path], Any], within: str, beyond: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(within)
    assert read(tmp_path / "a") is not None
    (tmp_path / "a").write_text(beyond)
    with pytest.raises(MalformedFileError, match=f"^{re.escape(str(tmp_path / 'a'))} "):
        read(tmp_path / "a")


# Pictures and arrays.


@pytest.mark.parametrize(
    ("side", "length", "within", "beyond"),
    [
        (32, 1_000, (4096, 4096), (4096, 4097)),
        (128, 1_000, (8192, 8192), (8192, 8193)),
        (224, 1_000, (8192, 8192), (8192, 8193)),
        (8192, 1_000, (16384, 16384), (16384, 16385)),
        (32, 4_000_000, (5000, 8000), (5000, 8001)),
        (32, 10**9, (100, 6400), (100, 6401)),
        (32, 10**9, (6400, 100), (6401, 100)),
        (2048, 10**9, (1600, 100), (1601, 100)),
        (8192, 10**9, (400, 100), (401, 100)),
    ],
)
def test_pictures(side: int, length: int, within: tuple[int, int], beyond: tuple[int, int]) -> None:
    """By the size in their headers, that of the images that are wanted, and their bytes."""

    def check(size: tuple[int, int]) -> None:
        _check_size(SimpleNamespace(size=size), Path("a.png"), side, resize=True, length=length)  # type: ignore[arg-type]

    check(within)
    with pytest.raises(DataError, match=r"a\.png is \d+ x \d+, (far more|one side more) than"):
        check(beyond)


@pytest.mark.parametrize(
    ("length", "noise", "is_read"),
    [(64 * MIB, 0, True), (64 * MIB + 1, 0, False), (70 * MIB, 400_000, True), (70 * MIB, 200_000, False)],
)
def test_arrays_that_unfold(length: int, noise: int, is_read: bool, tmp_path: Path) -> None:
    """`length` bytes in all, `noise` of them do not shrink."""
    header = malice._header((length - 128,))
    assert len(header) == 128
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header + np.random.default_rng(0).bytes(noise) + bytes(length - 128 - noise))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        call = (archive, archive.getinfo("a.npy"), tmp_path / "a.npz", "a", (tmp_path / "a.npz").stat().st_size)
        if is_read:
            _check(*call)
        else:
            with pytest.raises(DataError, match="its array a unpacks from"):
                _check(*call)


# Weights.


def _deep(levels: int) -> object:
    made: object = 1
    for _ in range(levels):
        made = [made]
    return made


def _named(levels: int) -> object:
    made: object = torch.ones(1)
    for _ in range(levels):
        made = {"a": made, "b": torch.ones(1)}
    return {"w": torch.ones(1), "v": made}


WEIGHTS: dict[str, tuple[object, object, str]] = {
    "levels": ({"model": state_dict(), "args": _deep(99)}, {"model": state_dict(), "args": _deep(100)}, "100 deep"),
    "levels of weights": (_named(32), _named(33), "nests its weights more than 32 deep"),
    "names": ({"w" * 1000: torch.ones(1)}, {"w" * 1001: torch.ones(1)}, "a name of 1,001 characters"),
    "keys": (
        {"model": state_dict(), "args": {(n,): n for n in range(5000)}},
        {"model": state_dict(), "args": {(n,): n for n in range(5001)}},
        "more than 5,000 tuples of numbers",
    ),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_weights(what: str, tmp_path: Path) -> None:
    within, beyond, words = WEIGHTS[what]
    torch.save(within, tmp_path / "a.pt")
    assert read_tensors(tmp_path / "a.pt").tensors
    torch.save(beyond, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=words):
        read_tensors(tmp_path / "a.pt")


def test_tensors_that_share_their_numbers(tmp_path: Path) -> None:
    """Each name of a view counts: those of a file of 1 MB come to at most 64 MB and 16 MiB."""
    shared = torch.zeros(250_000)

    def read(count: int) -> None:
        torch.save({f"w{n}": shared for n in range(count)}, tmp_path / "a.pt")
        read_tensors(tmp_path / "a.pt")

    read(80)
    with pytest.raises(CheckpointError, match=r"its tensors claim 82\.0 MB, it has 1\.0 MB"):
        read(82)
    # One tensor alone may repeat its numbers up to 16 MiB.
    torch.save({"w": torch.zeros(1).expand(4 * MIB)}, tmp_path / "a.pt")
    read_tensors(tmp_path / "a.pt")
    torch.save({"w": torch.zeros(1).expand(4 * MIB + 1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="'w' claims"):
        read_tensors(tmp_path / "a.pt")


def test_the_limit_of_work() -> None:
    limit = WorkLimit(10, "a.pt")
    limit.spend(64 * MIB + 640)
    with pytest.raises(CheckpointError, match=r"^a\.pt asks for far more memory or work"):
        limit.spend(1)
