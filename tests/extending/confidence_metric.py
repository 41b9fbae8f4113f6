"""A user's metric: mean confidence of the predictions, at a temperature."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat, PositiveInt

import svdctl
from svdctl.config.base import Config
from svdctl.evaluate.figures import Figures, Share, is_share_of
from svdctl.evaluate.metric import Measured, MeasurementContext, Metric, OutputContext, Unfinished, percent
from svdctl.evaluate.results import Record, write_rows


class Confidence(Config):
    """Settings of the metric."""

    temperature: PositiveFloat = 1.0


class ConfidenceFigures(Figures):
    """Its results."""

    confidence: Share
    sure: Share
    """Share of images with a confidence above 0.9."""
    count: PositiveInt

    def faults(self) -> Mapping[str, bool]:
        return {"the sure ones are no number of images": not is_share_of(self.count, self.sure)}


@svdctl.register_metric
class MeanConfidence(Metric):
    """Mean of the largest probability."""

    kind = "confidence"
    title = "Mean confidence"
    config = Confidence
    figures = ConfidenceFigures
    columns = (percent("confidence", "confidence"),)
    owned_files = ("confidence.csv",)

    def measure(self, context: MeasurementContext, config: Confidence, unfinished: Unfinished) -> Measured:
        confidence = (context.logits / config.temperature).softmax(1).amax(1).double()
        results: dict[str, Any] = {
            "confidence": float(confidence.mean()),
            "sure": float((confidence > 0.9).double().mean()),
            "count": len(confidence),
        }
        return Measured(results, [{"image": n, "confidence": c} for n, c in enumerate(confidence.tolist())])

    def outputs(self, record: Record, output: OutputContext) -> list[Path]:
        write_rows(output.folder / "confidence.csv", output.marked(record))
        return [output.folder / "confidence.csv"]
