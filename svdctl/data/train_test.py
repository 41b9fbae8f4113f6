"""The parts of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass

from svdctl.data.images import ImageData
from svdctl.errors import DataError


@dataclass(frozen=True)
class TrainTest:
    """The training and the test part of a data set."""

    train: ImageData
    test: ImageData
    validation: ImageData | None = None
    """The data set's own validation part; without one, a run that needs it splits it from the training part."""

    def parts(self) -> dict[str, ImageData]:
        """Return the parts that there are, by name."""
        found = {"training": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in found.items() if part is not None}

    def checked(self, where: str) -> "TrainTest":
        """Return itself, after checking all parts and that they belong together."""
        for name, part in self.parts().items():
            part.checked(f"{where}, {name} part")
            if self.train.image_shape != part.image_shape:
                raise DataError(
                    f"{where}: training images are {self.train.image_shape}, {name} images {part.image_shape}; "
                    "make them one size"
                )
            if self.train.classes != part.classes:
                raise DataError(
                    f"{where}: the training and the {name} part have different classes "
                    f"{only_in_one(self.train.classes, part.classes, name)}; make them the same"
                )
        return self

    def grey(self, where: str) -> "TrainTest":
        """Return the parts with images of one channel."""
        validation = None if self.validation is None else self.validation.grey(where)
        return TrainTest(self.train.grey(where), self.test.grey(where), validation)


def only_in_one(training: Sequence[str], other: Sequence[str], name: str) -> str:
    """Return which classes one of two parts alone has, the first five, and the first of each part.

    Args:
        training: names of the classes of the training part.
        other: names of the classes of the other part.
        name: what the other part is called.
    """
    alone = {"training": sorted(set(training) - set(other)), name: sorted(set(other) - set(training))}
    odd = sorted(label for labels in alone.values() for label in labels)
    which = " and ".join(f"{labels[0]} only in the {part} part" for part, labels in alone.items() if labels)
    return f"({', '.join(odd[:5])}){f': {which}' if which else ''}"
