"""`svdctl eval-robust` gives the recipe exactly what the flags say, and shows what it returns."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock, patch

import pytest
from rich.console import Console

import svdctl.evaluate
from svdctl.cli.evaluation_flags import resolve_evaluation
from svdctl.cli.evaluation_progress import EvaluationDisplay
from svdctl.cli.progress_display import amount
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.errors import CheckpointError, DataError, UsageError
from svdctl.evaluate.find_checkpoints import discover, require_any_existing
from svdctl.evaluate.measure_checkpoint import Failure, FinishedMetric
from svdctl.registry import DATA, METRICS
from tests.cli.test_train_command import svdctl_exits


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mock]:
    """The recipe, replaced whole, in a folder in which what the tests name is there."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "chk", "a", "b", "x"):
        (tmp_path / name).mkdir()
    fake = Mock(spec=["run", "show_corruptions"])
    fake.run.return_value = Mock(evaluations=(), failures=(), report=None)
    module = ModuleType("svdctl.evaluate.runner")
    module.__dict__.update(run=fake.run, show_corruptions=fake.show_corruptions)
    with (
        patch.dict(sys.modules, {"svdctl.evaluate.runner": module}),
        patch.object(svdctl.evaluate, "runner", module, create=True),
    ):
        yield fake


def config_for(recipe: Mock, *arguments: str) -> EvaluateConfig:
    assert svdctl_exits("eval-robust", *arguments) == 0
    (config,), named = recipe.run.call_args
    assert named.keys() == {"reporter"}
    assert isinstance(named["reporter"], EvaluationDisplay)
    return config


def test_alone_it_measures_everything_in_the_folder_of_runs(recipe: Mock) -> None:
    config = config_for(recipe)
    assert config == resolve_evaluation({}).config
    assert config.checkpoints == (Path("runs"),)
    assert config.metrics == METRICS.builtin_kinds()
    data = DATA.get("digits").config()
    corruptions, attack = (METRICS.get(kind).settings(config, data) for kind in ("cifar-c", "autoattacks"))
    assert corruptions.names is None  # what the checkpoint is decides
    assert (attack.norm, attack.eps, attack.attacks) == ("L2", 0.5, "standard")


def test_the_papers_command_is_understood(recipe: Mock) -> None:
    line = (
        "--checkpoints-dir chk --batch_size 64 --metrics ece autoattacks --cifar_c_root C --dataset-root D "
        "--cifar-c-res R --autoattacks-res A --gouk-transforms"
    )
    config = config_for(recipe, *line.split())
    assert config.checkpoints == (Path("chk"),)
    assert config.batch_size == 64
    assert config.metrics == ("ece", "autoattacks")
    assert (config.settings["cifar-c"].root, config.dataset_root) == (Path("C"), Path("D"))
    assert (config.cifar_c_res, config.autoattacks_res) == (Path("R"), Path("A"))
    assert config.network.gouk_transforms


@pytest.mark.parametrize(
    "line",
    [
        "a b --metrics cifar-c ece --severities 1 5 --corruptions fog Glass-Blur natural",
        "--metrics ece cifar_c --severities 1 5 --corruptions fog glass_blur natural a b",
        "--metrics=ece,cifar-c a --severities 1,5 b --corruptions fog,glass_blur,natural",
        "--metrics ece --metrics cifar-c --severities 1 --severities 5 a b --corruptions fog glass_blur "
        "--corruptions natural",
    ],
)
def test_several_values_in_any_spelling(recipe: Mock, line: str) -> None:
    config = config_for(recipe, *line.split())
    assert config.checkpoints == (Path("a"), Path("b"))
    assert config.metrics == ("ece", "cifar-c")
    assert config.settings["cifar-c"].severities == (1, 5)
    assert config.settings["cifar-c"].names == ("fog", "glass_blur", "natural")


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("--norm Linf --eps 0.03", "settings.autoattacks.eps", 0.03),
        ("--norm Linf --eps 8/255", "settings.autoattacks.eps", 8 / 255),
        ("--set settings.autoattacks.eps=4/255", "settings.autoattacks.eps", 4 / 255),
        ("--radii 36/255 72 runs", "settings.certified.radii", (36.0, 72.0)),
        ("--norm Linf", "settings.autoattacks.norm", "Linf"),
        ("--attacks apgd-ce square", "settings.autoattacks.attacks", ("apgd-ce", "square")),
        ("--attacks plus", "settings.autoattacks.attacks", "plus"),
        ("--protocol paper", "settings.autoattacks.protocol", "paper"),
        ("--examples 1000", "settings.autoattacks.examples", 1000),
        ("--examples all", "settings.autoattacks.examples", "all"),
        ("--metrics autoattacks --shard 3/8", "shard.index", 3),
        ("--metrics autoattacks --shard 3/8", "shard.count", 8),
        ("--merge-shards", "metrics", ("autoattacks",)),
        ("--model torchvision:resnet18 --mean 0.5 0.4 0.3 --std 1 1 1", "network.mean", (0.5, 0.4, 0.3)),
        ("--model mypkg.nets:build --key ema", "network.key", "ema"),
        ("--dataset folder:pics", "data.path", Path("pics")),
        ("--dataset folder:pics --set data.size=64", "data.size", 64),
        ("--dataset cifar100 --dataset-root D", "dataset_root", Path("D")),
        ("--corruptions benchmark", "settings.cifar-c.names.14", "jpeg_compression"),
        ("--corruptions all", "settings.cifar-c.names.18", "saturate"),
        ("--radii 36 72.5", "settings.certified.radii", (36.0, 72.5)),
        ("--which all", "which", "all"),
        ("--seed 7", "seed", 7),
        ("--precision bf16-mixed --accelerator cpu", "precision", "bf16-mixed"),
        ("--force --out-dir out", "force", True),
        ("--force --out-dir out", "out_dir", Path("out")),
    ],
)
def test_flags_reach_their_fields(recipe: Mock, line: str, path: str, value: Any) -> None:
    found: Any = config_for(recipe, *line.split())
    for part in path.split("."):
        key = int(part) if part.isdigit() else part
        found = found[key] if isinstance(found, dict | tuple) else getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("line", "is_told"),
    [
        ("--norm Linf", True),
        ("--norm Linf --eps 0.1001", True),
        ("--norm Linf --eps 0.1", False),
        ("--norm Linf --eps 8/255", False),
        ("--norm L2 --eps 3", False),
        ("--norm Linf --protocol paper", False),
        ("--norm Linf --metrics accuracy", False),
    ],
)
def test_a_large_linf_ball_is_told(recipe: Mock, capsys: pytest.CaptureFixture[str], line: str, is_told: bool) -> None:
    config_for(recipe, *line.split())
    assert ("changes every pixel by up to" in capsys.readouterr().err) is is_told


@pytest.mark.parametrize(
    ("line", "is_told"),
    [
        ("--eps 8", True),
        ("--norm Linf --eps 8", True),
        ("--eps 1", True),
        ("--eps 8/255", False),
        ("--norm L1 --eps 8", False),
        ("--eps 8 --protocol paper", False),
    ],
)
def test_an_eps_that_may_be_meant_in_255ths_has_one_notice(
    recipe: Mock, capsys: pytest.CaptureFixture[str], line: str, is_told: bool
) -> None:
    config_for(recipe, *line.split())
    told = " ".join(capsys.readouterr().err.split())
    assert ("pixels are in [0, 1]" in told) is is_told
    assert ("write" in told) is is_told
    assert "changes every pixel" not in told


def test_examples_are_a_few_of_the_digits_and_all_of_other_data() -> None:
    def attack(kind: str, **flags: Any) -> Any:
        data = DATA.get(kind).config()
        return METRICS.get("autoattacks").settings(resolve_evaluation(flags).config, data)

    assert attack("digits").examples == 32
    assert attack("cifar10").examples is None
    assert attack("digits", examples="all").examples is None
    settings = attack("cifar10", examples="9", seed=4, batch_size=3)
    assert (settings.examples, settings.seed, settings.batch_size) == (9, 4, 3)


def test_all_faults_come_together_before_the_recipe(recipe: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "--metrics ece autoatack --dataset cifar --corruptions fgo --severities 6 --norm L3 --eps -1 --attacks apgd "
        "--shard 9/8 --format xml --which first --mean 1 1 1 --set x.y=1 --examples 0"
    )
    assert svdctl_exits("eval-robust", *line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert all(text.startswith("svdctl: ") for text in lines)
    wanted = [
        *("--metrics autoatack", "--dataset cifar", "'fgo'; did you mean fog", "--severities", "--norm", "--eps"),
        *("no attack apgd;", "--shard 9/8", "--format xml", "--which", "x: there is no such key", "--examples 0"),
    ]
    for words in wanted:
        assert sum(words in text for text in lines) == 1, words
    recipe.run.assert_not_called()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--model nets", "module:factory"),
        ("--model a:b --dec-rank 8", "--dec-rank describes one of the paper's networks"),
        ("--mean 0.5 0.5 0.5", "--mean and --std belong together"),
        ("--dataset npz", "--dataset npz needs a path"),
        ("--dataset digits --dataset-root D", "--dataset-root is where CIFAR lies"),
        ("--metric ece", "did you mean --metrics"),
        ("--batch-size 0", "--batch-size"),
        ("--eps 1/0", "--eps"),
        ("--radii 8/128", "--radii 8/128: radii are in 255ths of a pixel's range; write 36 or 36/255"),
    ],
)
def test_wrong_usage_is_a_sentence(recipe: Mock, capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    assert svdctl_exits("eval-robust", *line.split()) == 2
    assert words in capsys.readouterr().err
    recipe.run.assert_not_called()


@pytest.mark.parametrize(
    ("given", "sentences"),
    [
        ([], ["there is no folder runs here to be read; give checkpoints, run folders or folders above them"]),
        (["no/a.pt", "no"], [f"there is no checkpoint or folder {name}; give files, run folders or folders above them"
                             for name in ("no/a.pt", "no")]),
    ],
)  # fmt: skip
def test_paths_of_which_none_exists_are_sentences_before_the_recipe(
    recipe: Mock, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], sentences: list[str]
) -> None:
    (tmp_path / "runs").rmdir()
    assert svdctl_exits("eval-robust", *given) == 2
    assert capsys.readouterr().err.splitlines() == [f"svdctl: {sentence}" for sentence in sentences]
    recipe.run.assert_not_called()


def test_paths_of_which_some_exist_are_the_recipes_affair(recipe: Mock) -> None:
    assert config_for(recipe, "a", "no").checkpoints == (Path("a"), Path("no"))


def test_what_is_said_before_the_recipe_is_what_the_recipe_says(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "data.npz").touch()
    for given in (["no", "no/a.pt"], ["~/no"], ["data.npz/no"], ["link"], ["runs"]):
        config = EvaluateConfig(checkpoints=tuple(tmp_path / name if name[0] != "~" else Path(name) for name in given))
        found = discover(config)
        with pytest.raises(UsageError) as caught:
            require_any_existing(config)
        assert list(caught.value.faults) == [str(error) for _, error in found.faults]


def test_faults_come_without_torch() -> None:
    code = (
        "import sys\nfrom svdctl.cli.app import main\n"
        "sys.argv = ['svdctl', 'eval-robust', 'x', '--metrics', 'ece', '--eps', '-1']\n"
        "try: main()\nexcept SystemExit as e: assert e.code == 2\n"
        "found = [m for m in ('torch', 'numpy', 'matplotlib', 'PIL') if m in sys.modules]\nassert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


MISSING = Failure("a/last", "cifar-c", DataError("fog.npy is missing; add it"))
DAMAGED = Failure("b", None, CheckpointError("b is damaged; use another"))
FULL = Failure("c", None, OSError(28, "full"))
MEASURED = Mock(records={"ece": None}, failures=[MISSING])
ATTACKED = Mock(records={}, failures=[])
"""A checkpoint of which a shard was attacked."""
NOT_MEASURED = Mock(records={}, failures=[MISSING])


@pytest.mark.parametrize(
    ("evaluations", "failures", "code"),
    [
        ((), (MISSING, DAMAGED), 2),
        ((NOT_MEASURED,), (MISSING, DAMAGED), 2),
        ((MEASURED,), (MISSING, DAMAGED), 1),
        ((MEASURED,), (DAMAGED,), 1),
        ((ATTACKED,), (DAMAGED,), 1),
        ((), (MISSING, FULL), 1),
        ((), (FULL,), 1),
    ],
)
def test_exit_code_2_where_wrong_input_kept_all_from_being_measured_else_1(
    recipe: Mock, evaluations: tuple[Mock, ...], failures: tuple[Failure, ...], code: int
) -> None:
    recipe.run.return_value = Mock(evaluations=evaluations, report=None, failures=failures)
    # JSON, so that no table is made of these stand-ins.
    with patch("svdctl.cli.evaluation_progress.result_json", return_value="{}"):
        assert svdctl_exits("eval-robust", "x", "--format", "json") == code


def test_failures_end_with_a_list(recipe: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.run.return_value = Mock(evaluations=(), report=None, failures=(MISSING, DAMAGED))
    assert svdctl_exits("eval-robust", "x") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    first, _, *rest = shown.err.splitlines()
    assert first == f"svdctl eval-robust: {', '.join(METRICS.builtin_kinds())} of x"
    assert rest == [
        "svdctl: 2 of what was asked could not be measured:",
        "  a/last, cifar-c: fog.npy is missing; add it",
        "  b: b is damaged; use another",
    ]


def test_a_lone_checkpoint_that_fails_is_its_own_sentence(recipe: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    failure = Failure("b", None, CheckpointError("b is damaged; use another"))
    recipe.run.return_value = Mock(evaluations=(), report=None, failures=(failure,))
    assert svdctl_exits("eval-robust", "b") == 2
    assert capsys.readouterr().err.splitlines()[2:] == ["svdctl: b is damaged; use another"]


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (UsageError("no"), 2), (OSError(28, "full"), 1), (SystemExit(0), 1)]
)
def test_the_terminal_is_given_back_however_it_ends(
    recipe: Mock, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    recipe.run.side_effect = error
    with patch("svdctl.cli.evaluation_progress.EvaluationDisplay") as choose:
        assert svdctl_exits("eval-robust", "x") == code
    choose.return_value.close.assert_called_once_with()
    assert "Traceback" not in capsys.readouterr().err


def test_the_sheet_of_corruptions_needs_no_checkpoint(recipe: Mock, tmp_path: Path) -> None:
    recipe.show_corruptions.return_value = tmp_path / "x.png"
    assert svdctl_exits("eval-robust", "--show-corruptions", str(tmp_path / "x.png")) == 0
    config, path = recipe.show_corruptions.call_args.args
    assert path == tmp_path / "x.png"
    assert isinstance(config, EvaluateConfig)
    recipe.run.assert_not_called()


def an_evaluation(reporter: EvaluationDisplay) -> None:
    reporter.say("2 checkpoints: accuracy")
    reporter.say("a/last  ->  runs/a/eval-last")
    reporter.begin("accuracy")
    reporter.advance(1, 4, "test images")
    reporter.finish(FinishedMetric("accuracy", "97.5%", ""))
    reporter.begin("ece")
    reporter.finish(FinishedMetric("ece", "ECE 1%", "kept"))
    reporter.notice("a remark")
    reporter.finish(Failure("b", None, CheckpointError("b is damaged")))
    reporter.close()
    reporter.close()


def test_progress_goes_to_stderr_in_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    an_evaluation(EvaluationDisplay())
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "\x1b" not in shown.err
    for part in ("2 checkpoints: accuracy", "a/last  ->  runs/a/eval-last", "97.5%", "(kept)", "note: a remark",
                 "FAILED b: b is damaged"):  # fmt: skip
        assert part in shown.err


def test_lines_of_figures_end_at_words_on_a_terminal() -> None:
    reporter, screen = EvaluationDisplay(live=True), io.StringIO()
    reporter.console = Console(file=screen, width=60, highlight=False)
    text = "ECE 15.96%, NLL 1.735, Brier 0.731; ECE after temperature scaling (T = 0.465): 15.74%"
    reporter.finish(FinishedMetric("ece", text, "kept"))
    lines = screen.getvalue().splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 60
    assert " ".join(lines).split() == f"ece {text} (kept)".split()


@pytest.mark.parametrize("live", [False, True])
def test_no_name_gives_the_terminal_a_code(live: bool, capsys: pytest.CaptureFixture[str]) -> None:
    reporter, screen = EvaluationDisplay(live=live), io.StringIO()
    if live:
        reporter.console = Console(file=screen, width=110, highlight=False)
    odd = "a\x1b[31m\x07\n[bold]b"
    reporter.say(f"1 checkpoint: {odd}")
    reporter.say(f"{odd}  ->  {odd}")
    reporter.begin("accuracy")
    reporter.advance(1, 4, odd)
    reporter.finish(FinishedMetric("accuracy", odd, ""))
    reporter.notice(odd)
    reporter.finish(Failure(odd, "accuracy", CheckpointError(odd)))
    reporter.close()
    shown = capsys.readouterr().err + screen.getvalue()
    assert "\x1b[31m" not in shown
    assert "\x07" not in shown
    assert shown.count("a\\x1b[31m\\x07\\n[bold]b") >= 6


def test_a_line_of_progress_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with patch("svdctl.cli.progress_display.time.monotonic") as clock:
        clock.return_value = 0.0
        reporter = EvaluationDisplay()
        reporter.begin("cifar-c")
        for second in range(1, 26):
            clock.return_value = float(second)
            reporter.advance(second, 91, f"fog, severity {second}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [["cifar-c", "10/91"], ["cifar-c", "20/91"]]


def test_the_live_bar_is_drawn_and_taken_away() -> None:
    reporter, screen = EvaluationDisplay(live=True), io.StringIO()
    reporter.console = Console(file=screen, force_terminal=True, width=110, highlight=False)
    an_evaluation(reporter)
    shown = screen.getvalue()
    for part in ("\x1b[", "accuracy", "97.5%", "FAILED b"):
        assert part in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_stderr_chooses(terminal: bool) -> None:
    with patch("svdctl.cli.progress_display.sys.stderr") as stderr:
        stderr.isatty.return_value = terminal
        assert EvaluationDisplay().live is terminal


def test_bytes_are_megabytes() -> None:
    assert amount(3, 19) == "3/19"
    assert amount(1_500_000_000, 2_918_471_680) == "1,500/2,918 MB"


def test_the_whole_thing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags, recipe, files and output together, on a network trained in a second."""
    from tests.evaluate.small import write_data, write_run

    data = write_data(tmp_path / "data.npz")
    write_run(tmp_path / "runs/a", data)
    (tmp_path / "runs/b.pth").write_text("<html>")
    arguments = [
        *(str(tmp_path / "runs"), "--metrics", *METRICS.builtin_kinds(), "--corruptions", "contrast", "fog"),
        *("--severities", "1"),
        *("--attacks", "apgd-ce", "--examples", "4"),
    ]
    assert svdctl_exits("eval-robust", *arguments) == 1
    shown = capsys.readouterr()
    assert "b: " in shown.err.splitlines()[-1]
    header, row = (line for line in shown.out.splitlines() if line.startswith(("checkpoint", "a/last ")))
    assert header.split("  ")[0] == "checkpoint"
    assert len(row.split()) == 10
    assert "report.md" in shown.out
    assert (tmp_path / "runs/report.md").is_file()

    assert svdctl_exits("eval-robust", *arguments, "--format", "json") == 1
    contents = json.loads(capsys.readouterr().out)
    (checkpoint,) = contents["checkpoints"]
    assert list(checkpoint["metrics"]) == list(METRICS.builtin_kinds())
    assert checkpoint["metrics"]["autoattacks"]["protocol"]["count"] == 4
    assert contents["failures"][0]["where"] == "b"
    assert all(Path(file).is_file() for file in checkpoint["files"])


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("settings.accuracy.x=1", "settings.accuracy.x: there is no such key (settings.accuracy has none)"),
        ("attack.norm=L1", "attack.norm: there is no such key; did you mean settings.autoattacks.norm?"),
        ('corruptions.names=["fog"]', "corruptions.names: there is no such key; did you mean settings.cifar-c.names?"),
        ("settings.autoattacks.nrm=L1", "settings.autoattacks.nrm: there is no such key; did you mean "
         "settings.autoattacks.norm? (known: norm, eps, attacks, batch_size, seed, examples, protocol)"),
        ("radii=[3]", "radii: there is no such key; did you mean settings.certified.radii? (known: checkpoints, "),
    ],
)  # fmt: skip
def test_an_unknown_key_is_named_whole_with_the_key_of_now(assignment: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_evaluation({"set": [assignment]})
    (fault,) = caught.value.faults
    assert fault.startswith(sentence)


def test_help_keeps_the_facts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    shown = ""
    for command in ("eval-robust", "train"):
        assert svdctl_exits(command, "--help") == 0
        shown += " ".join(capsys.readouterr().out.split())
    for words in (
        "Number of test images that are attacked, drawn by the seed. [default: 32 of the digits, all of other data]",
        "pixels or, for comparison only and as in the paper's code, normalised images (paper). [default: pixels]",
        "Folder of the published CIFAR-C files, downloaded to it when missing. Other images than CIFAR are corrupted "
        "by svdctl's own functions, unless this is given. [default: below the folder of CIFAR]",
        "with proofs that it holds (certified), or as in the paper's code, without proof, for comparisons only "
        "(paper).",
    ):
        assert words in shown


@pytest.mark.parametrize("width", [60, 80, 120, 160, None])
def test_a_wide_table_goes_on_below_and_loses_no_figure(width: int | None) -> None:
    from svdctl.cli.evaluation_progress import _in_parts
    from svdctl.utils.table import Cell, Column, Table

    headers = ["accuracy", "ECE", "CIFAR-C, benchmark (15)", *(f"cert. {radius}" for radius in (36, 72, 108, 255))]
    columns = [Column("checkpoint", "checkpoint", "left", elastic=True), *(Column(name, name) for name in headers)]
    names = [f"wrn-16-10-cifar100-clip-{number}-seed3407/last" for number in range(3)]
    figures = [[f"{10 * row + place}.25%" for place in range(len(headers))] for row in range(3)]
    rows = [[Cell(name), *map(Cell, own)] for name, own in zip(names, figures, strict=True)]
    rows[1][2] = Cell("11.25%", notes=(1,))
    lines = _in_parts(Table(columns, rows, notes=["Measured otherwise."]), width)
    text = "\n".join(lines)
    assert all(len(line) <= (width or 1000) for line in lines)
    for name in (*headers, *(figure for own in figures for figure in own)):
        assert name in text
    assert lines[-1] == "[1] Measured otherwise."
    assert sum("checkpoint  " in line for line in lines) == {60: 3, 80: 2, 120: 1, 160: 1, None: 1}[width]


def test_a_mark_of_all_figures_is_said_once_on_a_terminal() -> None:
    from svdctl.cli.evaluation_progress import _in_parts
    from svdctl.utils.table import Cell, Column, Table

    columns = [Column("checkpoint", "checkpoint", "left"), Column("accuracy", "accuracy"), Column("ECE", "ECE")]
    table = Table(columns, [[Cell("a"), Cell("90.00%", mark="kept"), Cell("-")]])
    assert _in_parts(table, 80)[-1] == "all figures: kept"
    assert "(kept)" not in "".join(_in_parts(table, 80))
    assert "(kept)" in "".join(_in_parts(table, None))


@pytest.mark.parametrize("names", [("run-20261127/last",), ("a/last", "b/last"), ("x" * 90, "run/best" * 9)])
def test_figures_of_one_or_two_checkpoints_stand_below_each_other(names: tuple[str, ...]) -> None:
    from svdctl.cli.evaluation_progress import _in_parts
    from svdctl.utils.table import Cell, Column, Table

    figures = ["accuracy", "corrupted, benchmark (15)", "apgd-ce + apgd-t L2 0.2", "certified 36/255"]
    columns = [Column("checkpoint", "checkpoint", "left", elastic=True), *(Column(text, text) for text in figures)]
    rows = [[Cell(name), *(Cell(f"{number}{at}.25%") for at in range(4))] for number, name in enumerate(names)]
    rows[-1][2] = Cell("77.00%", notes=(1,))
    lines = _in_parts(Table(columns, rows, title="On digits", notes=["Measured otherwise."]), 80)
    assert lines[0] == "On digits"
    assert lines[-1] == "[1] Measured otherwise."
    for at, figure in enumerate(figures):
        (line,) = (line for line in lines if line.startswith(figure))
        assert [word for word in line[len(figure) :].split() if "%" in word] == [row[at + 1].text for row in rows]
    assert all("\n".join(lines).count(name) == 1 for name in names)
    assert all(len(line) <= 80 or " " not in line.partition(": ")[2] for line in lines)
