"""The handwritten digits that scikit-learn embeds."""

from typing import TYPE_CHECKING, Literal

from svdctl.config.data_config import Augment, DataConfig
from svdctl.data.data_source import DataSource, register_data

if TYPE_CHECKING:
    from svdctl.data.train_test import TrainTest


class Digits(DataConfig):
    """The 1,797 scans embedded in scikit-learn, shown as 3 x 32 x 32."""

    kind: Literal["digits"] = "digits"


@register_data
class DigitsSource(DataSource):
    """17 grey levels on 8 x 8 pixels, four times larger by bilinear interpolation, grey on three channels."""

    kind = "digits"
    config = Digits
    attacked_by_default = 32  # AutoAttack takes seconds an image on a CPU

    def load(self, config: Digits) -> "TrainTest":
        import torch
        from sklearn.datasets import load_digits  # 1.5 s to import, needed here alone

        from svdctl.data.images import ImageData
        from svdctl.data.split import stratified_split
        from svdctl.data.train_test import TrainTest

        bundle = load_digits()
        small = torch.from_numpy(bundle.images).float()[:, None] / 16
        large = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
        images = (large * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        labels = torch.from_numpy(bundle.target).long()
        # The split is part of the data set: the same for every seed, so that runs can be compared.
        return TrainTest(*stratified_split(ImageData(images, labels, tuple(map(str, range(10)))), 0.2, seed=0))

    def title(self, config: Digits) -> str:
        return "embedded digits"

    def classes(self, config: Digits) -> int:
        return 10

    def image_shape(self, config: Digits) -> tuple[int, int, int]:
        return 3, 32, 32

    def augmentation(self, config: Digits) -> Augment:
        return Augment(flip=False, crop=2)  # a mirrored digit is another one

    def counts(self, config: Digits) -> tuple[int, int]:
        return 1438, 359
