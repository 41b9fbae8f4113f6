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


def paper_defaults(given: Mapping[str, Any], *, lipconv: bool) -> dict[str, Any]:
    """Return the defaults of a training command, `presets/defaults/`, as data, layer and optimiser change them.

    Data that the paper does not know are normalised by 0.5; digits are not mirrored, since that makes another sign.
    SOTT has no weight decay, nor has Adam, to which the paper's code passes none.
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
        table["optimizer"]["weight_decay"] = 0.0
    if str(given.get("opt", "sgd")).lower() == "adam":
        table["optimizer"] = adam
    return table
