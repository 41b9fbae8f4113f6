"""Which files are checkpoints, what they are called, and where their results go."""

import subprocess
from pathlib import Path

import pytest

from svdctl.cli.evaluation_flags import resolve_evaluation
from svdctl.evaluate.find_checkpoints import Discovery, discover


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def find(*paths: Path, **flags: object) -> Discovery:
    return discover(resolve_evaluation({"checkpoints": paths, **flags}).config)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for run in ("a", "b"):
        touch(*(tmp_path / "runs" / run / name for name in ("config.toml", "last.pt", "epoch-3.pt")))
    touch(tmp_path / "runs/a/best.pt", tmp_path / "runs/deep/er/net.pth", tmp_path / "runs/notes.txt")
    touch(tmp_path / "runs/a/eval-last/unfinished/attack-1.pt", tmp_path / "runs/.hidden/x.pt")
    return tmp_path / "runs"


def test_of_a_run_folder_last_pt_and_elsewhere_every_file(tree: Path) -> None:
    found = find(tree)
    assert {item.name: item.path for item in found.checkpoints} == {
        "a/last": tree / "a/last.pt",
        "b/last": tree / "b/last.pt",
        "net": tree / "deep/er/net.pth",
    }
    assert not found.faults


@pytest.mark.parametrize(
    ("which", "names", "faults"),
    [
        ("best", {"a/best", "net"}, ["b has no best.pt; it has: epoch-3, last"]),
        ("all", {"a/best", "a/last", "a/epoch-3", "b/last", "b/epoch-3", "net"}, []),
    ],
)
def test_which(tree: Path, which: str, names: set[str], faults: list[str]) -> None:
    found = find(tree, which=which)
    assert {item.name for item in found.checkpoints} == names
    assert len(found.faults) == len(faults)
    for (_, error), words in zip(found.faults, faults, strict=True):
        assert words in str(error)


def test_files_and_run_folders_are_taken_as_they_are_given_and_once(tree: Path) -> None:
    found = find(tree / "b", tree / "b/last.pt", tree / "a/epoch-3.pt", tree / "deep/../b")
    assert [item.path for item in found.checkpoints] == [tree / "b/last.pt", tree / "a/epoch-3.pt"]


def test_names_tell_checkpoints_apart(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("x/run/last.pt", "y/run/last.pt", "z/net.pt", "z/net.pth")))
    found = find(tmp_path)
    assert {item.name for item in found.checkpoints} == {"x/run/last", "y/run/last", "net.pt", "net.pth"}
    assert len({item.results for item in found.checkpoints}) == 4


def test_results_lie_beside_the_checkpoint_or_in_one_folder(tree: Path, tmp_path: Path) -> None:
    beside = {item.name: item.results for item in find(tree).checkpoints}
    assert beside["a/last"] == tree / "a/eval-last"
    assert beside["net"] == tree / "deep/er/eval-net"
    apart = {item.name: item.results for item in find(tree, out_dir=tmp_path / "out").checkpoints}
    assert apart["a/last"] == tmp_path / "out/a-last"
    assert apart["net"] == tmp_path / "out/net"


def test_the_report_goes_to_out_dir_else_to_the_one_folder_given_else_to_the_current_one(
    tree: Path, tmp_path: Path
) -> None:
    def place(*paths: Path, **flags: object) -> tuple[Path, bool]:
        found = find(*paths, **flags)
        return found.report, found.all_below

    assert place(tree) == (tree, True)
    assert place(tree / "a") == (tree / "a", True)
    assert place(tree / "a", tree / "b") == (Path(), False)
    assert place(tree / "a/last.pt") == (Path(), False)
    assert place(tree / "a/last.pt", out_dir=tmp_path / "out") == (tmp_path / "out", True)
    assert place(tree, out_dir=tmp_path / "out") == (tmp_path / "out", True)


def test_empty_and_missing_folders_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = find(tmp_path / "empty", tmp_path / "none")
    assert not found.checkpoints
    assert [str(error).partition(" ")[0] for _, error in found.faults] == ["there", "there"]
    assert "in or below" in str(found.faults[0][1])
    assert "no checkpoint or folder" in str(found.faults[1][1])


def test_a_path_that_the_system_refuses_is_a_sentence_and_others_are_found(tree: Path) -> None:
    long = Path("a" * 300)
    found = find(long, tree / "b")
    assert [item.name for item in found.checkpoints] == ["b/last"]
    assert "cannot be read (File name too long)" in str(found.faults[0][1])
    alone = find(long)
    assert (alone.report, alone.all_below, len(alone.faults)) == (Path(), False, 1)


def test_a_checkpoint_below_very_many_folders_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a/b/z.pt", tmp_path / "a/c/d/y.pt", tmp_path / "a/x.pt")
    assert [path.path.stem for path in find(tmp_path).checkpoints] == ["x", "z", "y"]
    monkeypatch.chdir(tmp_path)
    for _ in range(1_500):
        Path("d").mkdir()
        monkeypatch.chdir("d")
    touch(Path("w.pt"))
    monkeypatch.chdir(tmp_path)
    assert [path.path.stem for path in find(Path("a"), Path("d")).checkpoints] == ["x", "z", "y", "w"]
    subprocess.run(["rm", "-r", "d"], check=True)
