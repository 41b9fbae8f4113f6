"""Top-1 accuracy on the test images."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, PositiveInt

from svdctl.config.base import Config
from svdctl.evaluate.figures import Figures, Share, is_wilson, near, wilson_interval
from svdctl.evaluate.metric import Measured, MeasurementContext, Metric, Unfinished, percent, register_metric

if TYPE_CHECKING:
    from svdctl.evaluate.results import Record


class AccuracyFigures(Figures):
    """Top-1 accuracy."""

    accuracy: Share
    interval: tuple[Share, Share]
    correct: NonNegativeInt
    count: PositiveInt

    def faults(self) -> Mapping[str, bool]:
        return {
            "more correct answers than images": self.correct > self.count,
            "accuracy is not correct / count": not near(self.accuracy, self.correct / self.count),
            "interval is not Wilson's": not is_wilson(self.interval, self.correct, self.count),
        }


@register_metric
class Top1Accuracy(Metric):
    """Top-1 accuracy with Wilson's interval at 95 %."""

    kind = "accuracy"
    title = "Accuracy"
    figures = AccuracyFigures
    columns = (percent("accuracy", "accuracy"),)

    def measure(self, context: MeasurementContext, config: Config, unfinished: Unfinished) -> Measured:
        from svdctl.evaluate.calibration import checked

        logits, labels = checked(context.logits, context.labels)
        correct, count = int((logits.argmax(1) == labels).sum()), len(labels)
        interval = list(wilson_interval(correct, count))
        return Measured({"accuracy": correct / count, "interval": interval, "correct": correct, "count": count})

    def cells(self, record: "Record") -> dict[str, str]:
        return {"accuracy": f"{record.results['accuracy']:.2%}"}

    def intervals(self, record: "Record") -> dict[str, tuple[float, float]]:
        low, high = record.results["interval"]
        return {"accuracy": (low, high)}

    def summary(self, record: "Record") -> str:
        results = record.results
        low, high = results["interval"]
        return f"{results['accuracy']:.2%} of {results['count']:,} test images (95 %: {low:.2%} to {high:.2%})"

    def protocol_text(self, record: "Record") -> str:
        count, precision = record.results["count"], record.protocol["precision"]
        return f"top-1 on {count:,} test images; Wilson's interval at 95 %; precision {precision}"
