"""`svdctl eval-robust`: flags to a configuration, a configuration to the recipe, its result to a table or JSON."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from svdctl.cli.evaluation_flags import EVALUATION, resolve_evaluation
from svdctl.cli.messages import explain, print_notices
from svdctl.cli.opening import device_line, say_opening
from svdctl.cli.options import with_options
from svdctl.cli.variadic import Takes
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.errors import EvaluationFailures, Interrupted
from svdctl.evaluate.find_checkpoints import require_any_existing
from svdctl.registry import METRICS
from svdctl.utils.escapes import one_line
from svdctl.utils.signals import stops_answered, terminated_as_interrupt
from svdctl.utils.table import width_of

if TYPE_CHECKING:
    from svdctl.evaluate.runner import EvaluationResult


def takers() -> Mapping[str, Takes]:
    """Return the options that take several values, with a test of what may be one of them."""

    def word(text: str) -> bool:
        return not text.startswith("-") and "/" not in text and not Path(text).exists()

    def number(text: str) -> bool:
        return text.replace(".", "", 1).replace(",", "").isdigit()

    return {
        "--metrics": lambda text: text.lower().replace("_", "-") in METRICS.kinds() or word(text),
        **dict.fromkeys(("--corruptions", "--attacks"), word),
        **dict.fromkeys(("--severities", "--mean", "--std"), number),
        "--radii": lambda text: number(text.removesuffix("/255")),
    }


EXAMPLES = (
    ("Accuracy, calibration, accuracy under corruptions and attacks, and certificates of a run:",
     "svdctl eval-robust runs/RUN"),
    ("Two runs under attack alone, on 100 images each:",
     "svdctl eval-robust runs/A runs/B --metrics autoattacks --norm L2 --eps 0.5 --examples 100"),
)  # fmt: skip
"""For the end of the help."""


@with_options(
    EVALUATION, EvaluateConfig, ("checkpoints", "Checkpoints, run folders, or folders of these; without any: runs/.")
)
def eval_robust(flags: dict[str, Any]) -> None:
    """Accuracy, calibration, corruptions, attacks and certificates of checkpoints; nothing is measured twice.

    Ctrl-C or a kill loses at most one batch: the same command goes on. Exit code 0 fine, 1 something could not be
    measured (the rest is), 2 wrong input and nothing measured, 130 interrupted.
    """
    resolved = resolve_evaluation(flags)
    print_notices(resolved.notices)
    if "show_corruptions" in flags:
        from svdctl.evaluate.runner import show_corruptions

        typer.echo(one_line(show_corruptions(resolved.config, Path(flags["show_corruptions"]))))
    else:
        _evaluate(resolved.config, flags.get("format", "table"), debug=flags.get("debug", False))


def _evaluate(config: EvaluateConfig, form: str, *, debug: bool) -> None:
    require_any_existing(config)
    from svdctl.cli.evaluation_progress import EvaluationDisplay, result_json, result_table

    again = one_line(shlex.join(["svdctl", *sys.argv[1:]]))
    go_on = "the same command begins anew, for --force" if config.force else "to go on"
    reporter = EvaluationDisplay(debug=debug)
    try:
        with stops_answered(lambda text: reporter.answer(f"{text}; {go_on}", again), "nothing was measured yet"):
            places = ", ".join(map(str, config.checkpoints[:3])) + ", ..." * (len(config.checkpoints) > 3)
            further = [f"capture {config.capture}"] * (config.capture != "auto")
            device = device_line(config.accelerator, config.precision, *further)
            say_opening("eval-robust", f"{', '.join(config.metrics)} of {places}", [device])
            # torch takes seconds to import: only now, when the flags are known to be right.
            with reporter.part("loading torch"):
                from svdctl.evaluate import runner as recipe
            with terminated_as_interrupt():
                result = recipe.run(config, reporter=reporter)
    except KeyboardInterrupt as error:
        kept = "finished metrics and batches are kept, the same command goes on"
        raise Interrupted(f"interrupted; {f'finished metrics are kept, {go_on}' if config.force else kept}") from error
    finally:
        reporter.close()
    if form == "json":
        typer.echo(result_json(result))
    elif any(evaluation.records for evaluation in result.evaluations):
        typer.echo(result_table(result, width_of(sys.stdout)))
    _end(result)


def _end(result: "EvaluationResult") -> None:
    """Raise what failed, with a list of all of it; exit code 2 where wrong input kept all from being measured."""
    from svdctl.cli.evaluation_progress import failure_line

    if not result.failures:
        return
    # A shard of an attack has no record, and no failure either.
    is_any_done = any(evaluation.records or not evaluation.failures for evaluation in result.evaluations)
    if len(result.failures) == 1 and not is_any_done:
        raise result.failures[0].error
    lines = "".join(f"\n  {failure_line(failure)}" for failure in result.failures)
    is_wrong_input = not is_any_done and {explain(failure.error)[1] for failure in result.failures} == {2}
    raise EvaluationFailures(
        f"{len(result.failures)} of what was asked could not be measured:{lines}", exit_code=2 if is_wrong_input else 1
    )
