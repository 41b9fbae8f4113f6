"""Networks that svdctl does not define, as an architecture: torchvision's, timm's, and those of users' factories."""

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from svdctl.config.model_config import ModelConfig
from svdctl.errors import UsageError
from svdctl.models.architecture import Architecture, register_architecture
from svdctl.plugins import granted_factory, is_factory

if TYPE_CHECKING:
    from torch import nn

    from svdctl.layers.layer_ops import ConvFactory
    from svdctl.layers.normalize import Normalize

FORMS = "torchvision:NAME (torchvision:resnet18), timm:NAME, package.module:factory or ./file.py:factory"


class External(ModelConfig):
    """A network of torchvision, of timm, or of a user's factory."""

    kind: Literal["external"] = "external"
    network: Annotated[str, Field(max_length=1000)]
    """torchvision:NAME, timm:NAME, package.module:factory or ./file.py:factory."""
    image_size: Annotated[int, Field(gt=0, le=2**14)] | None = None
    """Side of the images for which a network of one image size is made, as vit_b_16, at most 16,384; absent: its own
    default."""

    @field_validator("network")
    @classmethod
    def _form(cls, network: str) -> str:
        library = r"(torchvision|timm):[A-Za-z0-9_]+"
        factory = r"([^\W\d]\w*(\.[^\W\d]\w*)*|.+\.py):[^\W\d]\w*(\.[^\W\d]\w*)*"
        if not re.fullmatch(factory if is_factory(network) else library, network):
            tagged = re.fullmatch(r"(timm:[A-Za-z0-9_]+)\.[A-Za-z0-9_.]+", network)
            without = f"; without the tag of its weights: {tagged[1]}" if tagged else ""
            raise ValueError(f"`model = {network}`: write it as {FORMS}{without}")
        return network


@register_architecture
class ExternalArchitecture(Architecture):
    """The network behind a normalisation of pixels, in a `Sequential` of `normalize` and `model`."""

    kind = "external"
    config = External
    is_defined_here = False

    def build(
        self,
        config: External,
        *,
        classes: int,
        convs: "Sequence[ConvFactory]",
        stem: "ConvFactory",
        normalize: "Normalize",
        network: "nn.Module | None" = None,
    ) -> "nn.Module":
        """Return the network.

        Args:
            network: what the factory would make, where a user has made it: then nothing is imported.
            config, classes, convs, stem, normalize: as of any architecture.

        Raises:
            UsageError: a factory that the user has not named; there is no such network, or it cannot be made.
        """
        from torch import nn

        from svdctl.models.made_network import make_network, replace_convolutions_

        if network is None:
            name = config.network
            if is_factory(name):
                granted = granted_factory(name)
                if granted is None:
                    raise UsageError(why_not_made(name))
                name = granted
            network = make_network(name, classes=classes, image_size=config.image_size)
        made = nn.Sequential(OrderedDict(normalize=normalize, model=network))
        replace_convolutions_(made, conv=convs[0], first=stem)
        return made

    def name(self, config: External) -> str:
        library, _, name = config.network.rpartition(":")
        return name if is_factory(config.network) else f"{library}'s {name}"

    def why_not_orthogonal(self, layer: str) -> str:
        return (
            f"`layer.kind = {layer}` belongs to LipConvNet; svdctl.orthogonalize_ makes the layers of any network "
            "orthogonal in a loop of one's own"
        )

    def normalization(self, config: External) -> dict[str, list[float]]:
        from svdctl.models.made_network import own_normalization

        if is_factory(config.network):
            return {"mean": [0.0], "std": [1.0]}
        mean, std = own_normalization(config.network)
        return {"mean": list(mean), "std": list(std)}


def is_network(config: ModelConfig, network: str) -> bool:
    """Return whether a name is that of a section's network; of one that a factory makes, the name of any factory."""
    if not isinstance(config, External):
        return False
    return is_factory(network) if is_factory(config.network) else network == config.network


def why_not_made(network: str) -> str:
    """Return why the network of a factory that the user has not named is not made, and what to do."""
    return (
        f"the network is made by {network}, and nothing of a user's code is imported unless you name it; if you trust "
        f"it add `model = {network}`, or in Python give the network: svdctl.load(path, Net())"
    )


def missing_factory(config: Any) -> str | None:
    """Return what a section `model` says of a factory that the user has not named; None: nothing is missing."""
    if not isinstance(config, External) or not is_factory(config.network) or granted_factory(config.network):
        return None
    return why_not_made(config.network)
