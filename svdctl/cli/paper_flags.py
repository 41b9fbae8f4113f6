"""The paper's code: what it assumes when a flag is not given, and how it spells kinds of control and of layers."""

from collections.abc import Mapping
from typing import Any

from svdctl.checkpoint.paper_normalization import HALF, NORMALIZE
from svdctl.config.presets import preset_folder, read_toml

CLIPPING = {
    "divide-by-largest": "divide",
    "divide-by-exact-largest": "divide-exact",
    "divide-each-by-largest": "divide-each",
}
CLIPPING_WORDS = ("clip", "assign", *CLIPPING, "none")
LAYERS = {"skew": "soc"}
PEAK_MOMENTUM = 0.8
"""Where the rate of the cyclic schedule is highest."""
POINTWISE_SCALE = 0.7
"""Factor on the skew kernels of SOTT's 1x1 layers."""


def paper_defaults(given: Mapping[str, Any], *, lipconv: bool) -> dict[str, Any]:
    """Return the defaults of a training command, `presets/defaults/`, as data, layer and optimiser change them.

    Data that the paper does not know are normalised by 0.5; digits are not mirrored, since that makes another sign.
    Of LipConvNets only those of SOC layers have weight decay, and Adam has none: the paper's code passes it none.
    """
    wide = "vgg" if str(given.get("architecture")).startswith("vgg") else "wrn"
    file = preset_folder() / "defaults" / f"{'lipconv' if lipconv else wide}.toml"
    table = read_toml(file, str(file))
    adam, frames = table.pop("adam", None), table.pop("frames")
    data = str(given.get("dataset", "cifar10")).partition(":")[0]
    table["augment"]["flip"] = data != "digits"
    table.setdefault("normalize", NORMALIZE.get(data, HALF))
    layer = str(given.get("conv_type", given.get("new_layer", "standard")))
    table["layer"] = {"kind": LAYERS.get(layer, layer), **({"frames": frames} if layer in ("tt", "sott") else {})}
    if layer == "sott":
        table["layer"]["pointwise_scale"] = POINTWISE_SCALE
    if lipconv and LAYERS.get(layer, layer) != "soc":
        table["optimizer"]["weight_decay"] = 0.0
    if adam is not None and str(given.get("opt", "sgd")).lower() == "adam":
        table["optimizer"] = adam
    return table
