"""Images and labels out of an `.npz` file."""

from pathlib import Path

import numpy as np
import torch

from svdctl.data.arrays import read_arrays
from svdctl.data.images import ImageData
from svdctl.data.train_test import TrainTest
from svdctl.errors import DataError


def read_npz(path: Path) -> TrainTest:
    """Return the images and labels of an `.npz` file.

    Raises:
        DataError: missing, damaged, with objects in it, or arrays that are no images and labels.
    """
    path = path.expanduser()
    arrays = read_arrays(path, ("x_train", "y_train", "x_test", "y_test"), optional=("x_val", "y_val"))
    names = [part for part in ("train", "test", "val") if f"x_{part}" in arrays or f"y_{part}" in arrays]
    if "val" in names and not {"x_val", "y_val"} <= arrays.keys():
        raise DataError(f"{path} has one of x_val and y_val; it needs both or none of them")
    labels = {part: _labels(arrays[f"y_{part}"], path) for part in names}
    count = _classes(labels, path)
    classes = tuple(str(label) for label in range(count))
    parts = [ImageData(_channels_first(arrays[f"x_{part}"], path), labels[part], classes) for part in names]
    return TrainTest(*parts).checked(str(path))


def _classes(labels: dict[str, torch.Tensor], path: Path) -> int:
    """Return how many classes there are, each of them with a training image, and no label beyond them in any part."""
    for part, found in labels.items():
        if found.numel() and int(found.min()) < 0:
            raise DataError(f"{path}: y_{part} has the label {int(found.min())}; number the classes from 0")
    train = labels["train"]
    count = 1 + int(train.max()) if len(train) else 0
    if count > max(len(train), 2):
        raise DataError(
            f"{path} has {len(train)} labels that reach {count - 1}; number the classes from 0 without gaps"
        )
    have = set(train.unique().tolist())
    if missing := [str(label) for label in range(count) if label not in have]:
        raise DataError(
            f"{path}: no training image has the label {', '.join(missing[:5])}, and some have {count - 1}; number "
            "the classes from 0 without gaps, and give each of them training images"
        )
    for part, found in labels.items():
        if train.numel() and found.numel() and int(found.max()) >= count:
            raise DataError(
                f"{path}: y_{part} has the label {int(found.max())}, and training images have 0 to {count - 1}; "
                "number the classes from 0 without gaps, and give each of them training images"
            )
    return count


def _channels_first(array: np.ndarray, path: Path) -> torch.Tensor:
    if array.dtype != np.uint8:
        raise DataError(f"{path}: images must be uint8 in 0..255, not {array.dtype}")
    if array.ndim == 3:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim == 4 and array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3):
        array = np.moveaxis(array, -1, 1)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise DataError(f"{path}: images must be (N, H, W), (N, H, W, 3) or (N, 3, H, W), not {array.shape}")
    if array.shape[1] == 1:
        array = np.repeat(array, 3, axis=1)
    return torch.from_numpy(np.ascontiguousarray(array))


def _labels(array: np.ndarray, path: Path) -> torch.Tensor:
    if array.dtype.kind not in "iu":
        raise DataError(f"{path}: labels must be whole numbers from 0, not {array.dtype}")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))
