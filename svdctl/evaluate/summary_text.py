"""Figures in words and in the cells of tables; the same for the terminal and the report."""

from collections.abc import Sequence
from typing import Any

from svdctl.config.evaluate_config import METRICS
from svdctl.evaluate.evaluation_outcome import Evaluation
from svdctl.evaluate.results import Record
from svdctl.utils.table import Cell, Column, Table


def short(record: Record) -> str:
    """The figures of a record in one line."""
    results, protocol = record.results, record.protocol
    if record.metric == "accuracy":
        low, high = results["interval"]
        return f"{results['accuracy']:.2%} of {results['count']:,} test images (95 %: {low:.2%} to {high:.2%})"
    if record.metric == "ece":
        after = results["temperature"]
        scaled = f"; at T = {after['value']:.3g}: {after['ece']:.2%}" if after and after["determined"] else ""
        return f"ECE {results['ece']:.2%}, NLL {results['nll']:.3f}, Brier {results['brier']:.3f}{scaled}"
    if record.metric == "cifar-c":
        if results["mean"] is None:
            return f"clean {results['clean']:.2%}, no corruption asked for"
        means = ", ".join(f"{name} {share:.2%}" for name, share in results["figures"].items())
        return f"{means} (clean {results['clean']:.2%})"
    if record.metric == "autoattacks":
        low, high = results["robust_interval"]
        return (
            f"{results['robust_accuracy']:.2%} of {results['count']:,} stand {ball(protocol)} "
            f"(95 %: {low:.2%} to {high:.2%}; clean {results['clean_accuracy']:.2%})"
        )
    radii = ", ".join(f"{radius}/255 {share:.2%}" for radius, share in results["accuracy"].items())
    return f"{radii} (L = {results['lipschitz']:.4g}{', vacuous' if results['vacuous'] else ''})"


def ball(protocol: dict[str, Any]) -> str:
    """`L2 0.5`, with the mark of the paper's protocol."""
    marked = ", protocol paper" if protocol["protocol"] == "paper" else ""
    return f"{protocol['norm']} {protocol['eps']:g}{marked}"


def comparison(evaluations: Sequence[Evaluation]) -> Table:
    """Return checkpoints down and figures across, in the order of the metrics; a dash where a figure is missing."""
    rows: list[dict[str, Cell]] = [{} for _ in evaluations]
    titles: dict[str, None] = {}
    for metric in METRICS:
        for evaluation, row in zip(evaluations, rows, strict=True):
            if (record := evaluation.records.get(metric)) is not None:
                own = {title: Cell(text, mark=record.marks) for title, text in _cells(record).items()}
                row |= own
                titles |= dict.fromkeys(own)
    return Table(
        [Column("checkpoint", "checkpoint", "left"), *(Column(title, title) for title in titles)],
        [
            [Cell(evaluation.found.name), *(row.get(title, Cell("-")) for title in titles)]
            for evaluation, row in zip(evaluations, rows, strict=True)
        ],
    )


def _cells(record: Record) -> dict[str, str]:
    results = record.results
    if record.metric == "accuracy":
        return {"accuracy": f"{results['accuracy']:.2%}"}
    if record.metric == "ece":
        after = results["temperature"]
        return {"ECE": f"{results['ece']:.2%}", **({"ECE at T": f"{after['ece']:.2%}"} if after else {})}
    if record.metric == "cifar-c":
        name = "CIFAR-C" if results["source"] == "published" else "corrupted"
        return {f"{name}, {title}": f"{mean:.2%}" for title, mean in results["figures"].items()}
    if record.metric == "autoattacks":
        return {f"AutoAttack {ball(record.protocol)}": f"{results['robust_accuracy']:.2%}"}
    return {f"cert. {radius}": f"{share:.2%}" for radius, share in results["accuracy"].items()}
