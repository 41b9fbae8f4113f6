"""`svdctl eval-robust`: flags to a configuration, a configuration to the recipe, its result to a table or JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdctl.cli import options as o
from svdctl.cli.options import option
from svdctl.cli.variadic import Takes
from svdctl.config.evaluate_config import METRICS
from svdctl.errors import EvaluationError, Interrupted, UsageError

if TYPE_CHECKING:
    from svdctl.config.evaluate_config import EvaluateConfig
    from svdctl.evaluate.runner import EvaluationResult

WHAT = "What is measured"
NETWORK = "Networks that svdctl did not train"
CORRUPTIONS = "Corruptions (cifar-c)"
ATTACKS = "Attacks (autoattacks)"
OUTPUT = "Results"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("eval-robust")(eval_robust)


def takers() -> Mapping[str, Takes]:
    """Options that take several values, and what may be one of them."""

    def word(text: str) -> bool:
        return not text.startswith("-") and "/" not in text and not Path(text).exists()

    def number(text: str) -> bool:
        return text.replace(".", "", 1).replace(",", "").isdigit()

    return {
        "--metrics": lambda text: text.lower().replace("_", "-") in METRICS or word(text),
        "--corruptions": word,
        "--attacks": word,
        "--severities": number,
        "--radii": number,
        "--mean": number,
        "--std": number,
    }


def eval_robust(
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(help="Checkpoints, run folders, or folders that hold them.", show_default=False),
    ] = None,
    checkpoints_dir: Annotated[
        Path | None,
        option("--checkpoints-dir", text="The same, as the paper's code spells it (checkpoints).", panel=WHAT),
    ] = None,
    which: Annotated[
        str | None, option("--which", text="Checkpoints of a run folder: last, best or all (last).", panel=WHAT)
    ] = None,
    metrics: Annotated[
        list[str] | None, option("--metrics", text=f"Some of {', '.join(METRICS)} (all).", panel=WHAT)
    ] = None,
    dataset: Annotated[
        str | None,
        option(
            "--dataset",
            text="Test data: cifar10, cifar100, digits, folder:PATH or npz:PATH (those of the training).",
            panel=WHAT,
        ),
    ] = None,
    dataset_root: Annotated[Path | None, option("--dataset-root", text="Where CIFAR lies.", panel=WHAT)] = None,
    radii: Annotated[
        list[str] | None,
        option("--radii", text="Of certified accuracy, in 255ths of a pixel's range (36 72 108 255).", panel=WHAT),
    ] = None,
    seed: Annotated[
        int | None, option("--seed", text="Of attacks, subsets and corruptions (3407).", panel=WHAT)
    ] = None,
    set_: o.Set = None,
    model: Annotated[
        str | None, option("--model", text="Network of the weights: module:factory or torchvision:NAME.", panel=NETWORK)
    ] = None,
    mean: Annotated[
        list[str] | None,
        option("--mean", text="Means that the network's input is normalised by, in [0, 1].", panel=NETWORK),
    ] = None,
    std: Annotated[list[str] | None, option("--std", text="Standard deviations of the same.", panel=NETWORK)] = None,
    key: Annotated[
        str | None, option("--key", text="Which set of weights of a file that has several, as ema.", panel=NETWORK)
    ] = None,
    architecture: Annotated[
        str | None,
        option("--architecture", text="Of a public checkpoint of the paper; checked, not needed.", panel=NETWORK),
    ] = None,
    dec_rank: Annotated[int | None, option("--dec-rank", text="The same for its TT rank.", panel=NETWORK)] = None,
    gouk_transforms: Annotated[
        bool,
        option("--gouk-transforms", text="A public checkpoint was trained with mean and std 0.5.", panel=NETWORK),
    ] = False,
    corruptions: Annotated[
        list[str] | None,
        option(
            "--corruptions", text="Names, benchmark (15) or all (19) (those of corruptions.txt, 18).", panel=CORRUPTIONS
        ),
    ] = None,
    severities: Annotated[
        list[str] | None, option("--severities", text="Some of 1 to 5 (all).", panel=CORRUPTIONS)
    ] = None,
    corruption_examples: Annotated[
        int | None, option("--corruption-examples", text="Test images, drawn from the seed (all).", panel=CORRUPTIONS)
    ] = None,
    cifar_c_root: Annotated[
        Path | None,
        option(
            "--cifar-c-root",
            text="Folder of the published files; they are downloaded there when absent (the folder of CIFAR). "
            "Data other than CIFAR are corrupted by svdctl unless this is given.",
            panel=CORRUPTIONS,
        ),
    ] = None,
    cifar_c_res: Annotated[
        Path | None,
        option("--cifar-c-res", text="Folder for a picture and a table of each checkpoint.", panel=CORRUPTIONS),
    ] = None,
    show_corruptions: Annotated[
        Path | None,
        option(
            "--show-corruptions", text="Draw a sheet of all corruptions into this file, and stop.", panel=CORRUPTIONS
        ),
    ] = None,
    norm: Annotated[str | None, option("--norm", text="L1, L2 or Linf (L2).", panel=ATTACKS)] = None,
    eps: Annotated[float | None, option("--eps", text="Radius in pixels of [0, 1] (0.5).", panel=ATTACKS)] = None,
    attacks: Annotated[
        list[str] | None,
        option(
            "--attacks",
            text="standard, plus, rand, or some of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square (standard).",
            panel=ATTACKS,
        ),
    ] = None,
    examples: Annotated[
        str | None,
        option(
            "--examples",
            text="Test images, drawn from the seed, or all (32 of the embedded digits, all of other data).",
            panel=ATTACKS,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        option(
            "--protocol", text="pixels, or paper: normalised images, as the paper's code did (pixels).", panel=ATTACKS
        ),
    ] = None,
    shard: Annotated[
        str | None, option("--shard", text="i/n: attack the i-th of n parts of the images alone.", panel=ATTACKS)
    ] = None,
    merge_shards: Annotated[
        bool, option("--merge-shards", text="Join the finished shards to the figure of all images.", panel=ATTACKS)
    ] = False,
    autoattacks_res: Annotated[
        Path | None,
        option("--autoattacks-res", text="Folder for a text and a table of each checkpoint.", panel=ATTACKS),
    ] = None,
    out_dir: Annotated[
        Path | None,
        option(
            "--out-dir",
            text="Folder for all results, in folders that end in the hash of the weights. Without it they go "
            "beside each checkpoint, to eval-<its name>/, and "
            "report.md to the folder given.",
            panel=OUTPUT,
        ),
    ] = None,
    format_: Annotated[str | None, option("--format", text="table or json, on stdout (table).", panel=OUTPUT)] = None,
    force: Annotated[bool, option("--force", text="Measure anew what is finished.", panel=OUTPUT)] = False,
    batch_size: Annotated[
        int | None,
        option("--batch-size", text="Images at once; halved when memory runs out (250).", panel=o.DEVICES),
    ] = None,
    accelerator: o.Accelerator = None,
    precision: o.Precision = None,
    debug: o.Debug = False,
) -> None:
    """Accuracy, calibration, corruptions, attacks and certificates of checkpoints; nothing is measured twice.

    Ctrl-C or a kill loses at most one batch: the same command goes on. Exit code 0 fine, 1 something could not be
    measured (the rest is), 2 wrong input, 130 interrupted.
    """
    flags = {key.rstrip("_"): value for key, value in locals().items() if key != "debug"}
    form, sheet = flags.pop("format"), flags.pop("show_corruptions")
    config = config_of(flags, form)
    if sheet is not None:
        _draw(sheet, config, dataset)
        return
    _evaluate(config, form or "table", debug=debug)


def config_of(flags: dict[str, Any], form: str | None) -> "EvaluateConfig":
    """The configuration; remarks go to stderr.

    Raises:
        UsageError: with every fault.
    """
    from svdctl.config.evaluate_flags import resolve_evaluation

    faults = [f"--format {form}: not one of table and json"] if form not in (None, "table", "json") else []
    try:
        resolved = resolve_evaluation(flags)
    except UsageError as error:
        raise UsageError([*error.faults, *faults]) from error
    if faults:
        raise UsageError(faults)
    for notice in resolved.notices:
        typer.echo(f"note: {notice}", err=True)
    return resolved.config


def _evaluate(config: "EvaluateConfig", form: str, *, debug: bool) -> None:
    # torch takes seconds to import: only now, when the flags are known to be right.
    from svdctl.cli.evaluation_progress import choose_reporter, result_json, result_table
    from svdctl.evaluate import runner as recipe
    from svdctl.utils.signals import terminated_as_interrupt

    reporter = choose_reporter(debug=debug)
    try:
        with terminated_as_interrupt():
            result = recipe.run(config, reporter=reporter)
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; finished metrics and batches are kept, the same command goes on") from error
    finally:
        reporter.close()
    if form == "json":
        typer.echo(result_json(result))
    elif any(evaluation.records for evaluation in result.evaluations):
        typer.echo(result_table(result))
    _end(result)


def _end(result: "EvaluationResult") -> None:
    """Exit code 1 when something failed, with a list of all of it."""
    from svdctl.cli.evaluation_progress import failure_lines

    if not result.failures:
        return
    if len(result.failures) == 1 and not any(evaluation.records for evaluation in result.evaluations):
        raise result.failures[0].error
    lines = failure_lines(result.failures)
    raise EvaluationError(
        f"{len(lines)} of what was asked could not be measured:\n" + "\n".join(f"  {line}" for line in lines)
    )


def _draw(path: Path, config: "EvaluateConfig", dataset: str | None) -> None:
    from svdctl.evaluate.runner import show_corruptions

    typer.echo(show_corruptions(config, path))
