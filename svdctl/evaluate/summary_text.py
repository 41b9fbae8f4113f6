"""Figures in words and in the cells of tables; the same for the terminal and the report."""

from collections.abc import Sequence
from typing import Any

from svdctl.config.evaluate_config import METRICS, Metric
from svdctl.evaluate.results import Record


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


def headers(records: Sequence[dict[Metric, Record]], metrics: Sequence[Metric]) -> list[str]:
    """Columns of the comparison, in the order of the metrics."""
    found: dict[str, None] = {}
    for metric in METRICS:
        if metric in metrics:
            found |= dict.fromkeys(title for kept in records if metric in kept for title in _cells(kept[metric]))
    return list(found)


def cells(kept: dict[Metric, Record], columns: Sequence[str]) -> list[str]:
    """A row of the comparison; a dash where a figure is missing, and `(kept)` behind what an earlier call measured."""
    known: dict[str, str] = {}
    for record in kept.values():
        known |= {title: text + record.mark for title, text in _cells(record).items()}
    return [known.get(column, "-") for column in columns]


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
