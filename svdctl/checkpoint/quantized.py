"""Weights that quantisers store: FP8 numbers with a scale are multiplied by it, all others are refused by name."""

import re
from collections.abc import Callable, Iterable

from torch import Tensor

from svdctl.checkpoint.stored_layer import Leaves, StoredLayer, layer_of, without

SCALES = ("weight_scale_inv", "weight_scale", "scale_weight")
"""Names of the numbers that FP8 weights are multiplied by: DeepSeek's, compressed-tensors', ComfyUI's."""
BLOCK = 128
"""Rows and columns that share a number of `weight_scale_inv` in DeepSeek's files."""
_KNOWN = {
    "biases": "MLX",
    **dict.fromkeys(("qweight", "qzeros", "scales", "g_idx"), "GPTQ or AWQ"),
    **dict.fromkeys(("bitsandbytes", "absmax", "quant_map", "nested_absmax", "nested_quant_map"), "bitsandbytes"),
    **dict.fromkeys(("SCB", "CB", "weight_format"), "bitsandbytes"),
    **dict.fromkeys(("input_scale", "scale_input", "input_scale_ub", "input_global_scale"), "a quantiser of inputs"),
    **dict.fromkeys(("input_zero_point", "activation_scale", "act_scale"), "a quantiser of inputs"),
    **dict.fromkeys(("weight_packed", "weight_shape", "weight_zero_point", "weight_g_idx"), "compressed-tensors"),
    **dict.fromkeys(("weight_global_scale",), "compressed-tensors"),
    **dict.fromkeys(("W_q", "zeros"), "HQQ"),
    **dict.fromkeys(("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm", "q_perm"), "EXL2"),
    **dict.fromkeys(("Qidxs", "SU", "SV"), "QuIP#"),
    **dict.fromkeys(("codes", "codebooks"), "AQLM"),
    **dict.fromkeys(("_data", "_scale", "_shift"), "quanto"),
    **dict.fromkeys(("weight_qdata", "_packed_params", "_weight_bias", "zero_point"), "torchao"),
    **dict.fromkeys(("weight_scales", "weight_scale_2"), "a quantiser"),
    **dict.fromkeys(SCALES, "a quantiser"),
}
"""Names of tensors beside a weight, or instead of one, and who writes them."""
_CODES = frozenset({
    "qweight", "weight_packed", "W_q", "q_weight", "Qidxs", "codebooks", "_data", "weight_qdata", "_packed_params",
    "absmax", "quant_map",
})  # fmt: skip
"""Names that take the place of a weight."""


def quantiser_of(names: Iterable[str]) -> str:
    """Return the library that writes tensors of such names; empty if none is known."""
    words = {name.rpartition(".")[2].partition("__")[0] for name in names}
    return next((by for name, by in _KNOWN.items() if name in words), "")


def quantised(module: str, leaves: Leaves) -> StoredLayer | None:
    """Return a layer whose weight is stored as codes: all its tensors, and no operator."""
    codes = [leaf for leaf in leaves if leaf in _CODES]
    beside = [leaf for leaf in leaves if leaf in _KNOWN]
    if not codes and beside and "weight" in leaves and not leaves["weight"].is_floating_point():
        codes = ["weight"]
    if not codes:
        return None
    layer = layer_of(module, leaves, (codes[0], *leaves), "other", f"the name {codes[0]}")
    named = ", ".join(dict.fromkeys([*codes, *beside]))
    return without(
        layer, f"its weight is quantised ({named}, as of {quantiser_of(beside)}), which svdctl does not decode"
    )


def scaled(weight: Tensor, leaves: Leaves) -> tuple[Callable[[], Tensor], str, str] | str | None:
    """Return how to multiply an FP8 weight by the scale beside it in float64, the scale's name, and the rule in words.

    A scale has one number, one for each row of the matrix, or one for each block of 128 x 128.

    Returns:
        None without a scale; a text says why it cannot be applied.
    """
    names = [name for name in SCALES if name in leaves]
    if not names:
        return None
    if len(names) > 1:
        return f"{' and '.join(names)} scale it both, in an order that is not known"
    (name,) = names
    scale = leaves[name]
    if not re.match(r"torch\.float8", str(weight.dtype)) or not scale.is_floating_point():
        return f"{name} stands beside a weight of {weight.dtype} numbers, which svdctl scales only in FP8"
    rows = weight.shape[0] if weight.ndim else 0
    if scale.numel() == 1:
        return (lambda: weight.double() * scale.double().reshape(())), name, f"times {name}"
    if weight.ndim > 1 and scale.numel() == rows and scale.shape[0] == rows:
        shape = (rows, *(1,) * (weight.ndim - 1))
        return (lambda: weight.double() * scale.double().reshape(shape)), name, f"times {name}, by rows"
    if weight.ndim == 2 and tuple(scale.shape) == tuple(-(-n // BLOCK) for n in weight.shape):

        def product() -> Tensor:
            wide = scale.double().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            return weight.double() * wide[: weight.shape[0], : weight.shape[1]]

        return product, name, f"times {name}, in blocks of {BLOCK} x {BLOCK}"
    return f"{name} of shape {tuple(scale.shape)} fits no scaling by rows or in blocks of {BLOCK} x {BLOCK}"
