"""The checkpoints of the paper's public code, as svdctl's own networks with the same logits.

Such a file says nothing about its network but in its name; names and shapes of the tensors tell everything, except for
the normalisation, which the code kept in its data.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from svdctl.checkpoint.paper_layers import fit_layers
from svdctl.checkpoint.paper_normalization import HALF, LIPCONV_NORMALIZE, NORMALIZE
from svdctl.errors import CheckpointError, UsageError
from svdctl.layers.normalize import Normalize
from svdctl.models.lipconvnet import LipConvNet
from svdctl.models.vgg import GROUPS, Vgg19
from svdctl.models.wrn import WideResNet, default_conv

Family = Literal["wrn", "vgg19", "lipconv"]
_WRN_STEM = 16
_VGG_FEATURES = [holds for _, repeats in GROUPS for holds in (*(True, True, False) * repeats, False)]
"""Whether a place in the features holds tensors: convolution and BatchNorm do, ReLU and pooling do not."""
_VGG_HEAD = {len(_VGG_FEATURES) + 1 + 2 * place: 2 * place for place in range(3)}
"""Place in the public code's one chain (which flattens in between) to place in the classifier."""


@dataclass(frozen=True)
class PaperArchitecture:
    """What the tensors of a file tell about its network."""

    family: Family
    classes: int
    depth: int
    """WRN: 6n + 4; VGG-19: 19; LipConvNet: 5 times the block size."""
    width: int
    """WRN: the factor on the stages' widths; LipConvNet: channels of the first stage; VGG-19: 1."""

    @property
    def name(self) -> str:
        """Return its name in `network.architecture`."""
        return f"wrn{self.depth}-{self.width}" if self.family == "wrn" else self.family

    @property
    def dataset(self) -> str | None:
        """Return the data set of the paper with that many classes."""
        return {10: "cifar10", 100: "cifar100"}.get(self.classes)


def architecture_of(tensors: Mapping[str, Tensor]) -> PaperArchitecture | None:
    """Return the paper's network that has exactly these names, in shapes that fit; None for any other."""
    names = {name.rpartition(".")[0] for name in tensors}
    return _wrn_of(names, tensors) or _vgg_of(names, tensors) or _lipconv_of(names, tensors)


def normalization(architecture: PaperArchitecture, *, gouk_transforms: bool = False) -> dict[str, Sequence[float]]:
    """Return `mean` and `std` that the public code trained this network with (`network.gouk_transforms`: 0.5 each)."""
    if architecture.family == "lipconv":
        return dict(LIPCONV_NORMALIZE)
    if architecture.family == "vgg19" or gouk_transforms:
        return dict(HALF)
    return dict(NORMALIZE[architecture.dataset or "cifar10"])


PAPER_IMAGE_SHAPE = (3, 32, 32)
"""Of the images of that code, whatever their number of classes: those of CIFAR."""


@dataclass(frozen=True)
class PaperNetwork:
    """A network of the public code, for pixels in [0, 1], and what was found out about it."""

    model: nn.Module
    architecture: PaperArchitecture
    normalize: dict[str, Sequence[float]]
    """Its `mean` and `std`, by channel."""

    @property
    def told(self) -> str:
        """Return what is taken for granted of the file, in words."""
        how = ", ".join(f"{key} {tuple(value)}" for key, value in self.normalize.items())
        found = self.architecture
        return (
            f"a checkpoint of the paper's code, {found.name}, {found.classes} classes; pixels are normalised by {how}"
        )


def open_paper_network(
    tensors: Mapping[str, Tensor],
    *,
    where: str,
    gouk_transforms: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    architecture: str | None = None,
    rank: int | None = None,
) -> PaperNetwork:
    """Return the network of a file of the public code with the normalisation that the code trained it with.

    Args:
        tensors, where, architecture, rank: as of `paper_network`.
        gouk_transforms: it was trained with mean and std 0.5, which its file does not tell.
        mean, std: another normalisation, one number for all channels or one for each.

    Raises:
        CheckpointError: as `paper_network`.
        UsageError: one of `mean` and `std` without the other.
    """
    if (mean is None) != (std is None):
        raise UsageError("`mean` and `std` belong together; give both or neither")
    found = architecture_of(tensors)
    normalize: dict[str, Sequence[float]] = {"mean": mean or (0.0,), "std": std or (1.0,)}
    if found is not None and (mean is None or std is None):
        normalize = normalization(found, gouk_transforms=gouk_transforms)
    normalize = {key: [*value] * (3 // len(value)) for key, value in normalize.items()}
    model = paper_network(tensors, where=where, **normalize, architecture=architecture, rank=rank)
    assert found is not None  # any other file is refused by now
    return PaperNetwork(model, found, normalize)


def paper_network(
    tensors: Mapping[str, Tensor],
    *,
    where: str,
    mean: Sequence[float],
    std: Sequence[float],
    architecture: str | None = None,
    rank: int | None = None,
) -> nn.Module:
    """Return svdctl's network with the weights of a file of the public code, for evaluation on pixels in [0, 1].

    Frames are taken as they are, orthonormal or not; SOC and SOTT layers get the factor with which svdctl's own norms
    give the skew kernel that the public code runs with.

    Args:
        tensors: flat state dict.
        where: the file, for messages.
        mean, std: of the normalisation, by channel (see `normalization`).
        architecture, rank: what the user says about the file; refused when the tensors tell otherwise.

    Raises:
        CheckpointError: of another network, or damaged in a shape.
    """
    found = architecture_of(tensors)
    if found is None:
        raise CheckpointError(
            f"{where} does not have the names and shapes of a network of the paper's code; "
            "give `model = module:factory` for another one"
        )
    if architecture is not None and architecture.lower() != found.name:
        raise CheckpointError(f"{where} holds a {found.name}, not {architecture}; leave `network.architecture` out")
    if rank is not None and rank != (told := _rank_of(tensors, rank)):
        raise CheckpointError(f"{where} has layers of rank {told}, not {rank}; leave `network.rank` out")
    state = _renamed(found, tensors)
    with torch.device("meta"):
        model = _skeleton(found)
        remaining = fit_layers(model, state, where)
    state["normalize.mean"], state["normalize.std"] = (
        torch.tensor(list(values), dtype=torch.float32).reshape(-1, 1, 1) for values in (mean, std)
    )
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        line = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{where} does not fit a {found.name} ({line[:150]}); use another copy") from error
    for settle in remaining:
        settle()
    return model.eval()


def _skeleton(found: PaperArchitecture) -> nn.Module:
    normalize = Normalize((0.0,) * 3, (1.0,) * 3)
    parts: dict[str, Any] = {"classes": found.classes, "conv": default_conv, "normalize": normalize}
    if found.family == "lipconv":
        return LipConvNet(found.depth // 5, in_channels=found.width, **parts)
    if found.family == "vgg19":
        return Vgg19(stem=default_conv, **parts)
    return WideResNet(found.depth, found.width, stem=default_conv, **parts)


def _renamed(found: PaperArchitecture, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies, so that the network does not hang on to the file."""
    return {
        _svdctl_name(name) if found.family == "vgg19" else name: (
            tensor.float() if tensor.is_floating_point() else tensor
        ).clone()
        for name, tensor in tensors.items()
    }


def _svdctl_name(name: str) -> str:
    _, place, leaf = name.split(".")
    head = _VGG_HEAD.get(int(place))
    return f"features.{place}.{leaf}" if head is None else f"classifier.{head}.{leaf}"


def _rank_of(tensors: Mapping[str, Tensor], wanted: int) -> int:
    """Return the rank by the widths of frames; 0 without layers of a rank; `wanted` when no layer is wide enough."""
    ranks = [tensor.shape[-1] for name, tensor in tensors.items() if name.endswith(".K1")]
    ranks += [tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".K3")]
    if ranks:
        return max(ranks)
    return wanted if any(name.endswith(".K2") for name in tensors) else 0


def _widths(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int] | None:
    """Return (I, O) of the convolution of that name, standard or TT; None when there is none."""
    weight, middle = tensors.get(f"{name}.weight"), tensors.get(f"{name}.K2")
    if weight is not None and weight.ndim == 4:
        return weight.shape[1], weight.shape[0]
    if middle is None or middle.ndim != 4:
        return None
    first, last = tensors.get(f"{name}.K1"), tensors.get(f"{name}.K3")
    if first is None or last is None:
        return middle.shape[0], middle.shape[3]
    return first.shape[0], last.shape[-1]


def _wrn_of(names: set[str], tensors: Mapping[str, Tensor]) -> PaperArchitecture | None:
    blocks = _count(names, r"layer1\.(\d+)\.conv1")
    stages = (f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(blocks))
    inner = {f"{stage}.{part}" for stage in stages for part in ("bn1", "conv1", "bn2", "conv2")}
    head = tensors.get("fc.weight")
    if not blocks or names != inner | {"conv1", "bn1", "fc"} or head is None or head.ndim != 2:
        return None
    stem, first = _widths(tensors, "conv1"), _widths(tensors, "layer1.0.conv1")
    if stem != (3, _WRN_STEM) or first is None or first[0] != _WRN_STEM or first[1] % 16:
        return None
    return PaperArchitecture("wrn", head.shape[0], 6 * blocks + 4, first[1] // 16)


def _vgg_of(names: set[str], tensors: Mapping[str, Tensor]) -> PaperArchitecture | None:
    features = (place for place, holds in enumerate(_VGG_FEATURES) if holds)
    expected = {f"model.{place}" for place in (*features, *_VGG_HEAD)}
    head = tensors.get(f"model.{max(_VGG_HEAD)}.weight")
    if names != expected or head is None or head.ndim != 2:
        return None
    return PaperArchitecture("vgg19", head.shape[0], 19, 1)


def _lipconv_of(names: set[str], tensors: Mapping[str, Tensor]) -> PaperArchitecture | None:
    blocks = _count(names, r"layer1\.(\d+)\.conv")
    inner = {f"layer{stage}.{block}.conv" for stage in range(1, 6) for block in range(blocks)}
    bias, first = tensors.get("final_conv.bias"), tensors.get(f"layer1.{blocks - 1}.conv.bias")
    if not blocks or names != inner | {"final_conv"} or bias is None or first is None:
        return None
    return PaperArchitecture("lipconv", bias.shape[0], 5 * blocks, first.shape[0] // 2)


def _count(names: Iterable[str], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in names)
