"""Certified accuracy: images that are classified rightly and proved to stay so within a radius."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from svdctl.config.base import Config
from svdctl.errors import UnprovedError
from svdctl.evaluate.attack_settings import attack_title
from svdctl.evaluate.figures import Figures, Share, wilson_interval
from svdctl.evaluate.metric import (
    Measured,
    MeasurementContext,
    Metric,
    Order,
    OutputContext,
    PictureContext,
    Unfinished,
    percent,
    register_metric,
)
from svdctl.utils.rounded_figures import at_least, at_most

if TYPE_CHECKING:
    from svdctl.evaluate.results import Record
    from svdctl.utils.matplotlib_defaults import Figure


RADII = (36.0, 72.0, 108.0, 255.0)


class CertificateConfig(Config):
    """Where certified accuracy is shown."""

    radii: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = RADII
    """Radii of certified accuracy, in 255ths of a pixel's range."""


class FactorFigures(Figures):
    """What one layer adds to the Lipschitz constant."""

    layer: str
    kind: str
    factors: dict[str, NonNegativeFloat]


class CertificateFigures(Figures):
    """Certified accuracy."""

    lipschitz: NonNegativeFloat
    accuracy: dict[str, Share]
    count: PositiveInt
    clean: Share
    mean_radius: NonNegativeFloat
    largest_radius: NonNegativeFloat
    vacuous: bool
    largest_factors: tuple[FactorFigures, ...]

    def faults(self) -> Mapping[str, bool]:
        by_radius = sorted((float(radius), share) for radius, share in self.accuracy.items())
        shares = [self.clean, *(share for _, share in by_radius)]
        beyond = any(share > 0 and radius / 255 > self.largest_radius for radius, share in by_radius)
        return {
            "accuracy grows with the radius": any(after > before for before, after in pairwise(shares)),
            "more is certified than the largest radius": beyond,
            "vacuous is not what the smallest radius says": self.vacuous != (not by_radius or by_radius[0][1] == 0),
        }


@register_metric
class CertifiedAccuracy(Metric):
    """Share of test images whose label is proved in an l2 ball around them."""

    kind = "certified"
    version = 2  # before, controlled layers were bounded anew, not by the maxima of their run
    title = "Certificates"
    config = CertificateConfig
    precision = "64"
    figures = CertificateFigures
    evidence = "proved: at least so many images keep their label whatever the change"
    columns = tuple(percent(f"certified-{radius:g}", f"certified {radius:g}/255", basis="proved") for radius in RADII)
    owned_files = ("certified.csv", "certified.png")

    def measure(self, context: MeasurementContext, config: CertificateConfig, unfinished: Unfinished) -> Measured | str:
        from svdctl.evaluate import certificate_metric

        try:
            return Measured(*certificate_metric.measure(context, config.radii))
        except UnprovedError as error:
            if context.config.metrics == (self.kind,):
                raise  # all that was asked for
            return str(error)

    def fault_of_rows(self, results: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> bool:
        radii, count = [float(row["radius"]) for row in rows], len(rows)
        shares = [
            (sum(found > float(radius) / 255 for found in radii), share)
            for radius, share in results["accuracy"].items()
        ]
        shares.append((sum(int(row["correct"]) for row in rows), results["clean"]))
        # As many digits as a row has.
        largest = math.isclose(max(radii), results["largest_radius"], rel_tol=1e-6, abs_tol=1e-30)
        return not largest or count != results["count"] or any(round(share * count) != found for found, share in shares)

    def recheck(self, context: MeasurementContext, results: Mapping[str, Any]) -> str | None:
        """Prove the Lipschitz constant again."""
        from svdctl.evaluate import certificate_metric

        return certificate_metric.fault_of_proof(context, results["lipschitz"])

    def compare(self, context: MeasurementContext, output: OutputContext) -> Order | None:
        """Compare certificates with attacks, image by image: certified <= attacked <= clean."""
        from svdctl.evaluate.consistency import assert_order

        attack = _attack_in_pixels(output.records)
        if attack is None:
            return None
        channels, height, width = context.data.test.image_shape
        norm, eps = attack.protocol["norm"], attack.protocol["eps"]
        own, others = output.rows(output.records[self.kind]), output.rows(attack)
        order = assert_order(own, others, norm=norm, eps=eps, pixels=channels * height * width)
        return Order(
            order,
            f"On the same {order['count']:.0f} images at the attack's eps: certified {order['certified']:.2%} <= "
            f"attacked {order['attacked']:.2%} <= clean {order['clean']:.2%}; no image was changed within its "
            "certified radius.",
        )

    def cells(self, record: "Record") -> dict[str, str]:
        return {f"certified {radius}/255": f"{share:.2%}" for radius, share in record.results["accuracy"].items()}

    def intervals(self, record: "Record") -> dict[str, tuple[float, float]]:
        count, shares = record.results["count"], record.results["accuracy"].values()
        found = [wilson_interval(round(share * count), count) for share in shares]
        return dict(zip(self.cells(record), found, strict=True))

    def summary(self, record: "Record") -> str:
        results = record.results
        radii = ", ".join(f"{radius}/255 {share:.2%}" for radius, share in results["accuracy"].items())
        return f"{radii} (L = {at_most(results['lipschitz'])}{', vacuous' if results['vacuous'] else ''})"

    def protocol_text(self, record: "Record") -> str:
        return (
            f"l2 in pixels of [0, 1], on {record.results['count']:,} test images: the margin to each other class over "
            "a proved constant of that difference of logits, at most sqrt(2) L; evaluated in float64, rounding included"
        )

    def remarks(self, record: "Record") -> Iterator[str]:
        results = record.results
        if results["vacuous"]:
            yield (
                "vacuous: no image is certified at the radii asked for, the smallest of which is "
                f"{min(map(float, record.protocol['radii'])):g}/255; with L = {at_most(results['lipschitz'])} the "
                f"largest certified radius is {_radius_text(results['largest_radius'])}"
            )

    def draw(self, record: "Record", output: PictureContext, path: Path | None) -> "Figure | None":
        from svdctl.evaluate.evaluation_plots import plot_certified  # matplotlib takes a second to import

        attack = _attack_in_pixels(output.records)
        if attack is not None and attack.protocol["norm"] != "L2":
            attack = None
        mark = record.data_mark or (attack.data_mark if attack is not None else "")
        radii = [float(row["radius"]) for row in output.rows(record)]
        tried = "" if attack is None else attack_title(attack.protocol["attacks"])
        over = None if attack is None else {**attack.results, "title": tried}
        protocol, name = record.protocol, output.name + mark
        lipschitz = record.results["lipschitz"]
        return plot_certified(radii, protocol["radii"], lipschitz, name, path, over, protocol["data"])

    def outputs(self, record: "Record", output: OutputContext) -> list[Path]:
        from svdctl.evaluate.results import write_rows

        table, picture = output.folder / "certified.csv", output.folder / "certified.png"
        write_rows(table, output.marked(record))
        self.draw(record, output, picture)
        return [table, picture]

    def values(self, results: Mapping[str, Any]) -> dict[str, float]:
        found = {f"certified-{radius}": share for radius, share in results["accuracy"].items()}
        return {column.name: found[column.name] for column in self.columns if column.name in found}


def _radius_text(radius: float) -> str:
    """Return a radius in pixels of [0, 1] in 255ths, rounded down; 0 where no image is classified with a margin."""
    return f"{at_least(radius * 255, 3)}/255" if radius > 0 else "0: no image is classified right with a proved margin"


def _attack_in_pixels(records: Mapping[str, "Record"]) -> "Record | None":
    attack = records.get("autoattacks")
    return attack if attack is not None and attack.protocol["protocol"] == "pixels" else None
