"""Accuracy under AutoAttack."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from svdctl.config.data_config import Data
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.errors import UsageError
from svdctl.evaluate.attack_settings import AttackSettings, attack_title, shown_radius, warning_of_radius
from svdctl.evaluate.figures import Figures, Share, is_share_of, is_wilson, near
from svdctl.evaluate.metric import (
    Measured,
    MeasurementContext,
    Metric,
    OutputContext,
    Unfinished,
    percent,
    register_metric,
)
from svdctl.evaluate.table_evaluation import Evaluate
from svdctl.registry import DATA
from svdctl.utils.atomic_write import write_atomically

if TYPE_CHECKING:
    from svdctl.evaluate.attack.attack_progress import Assignment
    from svdctl.evaluate.results import Record


class AttackFigures(Figures):
    """Accuracy under attack."""

    protocol: str
    norm: str
    eps: PositiveFloat
    seed: NonNegativeInt
    batch_size: PositiveInt
    pyautoattack: str
    count: PositiveInt
    clean_accuracy: Share
    robust_accuracy: Share
    robust_interval: tuple[Share, Share]
    after_attack: dict[str, Share]
    left_out: tuple[str, ...]
    largest_distance: NonNegativeFloat
    warnings: tuple[str, ...]
    nearest: tuple[NonNegativeFloat, ...]

    def faults(self) -> Mapping[str, bool]:
        standing = round(self.robust_accuracy * self.count)
        falling = [self.clean_accuracy, *self.after_attack.values(), self.robust_accuracy]
        return {
            "a share is no number of images": not is_share_of(self.count, *falling),
            "interval is not Wilson's": not is_wilson(self.robust_interval, standing, self.count),
            "accuracy grows under attack": any(after > before for before, after in pairwise(falling)),
            "an attack broke images after the last": not near(falling[-2], falling[-1]),
            "distances are not those of the broken images": len(self.nearest) != self.count - standing,
            "a distance is larger than eps": self.protocol == "pixels"
            and self.largest_distance > 1.01 * self.eps + 0.01,
        }


def attacked_with(protocol: Mapping[str, Any], between: str = " ") -> str:
    """Return `AutoAttack L2 0.5` or `apgd-ce Linf 8/255`, with the mark of the paper's protocol."""
    return f"{attack_title(protocol['attacks'])}{between}{ball(protocol)}"


def ball(protocol: Mapping[str, Any]) -> str:
    """Return `L2 0.5` or `Linf 8/255`, with the mark of the paper's protocol."""
    marked = ", protocol paper" if protocol["protocol"] == "paper" else ""
    return f"{protocol['norm']} {shown_radius(protocol['eps'])}{marked}"


@register_metric
class AutoAttacks(Metric):
    """Share of test images for which AutoAttack finds no adversarial one in a ball."""

    kind = "autoattacks"
    title = "Attacks"
    config = AttackSettings
    precision = "32"
    figures = AttackFigures
    evidence = "an upper bound: a stronger attack may break more images"
    columns = (percent("autoattack", "AutoAttack", basis="reached"),)
    owned_files = ("attacks.csv",)
    # A figure that was joined from shards is that of the same attack.
    same_but_for = ("shards",)
    uses_logits = False

    def settings(self, config: EvaluateConfig, data: Data) -> AttackSettings:
        own = super().settings(config, data)
        examples = own.examples or DATA.get(data.kind).attacked_by_default or "all"
        shared = {"batch_size": config.batch_size or own.batch_size, "seed": config.seed}
        return own.model_copy(update={**shared, "examples": None if examples == "all" else examples})

    def protocol(self, context: MeasurementContext, config: AttackSettings) -> dict[str, Any]:
        from svdctl.evaluate.attack import attack_progress

        work = _work(context, config)
        parts: dict[str, Any] = {}
        if context.config.shard is not None:
            parts = {"shard": str(context.config.shard)}
        elif context.config.merge_shards:
            parts = {"shards": len(attack_progress.shard_files(work, context.folder))}
        return {**config.model_dump(mode="json"), "count": len(work.index), **parts}

    def unfinished_file(self, context: MeasurementContext, config: AttackSettings, fingerprint: str) -> Path:
        return _work(context, config).file(context.folder, context.config.shard)

    def measure(self, context: MeasurementContext, config: AttackSettings, unfinished: Unfinished) -> Measured | str:
        from svdctl.evaluate.attack import attack_metric, attack_progress

        work, shard = _work(context, config), context.config.shard
        if shard is None and context.config.merge_shards:
            progress = attack_progress.merge(work, context.folder)
        else:
            if shard is not None and shard.count > len(work.index):
                raise UsageError(f"`shard = {shard}`: only {len(work.index)} images are attacked; make fewer shards")
            part = work if shard is None else work.part(shard)
            kept = attack_progress.kept_progress(unfinished.path, part, context.notice)
            progress = attack_metric.run(context, part, kept)
            if shard is not None:
                robust = progress.state.robust_accuracy()
                return f"shard {shard}: {robust:.2%} of {len(part.index)} images robust; {unfinished.path}"
        return Measured(attack_metric.results(progress, config), attack_metric.rows(progress, work, context.labels))

    def fault_of_rows(self, results: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> bool:
        outcomes = [row["outcome"] for row in rows]
        shares = {"robust": results["robust_accuracy"], "misclassified": 1 - results["clean_accuracy"]}
        counts = {outcome: round(share * len(rows)) for outcome, share in shares.items()}
        return len(rows) != results["count"] or any(outcomes.count(name) != count for name, count in counts.items())

    def cells(self, record: "Record") -> dict[str, str]:
        return {attacked_with(record.protocol): f"{record.results['robust_accuracy']:.2%}"}

    def intervals(self, record: "Record") -> dict[str, tuple[float, float]]:
        low, high = record.results["robust_interval"]
        return dict.fromkeys(self.cells(record), (low, high))

    def summary(self, record: "Record") -> str:
        results = record.results
        low, high = results["robust_interval"]
        return (
            f"{results['robust_accuracy']:.2%} of {results['count']:,} images robust to "
            f"{attacked_with(record.protocol, ' within ')} "
            f"(95 %: {low:.2%} to {high:.2%}; clean {results['clean_accuracy']:.2%})"
        )

    def protocol_text(self, record: "Record") -> str:
        protocol, results = record.protocol, record.results
        attacks = protocol["attacks"]
        version = f"version {attacks}" if isinstance(attacks, str) else "custom"
        shards = f", joined from {protocol['shards']} shards" if "shards" in protocol else ""
        if protocol["protocol"] == "paper":
            return (
                f"protocol paper: pyautoattack {results['pyautoattack']} on normalised images, {ball(protocol)}, "
                f"{results['count']:,} test images{shards}; eps is not in pixels, for comparison with the paper's code "
                "only"
            )
        return (
            f"pyautoattack {results['pyautoattack']}, {version} ({', '.join(results['after_attack'])}), "
            f"{ball(protocol)}, {results['count']:,} test images drawn from seed {protocol['seed']}, batches of "
            f"{protocol['batch_size']}{shards}; in pixels of [0, 1], every adversarial image verified"
        )

    def remarks(self, record: "Record") -> Iterator[str]:
        protocol = record.protocol
        if (text := warning_of_radius(protocol["norm"], protocol["eps"], protocol["protocol"])) is not None:
            yield f"warning: {text}"
        yield from (f"left out: {text}" for text in record.results["left_out"])
        yield from (f"warning: {text}" for text in record.results["warnings"])

    def outputs(self, record: "Record", output: OutputContext) -> list[Path]:
        from svdctl.evaluate.results import copy_files, write_rows

        table = output.folder / "attacks.csv"
        write_rows(table, output.marked(record))
        if output.config.autoattacks_res is None:
            return [table]
        results = record.results
        lines = [
            f"{attacked_with(record.protocol)}, seed {results['seed']}, batch {results['batch_size']}",
            f"clean accuracy: {results['clean_accuracy']:.2%}",
            *(f"after {attack}: {share:.2%}" for attack, share in results["after_attack"].items()),
            f"robust accuracy: {results['robust_accuracy']:.2%}",
            self.summary(record) + record.mark,
            *self.remarks(record),
        ]
        (copy,) = copy_files([table], output.config.autoattacks_res, output.export)
        text = copy.with_suffix(".txt")
        write_atomically(text, "\n".join(lines) + "\n")
        return [table, text, copy]

    def values(self, results: Mapping[str, Any]) -> dict[str, float]:
        return {"autoattack": results["robust_accuracy"]}

    def deviations(self, results: Mapping[str, Any], evaluate: Evaluate, whole: int | None) -> Iterator[str]:
        if whole is None or results["count"] != whole:
            yield f"Attacked: {results['count']:,}{f' of {whole:,}' if whole else ''} test images."
        if evaluate.attacks:
            yield f"Attacks: {', '.join(evaluate.attacks)} in place of AutoAttack's standard list."
        if (evaluate.norm, evaluate.eps) != ("L2", 0.5):
            yield f"Attack: {evaluate.norm} within {shown_radius(evaluate.eps)} in place of L2 within 0.5."
        if (text := warning_of_radius(evaluate.norm, evaluate.eps, "pixels")) is not None:
            yield f"Attack: {text}."
        if results["left_out"]:
            yield f"Left out of AutoAttack for want of classes: {', '.join(results['left_out'])}."

    def passes(self, evaluate: Evaluate, images: int, classes: int) -> tuple[float, float]:
        from svdctl.evaluate.attack.adversary import most_work
        from svdctl.evaluate.attack.attack_metric import HALVINGS, LOOKS
        from svdctl.evaluate.attack.attack_plan import wanted

        attacks: Any = tuple(dict.fromkeys(evaluate.attacks)) or "standard"
        settings = AttackSettings(norm=evaluate.norm, eps=evaluate.eps, attacks=attacks)
        work = most_work(settings, wanted(settings), classes)
        forward = sum(one.passes + 1 for one in work) + HALVINGS + LOOKS
        backward = 1 + sum(one.backward for one in work)
        attacked = min(images, evaluate.examples or images)
        return attacked * max(forward - backward, 0), attacked * backward


def _work(context: MeasurementContext, config: AttackSettings) -> "Assignment":
    from svdctl.evaluate.attack.attack_progress import Assignment

    def make() -> "Assignment":
        if config.protocol == "paper":
            context.notice("protocol paper: normalised images are attacked, and eps is not in pixels")
        return Assignment.make(config, context.model.weights, context.data, context.probe)

    return context.once("attack", make)
