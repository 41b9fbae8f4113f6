"""Files of images: where each of them lies, what it is called, and what tells that it has not changed."""

import hashlib
import os
import unicodedata
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor


@dataclass(eq=False)
class ImageFiles:
    """A growing list of files; names without their folders, as there may be millions of them.

    Attributes:
        folders: paths of the folders, as they are opened.
        shown: the same relative to the folder of the data set, with slashes.
        folder_of: number of the folder of each file.
        names: of the files in their folders.
        sizes: in bytes.
    """

    folders: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    folder_of: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    _stamp: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def __len__(self) -> int:
        return len(self.names)

    def add_folder(self, path: str, shown: str, files: list[tuple[str, os.stat_result]]) -> None:
        """Add files of a folder, each with its state."""
        self._stamp.update(f"{path}\0{len(files)}\0".encode(errors="surrogatepass"))
        self.folders.append(path)
        self.shown.append(shown)
        for name, state in files:
            self.folder_of.append(len(self.folders) - 1)
            self.names.append(name)
            self.sizes.append(state.st_size)
            # The time of a change of the state, and the number of the file, tell of a file that was put in the place of
            # another with its name, size and time, as by unpacking an archive.
            times = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
            self._stamp.update(f"{name}\0{times}\0".encode(errors="surrogatepass"))

    def path(self, row: int) -> str:
        """Return the path of a file."""
        return os.path.join(self.folders[self.folder_of[row]], self.names[row])

    def name(self, row: int) -> str:
        """Return the name of a file relative to the folder of the data set, with slashes."""
        shown = self.shown[self.folder_of[row]]
        return f"{shown}/{self.names[row]}" if shown else self.names[row]

    @property
    def stamp(self) -> str:
        """Return a hash of all paths, sizes and times."""
        return self._stamp.hexdigest()


@dataclass(frozen=True, eq=False)
class FileRows:
    """The files that the images of a part were, or will be, read from.

    Attributes:
        files: all files of the data set.
        rows: number of the file of each image.
        settings: what decides the pixels besides the files.
    """

    files: ImageFiles
    rows: Tensor
    settings: str

    def part(self, index: Tensor) -> Self:
        """Return the files of an index."""
        return replace(self, rows=self.rows[index.cpu()])

    def digest(self, labels: Tensor, head: str) -> str:
        """Return a hash of relative names, sizes and labels, of the settings and of `head`.

        It is the same on every system: names are in Unicode's form NFC, with slashes.
        """
        digest = hashlib.sha256(f"{self.settings}\0{head}\0".encode())
        for row, label in zip(self.rows.tolist(), labels.tolist(), strict=True):
            line = f"{unicodedata.normalize('NFC', self.files.name(row))}\0{self.files.sizes[row]}\0{label}\0"
            digest.update(line.encode(errors="surrogatepass"))
        return digest.hexdigest()
