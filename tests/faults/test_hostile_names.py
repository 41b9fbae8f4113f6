"""Commands on files and layers with hostile names, each in a process: every byte that it prints and writes."""

import csv
import io
import json
import re
import struct
import tomllib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.evaluate.small import CLASSES, SIDE, write_data
from tests.faults.small import Command
from tests.utils.test_escapes import OBEYED

pytestmark = pytest.mark.drawn

NAMES = (
    "\x1b[31mred", "\x9b31m", "\u202egnp", "two\nlines\nsvdctl: proved", "back\rover", "=1+1", "+1", "@SUM(A1)",
    "<script>alert(1)</script>", "a|b", "\\input{x}", "[a](javascript:b)", "$x^", "`code`",
)  # fmt: skip
FORMULA = re.compile(r"[=+\-@\t\r](?![\d.]*(e-?\d+)?$)")


class Hostile(nn.Module):
    """Convolutions and a mean over the pixels, the layers named by `NAMES`."""

    def __init__(self) -> None:
        super().__init__()
        for number, name in enumerate(NAMES):
            self.add_module(name, nn.Conv2d(CLASSES if number else 3, CLASSES, 3, padding=1))

    def forward(self, pixels: Tensor) -> Tensor:
        for layer in self.children():
            pixels = layer(pixels)
        return pixels.mean((2, 3))


def build() -> nn.Module:
    """For `--model tests.faults.test_hostile_names:build`."""
    return Hostile()


def as_file(name: str) -> str:
    return name.replace("/", "_") + ".pth"


def write_files(folder: Path) -> list[Path]:
    """Checkpoints of `Hostile` whose names are hostile too."""
    torch.manual_seed(0)
    folder.mkdir()
    files = [folder / as_file(name) for name in NAMES]
    for file in files:
        torch.save(Hostile().state_dict(), file)
    return files


def said(command: Command, code: int) -> tuple[str, str]:
    """What a command printed on stdout and stderr, as UTF-8 with nothing in it that a terminal obeys."""
    assert command.end().code == code, command.err.read_bytes().decode(errors="replace")
    out, err = (path.read_bytes().decode() for path in (command.out, command.err))
    for text in (out, err):
        assert not OBEYED.search(text), ascii(OBEYED.search(text))
        assert "did not expect" not in text
        # A name that is printed cannot begin a line of its own.
        assert not re.search(r"^(lines|svdctl: proved|over)", text, re.MULTILINE)
    return out, err


def check_csv(text: str) -> None:
    assert not OBEYED.search(text)
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == len(text.splitlines()) > 1
    assert len({len(row) for row in rows}) == 1
    assert not [cell for row in rows for cell in row if FORMULA.match(cell)]


def check_markdown(text: str) -> None:
    assert not OBEYED.search(text)
    outside = re.sub(r"(?<!\\)`[^`\n]*`", "", text)  # of code
    assert not re.search(r"<[A-Za-z/!?]|(?<!\\)\]\(javascript|(?<!\\)[`$]", outside)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert tables
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def check_json(text: str) -> Any:
    assert not OBEYED.search(text)
    return json.loads(text)


def check_png(data: bytes) -> None:
    """A whole picture that says nothing but who drew it."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    texts = [contents for kind, contents in chunks(data) if kind in (b"tEXt", b"zTXt", b"iTXt")]
    assert all(text.startswith(b"Software\0Matplotlib") for text in texts)


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, contents = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + contents) == struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0]
        yield kind, contents
        at += 12 + length


def check_html(text: str) -> None:
    """Names are text: no element and no address is made of one."""
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert not re.search(r"""(href|src)=["']?javascript:""", text)


def check_files(folder: Path, before: set[Path]) -> set[str]:
    """Check each new file by its format; the formats."""
    found = set()
    for path in sorted(set(folder.rglob("*")) - before):
        if path.is_dir():
            continue
        found.add(path.suffix)
        if path.suffix == ".png":
            check_png(path.read_bytes())
        elif path.suffix:
            checks = {".csv": check_csv, ".md": check_markdown, ".json": check_json, ".html": check_html}
            checks[path.suffix](path.read_bytes().decode())
        else:
            assert path.name in (".lock", ".lock-report")
            assert path.read_bytes() == b""
    return found


@pytest.mark.slow
def test_inspect_spectrum(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files")
    given = [file for file in files if "\n" not in file.name and "\r" not in file.name]
    before = set(tmp_path.rglob("*"))

    def inspect(*arguments: object, code: int = 0) -> tuple[str, str]:
        return said(Command(["inspect-spectrum", *arguments, "--input-size", SIDE], tmp_path / "log"), code)

    out, err = inspect(*given, "--plot", tmp_path / "picture.png")
    for name in ("\\x1b[31mred", "\\x9b31m", "\\u202egnp", "two\\nlines\\nsvdctl: proved", "back\\rover"):
        assert sum(line.lstrip().startswith(name) for line in out.splitlines()) >= len(given)
    assert "drawn: " in err
    _, told = inspect(given[0], "--max", "1e-3", code=1)
    opening, first, *faults = told.splitlines()
    assert opening.startswith("svdctl inspect-spectrum: ")
    assert first == f"0 of {len(NAMES)} layers proved to be at most 0.001 (--max)"
    assert len(faults) == len(NAMES)
    assert all(fault.startswith("svdctl: ") and "reaches" in fault for fault in faults)
    out, _ = inspect(*given, "--format", "json")
    told = json.dumps(check_json(out))
    assert all(json.dumps(name) in told for name in NAMES)
    for every in ([], ["--all"]):
        out, _ = inspect(*given, "--format", "csv", *every)
        check_csv(out)
    assert check_files(tmp_path, before | set((tmp_path / "log").rglob("*"))) == {".png"}


@pytest.mark.slow
def test_eval_robust(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files")
    data = write_data(tmp_path / "data.npz")
    before = set(tmp_path.rglob("*"))

    def evaluate(factory: str, *arguments: object, code: int = 0) -> tuple[str, str]:
        given = ["eval-robust", tmp_path / "files", "--dataset", f"npz:{data}", "--model", factory, *arguments]
        return said(Command(given, tmp_path / "log"), code)

    mine = f"{__name__}:build"
    out, err = evaluate(mine, "--metrics", "accuracy", "ece", "certified", "cifar-c", "--corruptions", "fog")
    for name in ("\\x1b[31mred", "\\x9b31m", "\\u202egnp", "two\\nlines\\nsvdctl: proved", "back\\rover"):
        assert name in out
        assert name in err
    out, _ = evaluate(mine, "--metrics", "accuracy", "--format", "json")
    assert {as_file(name) for name in NAMES} == {Path(row["path"]).name for row in check_json(out)["checkpoints"]}
    # Names of layers are what a failure is about.
    _, err = evaluate("tests.evaluate.small:build", "--metrics", "accuracy", "--out-dir", tmp_path / "out", code=2)
    assert "\\x1b[31mred" in err
    assert sum("FAILED" in line for line in err.splitlines()) == len(files)
    new = before | set((tmp_path / "log").rglob("*"))
    assert check_files(tmp_path, new) == {".png", ".csv", ".md", ".json", ".html", ""}


@pytest.mark.slow
def test_train(tmp_path: Path) -> None:
    """Classes of a data set, and the folder that it is in and that of the runs, have hostile names."""
    data = tmp_path / "\x9b31m<b>$x$"
    for part in ("train", "test"):
        for number, name in enumerate(NAMES):
            folder = data / part / name.replace("/", "_")
            folder.mkdir(parents=True)
            for count in range(4):
                Image.new("RGB", (SIDE, SIDE), (16 * number, 60 * count, 0)).save(folder / f"{count}.png")
    given = ["train", "--dataset", f"folder:{data}", "--preset", "quickstart", "--epochs", 1, "--batch-size", 16]
    sets = ("model.width=1", "layer.rank=6", f"data.size={SIDE}", "log.every_steps=1")
    given += ["--out-dir", tmp_path / "\u202eruns", *(word for text in sets for word in ("--set", text))]
    out, err = said(Command(given, tmp_path / "log"), 0)
    assert "\\u202eruns" in out + err
    (run,) = (tmp_path / "\u202eruns").iterdir()
    for path in run.iterdir():
        if path.suffix == ".png":
            check_png(path.read_bytes())
        elif path.suffix in (".toml", ".jsonl", ".json", ".md"):
            assert not OBEYED.search(path.read_bytes().decode()), path
    assert tomllib.loads((run / "config.toml").read_text())["data"]["path"] == str(data)


@pytest.mark.slow
def test_reproduce(tmp_path: Path) -> None:
    """The title, the labels of rows and the folder of runs of a table have hostile names."""
    labels = [name for name in NAMES if name.isprintable()]
    rows = [f"[[rows]]\nname = {json.dumps(f'row-{n}')}\nlabel = {json.dumps(name)}\ngroup = \"none\"\n"
            'preset = "wrn-cifar10"\n' for n, name in enumerate(labels)]  # fmt: skip
    sets = ["data.kind=digits", "augment.flip=false", "model.depth=10", "model.width=1", "max_steps=1", "epochs=1"]
    head = f'title = "$x$ <script>"\ncolumns = ["compression"]\nset = {json.dumps(sets)}\n'
    (tmp_path / "tiny.toml").write_text(head + "".join(rows))
    runs = tmp_path / "\u202eruns"
    given = ["reproduce", tmp_path / "tiny.toml", "--columns", "static", "--out-dir", runs]
    out, err = said(Command(given, tmp_path / "log"), 0)
    assert "\\u202eruns" in out + err
    written = [path for path in runs.rglob("*") if path.is_file()]
    assert {".md", ".tex", ".json"} <= {path.suffix for path in written}
    for path in written:
        if path.suffix == ".png":
            check_png(path.read_bytes())
        else:
            assert not OBEYED.search(path.read_bytes().decode()), path
        if path.suffix == ".md":
            check_markdown(path.read_bytes().decode())
