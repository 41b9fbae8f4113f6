"""The format of a file, by its first bytes; names tell only which file of a folder is meant."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from svdctl.errors import CheckpointError
from svdctl.utils.files import open_regular

Container = Literal["zip", "legacy", "safetensors", "index", "distributed"]
INDEX = ".index.json"
"""End of the names of files that list shards."""
DISTRIBUTED = ".metadata"
"""File of torch.distributed.checkpoint that says what lies where in a folder."""
_WEIGHTS = (
    "model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin",
)  # fmt: skip
"""Weights in folders of Hugging Face's libraries; the first that is there counts, as it does for them."""
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""A pickle of the number that torch wrote first, before its files became zip archives (torch < 1.6)."""
MAX_SAFETENSORS_HEADER = 100_000_000
_FOREIGN = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras?); convert its weights to safetensors or to a torch state dict"),
    (b"\x93NUMPY", "a numpy array; save the weights by torch.save, as a dict from names to tensors"),
    (b"GGUF", "a GGUF file; svdctl reads what torch.save and safetensors write"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"BZh", "compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ\x00", "compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself; run git lfs pull"),
    (b"PK\x05\x06", "an empty zip archive; use another copy"),
)


def weights_of(folder: Path) -> Path | None:
    """Return the file that holds the weights of a folder, or that lists them; None where its name is not known."""
    names = ("last.pt", *(f"{name}{end}" for name in _WEIGHTS for end in ("", INDEX)), DISTRIBUTED)
    return next((folder / name for name in names if (folder / name).exists()), None)


def resolve(path: Path) -> Path:
    """Return the file meant: itself, or that of the folder's weights.

    Raises:
        CheckpointError: missing, unreadable, or no ordinary file.
    """
    try:
        if path.is_dir():
            found = weights_of(path)
            if found is None:
                raise CheckpointError(
                    f"{path} is a folder without last.pt, and without {_WEIGHTS[0]} or {_WEIGHTS[1]} or an index of "
                    "them; give a run folder or a file that holds weights"
                )
            path = found
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        hint = "is a link to nothing" if path.is_symlink() else "does not exist"
        raise CheckpointError(f"{path} {hint}; give a run folder or a file that holds weights") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be opened ({_why(error)}); check its name and permissions") from error
    # A pipe or device would block for ever or never end.
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} is no ordinary file; give a run folder or a file that holds weights")
    return path


def require_existing(paths: Iterable[Path]) -> None:
    """Raise what `resolve` raises of the first path that does not exist: at once, before torch is imported.

    Raises:
        CheckpointError: a path does not exist.
    """
    for path in paths:
        if not os.path.exists(path):
            resolve(path)


def container_of(path: Path) -> Container:
    """Return the way in which the tensors are packed.

    Raises:
        CheckpointError: empty, unreadable or foreign; the sentence names the kind of file where it is known.
    """
    try:
        with open_regular(path) as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({_why(error)}); check its permissions and disk") from error
    if not head:
        raise CheckpointError(f"{path} is empty, as if its writing had been cut off; use another copy")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(LEGACY_MAGIC):
        return "legacy"
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= length <= MAX_SAFETENSORS_HEADER:
        return "safetensors"
    if head.lstrip()[:1] == b"{" and path.name.endswith(INDEX):
        return "index"
    if head[:1] == b"\x80" and b"torch.distributed.checkpoint.metadata" in head:
        return "distributed"
    raise CheckpointError(f"{path} is {_foreign(head)}")


def _foreign(head: bytes) -> str:
    for magic, meaning in _FOREIGN:
        if head.startswith(magic):
            return meaning
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it, or save the weights anew with a torch of this decade"
    if head[:1] == b"\x80":
        return (
            "a pickle that torch.save did not write whole; in the process that made it, write the weights by "
            "torch.save(model.state_dict(), 'weights.pt')"
        )
    if head.lstrip()[:1] in (b"<", b"{", b"["):
        return "a text (a web page or JSON?), not a file of weights; look into it"
    return "not a file of weights that svdctl knows (torch.save, safetensors); check which file was meant"


def _why(error: OSError | ValueError) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
