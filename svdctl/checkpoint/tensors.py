"""Tensors out of a file, made plain: which hold ordinary numbers, and whether any claims more than the file has."""

import re
from collections.abc import Mapping

from torch import Tensor

from svdctl.checkpoint.pickled_calls import UnreadTensor
from svdctl.errors import CheckpointError
from svdctl.utils.content_hash import content_digest

SMALL = 16 * 2**20
"""Bytes up to which a tensor may repeat its numbers (an expanded view) without being suspect."""
_SHARING = 64
"""How many times the file's own size the tensors of one network may come to, layers sharing numbers being counted."""

_NO_ARITHMETIC = re.compile(r"torch\.(bits\w+|float4\w+|u?int[1-7])")
"""Types of packed numbers, which torch stores and does not even convert."""


def plain(value: Tensor) -> Tensor | str:
    """Return the tensor detached and of the plain class, or why it has no numbers to look at."""
    if isinstance(value, UnreadTensor):
        return value.what
    if _NO_ARITHMETIC.fullmatch(str(value.dtype)):
        return f"a tensor of codes ({str(value.dtype).removeprefix('torch.')}), which torch does not decode"
    return value.detach().as_subclass(Tensor).resolve_conj().resolve_neg()


def holds_weights(tensor: Tensor) -> bool:
    """Return whether a tensor of a state dict may be a weight: not empty, and no integer that counts something."""
    is_counter = tensor.numel() == 1 and tensor.ndim <= 1 and not (tensor.is_floating_point() or tensor.is_complex())
    return tensor.numel() > 0 and not is_counter


def fits_place(given: Tensor, wanted: Tensor) -> bool:
    """Return whether a tensor of a file can take the place of a network's: its shape, and real numbers for real ones.

    Integers in the place of weights are codes of a quantised network, whose scales stand elsewhere; torch would convert
    them as they are, and complex numbers without their imaginary part.
    """
    is_of_its_kind = given.is_floating_point() or not (wanted.is_floating_point() or given.is_complex())
    return given.shape == wanted.shape and is_of_its_kind


def words_of(name: str) -> list[str]:
    """Return the words of a dotted name in lower case: `"blocks.0.layerNorm1"` has blocks, layer and norm."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def check_sizes(tensors: Mapping[str, Tensor], file_size: int, where: str) -> None:
    """Refuse shapes that a few bytes in a file stretch to more memory than any machine has.

    Raises:
        CheckpointError: naming the tensor.
    """
    total = 0
    for name, tensor in tensors.items():
        if isinstance(tensor, UnreadTensor):
            continue
        size = tensor.numel() * tensor.element_size()
        held = min(tensor.untyped_storage().nbytes(), file_size)
        if size > max(held, SMALL):
            raise CheckpointError(
                f"{where} is no file of weights: {name!r} claims {_megabytes(size)}, it has {_megabytes(file_size)}"
            )
        total += size
    if total > _SHARING * file_size + SMALL:
        raise CheckpointError(
            f"{where} is no file of weights: its tensors claim {_megabytes(total)}, it has {_megabytes(file_size)}"
        )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes, in the order of names, whatever file they came from."""
    named = sorted(tensors.items(), key=lambda item: item[0])
    return content_digest(*(p for name, t in named for p in (f"{name}\0{t.dtype}\0{tuple(t.shape)}\0", t)))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
