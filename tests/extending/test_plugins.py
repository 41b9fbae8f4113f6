"""Plugins are imported when a user names them, handed to child processes, and never because a checkpoint says so."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from svdctl.errors import UsageError
from svdctl.plugins import import_file, load_plugins, missing_plugins, plugin_name
from tests.several import svdctl

HERE = Path(__file__).parent
SMALL = [
    *("--preset", "quickstart", "--dataset", "stripes", "--max-steps", "3", "--batch-size", "16"),
    *("--set", "model.width=1", "--set", "layer.kind=standard", "--set", "control.kind=none"),
    *("--set", "augment.crop=0"),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a plugin that says when it is imported."""
    code = (HERE / "stripes_data.py").read_text()
    (tmp_path / "stripes.py").write_text(code + "\nimport sys\nprint('IMPORTED', __name__, file=sys.stderr)\n")
    return tmp_path


@pytest.mark.slow
def test_a_file_is_trained_with_evaluated_and_resumed_with_only_where_it_is_named(place: Path) -> None:
    [trained] = svdctl(place, ("train", "--plugin", "./stripes.py", *SMALL, "--name", "a"))
    assert trained.code == 0, trained.stderr
    assert "IMPORTED svdctl_plugin_stripes" in trained.stderr
    (run,) = (place / "runs").iterdir()
    assert json.dumps(str(place / "stripes.py")) in (run / "config.toml").read_text()

    evaluate, resume = ("eval-robust", run, "--metrics", "accuracy", "--format", "json"), ("train", "--resume", run)
    named = ("--plugin", "stripes.py")
    *refused, evaluated, resumed = svdctl(place, evaluate, resume, (*evaluate, *named), (*resume, *named))
    for one in refused:
        assert one.code == 2
        assert f"--plugin {place / 'stripes.py'}" in one.stderr
        assert "IMPORTED" not in one.stderr
    assert (evaluated.code, resumed.code) == (0, 0), evaluated.stderr + resumed.stderr
    assert "IMPORTED" in evaluated.stderr

    # A run folder's own configuration, named by the user, is a grant.
    [again] = svdctl(place, ("train", "--preset", run / "config.toml", "--dry-run"))
    assert again.code == 0, again.stderr
    assert "IMPORTED" in again.stderr


@pytest.mark.slow
def test_workers_of_reproduce_get_the_plugins(place: Path) -> None:
    sets = [word for word in SMALL if "=" in word]
    table = (
        f'title = "t"\nplugins = ["stripes.py"]\ncolumns = ["accuracy"]\n'
        f"set = {json.dumps(['data.kind=stripes', 'max_steps=3', 'batch_size=16', *sets])}\n"
        '[[rows]]\nname = "one"\npreset = "quickstart"\n'
    )
    (place / "table.toml").write_text(table)
    [done] = svdctl(place, ("reproduce", "table.toml", "--jobs", "2"))
    assert done.code == 0, done.stderr + done.stdout
    assert "one" in done.stdout


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ("./nowhere.py", "there is no Python file"),
        ("nowhere", "there is no module 'nowhere'"),
        ("no where", "package.module or ./file.py"),
        ("./broken.py", "failed: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_imported_is_a_sentence(tmp_path: Path, plugin: str, words: str) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match=words):
        load_plugins([plugin_name(plugin, tmp_path)])
    assert "svdctl_plugin_broken" not in sys.modules


def test_a_file_has_one_name_and_its_folder_is_not_searched(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_name.py").write_text("import sys\npaths = list(sys.path)\n")
    first = import_file(tmp_path / "a/same_name.py")
    assert import_file(tmp_path / "a/../a/same_name.py") is first
    assert str(tmp_path / "a") not in first.paths
    with pytest.raises(UsageError, match="have one name"):
        import_file(tmp_path / "b/same_name.py")


def test_a_module_beside_the_command_hides_no_installed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(HERE / "pooled_net.py", tmp_path / "pooled_net_beside.py")
    (tmp_path / "json.py").write_text("raise RuntimeError\n")
    text = (tmp_path / "pooled_net_beside.py").read_text().replace('"pooled"', '"pooled-beside"')
    (tmp_path / "pooled_net_beside.py").write_text("import json\n" + text)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_plugins(["pooled_net_beside", "pooled_net_beside"]) == ("pooled_net_beside",)
    assert sys.path == before
    assert missing_plugins(["pooled_net_beside", "elsewhere"]) == ["elsewhere"]
