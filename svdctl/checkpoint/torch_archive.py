"""Files of torch.save, old and new: checked for damage and for what they ask, then loaded by torch, nothing executed.

New files are zip archives with a checksum for each member, which torch writes and does not read. Files of torch < 1.6
are pickles followed by bare numbers: a cut is noticed, a changed number is not.
"""

import io
import mmap
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from svdctl.checkpoint.file_format import Container, container_of
from svdctl.checkpoint.pickles import placeholder_classes, referenced_globals
from svdctl.errors import CheckpointError, first_line

FORMAT, VERSION = "svdctl.checkpoint", 3
"""Format and version in svdctl's own checkpoints; the name never changes."""

MAP_FROM = 64 * 2**20
"""Files from this size on are mapped into memory, so that only what is looked at is read."""
_LEGACY_PICKLES = 5
_END_OF_ARCHIVE = 22
_FOLDER = 0x10
_NO_MEMORY = "{} claims more memory than this machine has free; use a larger one, or another copy if the file is small"


def read_torch(path: Path, container: Container | None = None) -> object:
    """Return what torch.save was given, tensors on the CPU. A large file's tensors are views of the file.

    Raises:
        CheckpointError: foreign, damaged, or only readable by executing what it says.
    """
    container = container or container_of(path)
    if container == "safetensors":
        raise CheckpointError(f"{path} is a safetensors file, not a file that torch.save wrote; give the other one")
    names = _names_in_zip(path) if container == "zip" else _names_in_legacy(path)
    replaced = placeholder_classes(names, str(path))
    mapped = container == "zip" and path.stat().st_size >= MAP_FROM
    with _as_sentences(path), warnings.catch_warnings(), torch.serialization.safe_globals(list(replaced)):
        warnings.simplefilter("ignore")
        if mapped:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:
            contents = torch.load(file, map_location="cpu", weights_only=True)
            # Bytes left over mean that a tensor got none: torch leaves its memory as it was.
            if container == "legacy" and file.tell() != path.stat().st_size:
                raise CheckpointError(f"{path} is damaged: its parts do not add up to its size; use another copy")
    return contents


def is_checkpoint(contents: Mapping[Any, object], path: Path) -> bool:
    """Return whether the contents of a file are those of a checkpoint of svdctl.

    Raises:
        CheckpointError: they are of a newer format.
    """
    version = contents.get("version")
    if contents.get("format") != FORMAT:
        return False
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(f"{path} has format {version}, newer than this svdctl knows ({VERSION}); upgrade svdctl")
    return True


@contextmanager
def _as_sentences(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except MemoryError as error:
        raise CheckpointError(_NO_MEMORY.format(path)) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} cannot be loaded safely ({_first_line(error)}); write it anew by "
            "torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    except Exception as error:
        # torch reports damage by a dozen types of exception, assertions among them, and lack of memory by RuntimeError.
        if "allocate memory" in str(error) or "mmap" in str(error):
            raise CheckpointError(_NO_MEMORY.format(path)) from error
        raise CheckpointError(
            f"{path} is damaged or cannot be loaded safely ({_first_line(error)}); use another copy"
        ) from error


def _first_line(error: Exception) -> str:
    return first_line(error, 150).removesuffix(".")


def _names_in_zip(path: Path) -> set[str]:
    """Check the archive's structure and checksums; then return the names that its pickle refers to."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_structure(path, members)
            root = members[0].filename.partition("/")[0]
            _check_kind(path, root, {member.filename for member in members})
            # torch can leave the checksums out (set_crc32_options); then they are all zero.
            checked = any(member.CRC for member in members)
            damaged = archive.testzip() if checked else None
            if damaged is not None:
                raise CheckpointError(f"{path} is damaged: {damaged} fails its checksum; use another copy")
            contents_info = archive.getinfo(f"{root}/data.pkl")
            if not checked:
                contents_info.CRC = None  # type: ignore[assignment]  # zipfile's own way of saying: do not compare
            contents = archive.read(contents_info)
    # All that zipfile raises of a damaged archive; none is swallowed, each becomes a sentence.
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({_first_line(error)}); use another copy") from error
    return referenced_globals(io.BytesIO(contents), str(path))


def _check_structure(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse all but what torch writes: bare members side by side, so that nothing unfolds beyond the file's size.

    The directory has to end the file and the first member to begin it: then torch's reader, written in another
    language, sees the same members.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END_OF_ARCHIVE))
        ends = file.read().startswith(b"PK\x05\x06")
    begins = bool(members) and min(member.header_offset for member in members) == 0
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(f"{path} is a compressed archive, which torch.save never writes; unpack it first")
    faults = {
        "bytes stand before or after its archive": not (begins and ends),
        "two members of its archive have one name": len({member.filename for member in members}) != len(members),
        # torch's reader takes a member so marked for a folder, and leaves the memory meant for its numbers as it was.
        "a member of its archive is marked as a folder": any(
            member.external_attr & _FOLDER or member.is_dir() for member in members
        ),
        "its members claim more bytes than it has": any(member.file_size != member.compress_size for member in members)
        or sum(member.file_size for member in members) > size,
    }
    for what, is_there in faults.items():
        if is_there:
            raise CheckpointError(f"{path} is damaged: {what}; use another copy")


def _check_kind(path: Path, root: str, names: set[str]) -> None:
    if f"{root}/constants.pkl" in names or any(name.startswith(f"{root}/code/") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript program, which svdctl does not run; where it came from, "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pt') writes its weights"
        )
    if f"{root}/data.pkl" not in names:
        kind = "an archive of numpy arrays" if any(name.endswith(".npy") for name in names) else "another zip archive"
        raise CheckpointError(f"{path} is {kind}, not a file that torch.save wrote; check which file was meant")


def _names_in_legacy(path: Path) -> set[str]:
    names: set[str] = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        # Not the file itself, which would set aside as many bytes as a damaged length says before it reads.
        for _ in range(_LEGACY_PICKLES):
            names |= referenced_globals(mapped, str(path))
    return names
