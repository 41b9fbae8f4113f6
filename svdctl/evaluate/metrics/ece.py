"""Expected calibration error and proper scores, before and after temperature scaling."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from svdctl.config.base import Config
from svdctl.evaluate.figures import Figures, Share, near
from svdctl.evaluate.metric import (
    Measured,
    MeasurementContext,
    Metric,
    OutputContext,
    PictureContext,
    Unfinished,
    percent,
    register_metric,
)

if TYPE_CHECKING:
    from svdctl.evaluate.evaluation_data import HeldOut
    from svdctl.evaluate.results import Record
    from svdctl.utils.matplotlib_defaults import Figure

BINS = 15
Brier = Annotated[float, Field(ge=0, le=2)]


class BinFigures(Figures):
    """Bars of the reliability diagram."""

    edges: tuple[Share, ...]
    counts: tuple[NonNegativeInt, ...]
    confidence: tuple[Share, ...]
    accuracy: tuple[Share, ...]


class TemperatureFigures(Figures):
    """Figures after temperature scaling."""

    value: PositiveFloat
    determined: bool
    fitted_on: str
    fitted_count: PositiveInt
    count: PositiveInt
    ece_before: Share
    ece: Share
    nll: NonNegativeFloat
    brier: Brier


class CalibrationFigures(Figures):
    """Calibration error and proper scores."""

    ece: Share
    nll: NonNegativeFloat
    brier: Brier
    accuracy: Share
    count: PositiveInt
    bins: BinFigures
    temperature: TemperatureFigures | None
    warnings: tuple[str, ...] = ()

    def faults(self) -> Mapping[str, bool]:
        bars = self.bins
        lengths = {len(bars.edges) - 1, len(bars.counts), len(bars.confidence), len(bars.accuracy)}
        gaps = zip(bars.counts, bars.confidence, bars.accuracy, strict=False)
        error = sum(count * abs(sure - right) for count, sure, right in gaps) / self.count
        return {
            f"there are not {BINS} bins": lengths != {BINS},
            "bins do not hold all images": sum(bars.counts) != self.count,
            "ece is not that of the bins": not near(self.ece, error),
        }


@register_metric
class ExpectedCalibrationError(Metric):
    """15 equal bins of confidence, the last one closed at 1."""

    kind = "ece"
    title = "Calibration"
    version = 2  # before, confidences of exactly 1 had a bin of their own
    figures = CalibrationFigures
    columns = (percent("ece", "ECE", "low"),)
    owned_files = ("reliability.png",)

    def protocol(self, context: MeasurementContext, config: Config) -> dict[str, Any]:
        from svdctl.data.fingerprint import fingerprint

        held_out = fingerprint(_held_out(context).fit)
        return {**self.former_protocol(context, config), "held_out": held_out}

    def former_protocol(self, context: MeasurementContext, config: Config) -> dict[str, Any]:
        return {"bins": BINS, "temperature_fitted_on": _held_out(context).text, "seed": context.config.seed}

    def measure(self, context: MeasurementContext, config: Config, unfinished: Unfinished) -> Measured:
        from svdctl.evaluate.calibration import calibration, reliability, warning_of
        from svdctl.evaluate.temperature import fit_temperature

        logits, labels, kept = context.logits, context.labels, _held_out(context)
        found, bars, text = calibration(logits, labels), reliability(logits, labels), warning_of(logits)
        scores = ("ece", "nll", "brier", "count")
        results: dict[str, Any] = {
            **{name: getattr(found, name) for name in (*scores, "accuracy")},
            "bins": {
                "edges": [index / BINS for index in range(BINS + 1)],
                "counts": [round(count) for count in bars.counts.tolist()],
                "confidence": bars.confidence.tolist(),
                "accuracy": bars.accuracy.tolist(),
            },
            "temperature": None,
            "warnings": [text] if text is not None else [],
        }
        if len(kept.fit) and len(kept.judge):
            held_out, judged = context.classifier.logits(kept.fit.images), (logits[kept.judge], labels[kept.judge])
            temperature = fit_temperature(held_out, kept.fit.labels)
            after = calibration(judged[0].double() / (temperature or 1.0), judged[1])
            results["temperature"] = {
                "value": temperature or 1.0,
                "determined": temperature is not None,
                "fitted_on": kept.text,
                "fitted_count": len(kept.fit.labels),
                "ece_before": calibration(*judged).ece,
                **{name: getattr(after, name) for name in scores},
            }
        return Measured(results)

    def cells(self, record: "Record") -> dict[str, str]:
        after = record.results["temperature"]
        return {"ECE": f"{record.results['ece']:.2%}", **({"ECE at T": f"{after['ece']:.2%}"} if after else {})}

    def summary(self, record: "Record") -> str:
        results, after = record.results, record.results["temperature"]
        scaled = ""
        if after and after["determined"]:
            scaled = (
                f"; of {after['count']:,} of them, which T is not fitted on, before and after temperature scaling "
                f"(T = {after['value']:.3g}): {after['ece_before']:.2%}, {after['ece']:.2%}"
            )
        return f"ECE {results['ece']:.2%}, NLL {results['nll']:.3f}, Brier {results['brier']:.3f}{scaled}"

    def protocol_text(self, record: "Record") -> str:
        text = (
            "15 equal bins of confidence, the last one with confidences of 1, weighted mean of the gap; NLL in nats; "
            f"Brier score in [0, 2]; precision {record.protocol['precision']}"
        )
        after = record.results["temperature"]
        return f"{text}; temperature fitted on {after['fitted_on']}" if after else text

    def remarks(self, record: "Record") -> Iterator[str]:
        after = record.results["temperature"]
        if after and not after["determined"]:
            yield "temperature scaling: the held-out likelihood has no best temperature; it stays 1"
        yield from (f"warning: {text}" for text in record.results.get("warnings", ()))

    def draw(self, record: "Record", output: PictureContext, path: Path | None) -> "Figure | None":
        from svdctl.evaluate.evaluation_plots import plot_reliability  # matplotlib takes a second to import

        return plot_reliability(record.results, output.name + record.data_mark, path, record.protocol["data"])

    def outputs(self, record: "Record", output: OutputContext) -> list[Path]:
        picture = output.folder / "reliability.png"
        self.draw(record, output, picture)
        return [picture]


def _held_out(context: MeasurementContext) -> "HeldOut":
    from svdctl.evaluate.evaluation_data import held_out

    model, seed = context.model, context.config.seed
    return context.once("held out", lambda: held_out(context.data, model.training, model.trained_on, seed))
