"""List and read the files of a source: a folder with the archives in it, an archive, or a single file.

Nothing outside the source is ever read. Links and names that lead out of it are refused before a file is opened.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from common.dicom.elements import MAX_FILE_BYTES
from common.dicom.errors import DicomError
from common.errors import UsageError
from common.preprocessing.archives import (
    ARCHIVE_SUFFIXES,
    LISTED,
    MARKED_BYTES,
    Member,
    beginning,
    is_archive,
    listing,
    open_archive,
    refusals,
    unread_archive,
)
from common.preprocessing.packed import DICOM_MARK, GZIP_MARK, gunzip, has_mark, is_flood, no_dicom

GZIP_LENGTH = struct.Struct("<L")  # the last bytes of a gzip file

SourceFile = Path | Member


def announce(source: SourceFile) -> None:
    """Tell the operating system that a file will be read soon. Do nothing if it can't be opened."""
    if isinstance(source, Member):
        return
    with suppress(OSError):
        handle = os.open(source, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe must not block
        with suppress(OSError):
            os.posix_fadvise(handle, 0, MAX_FILE_BYTES, os.POSIX_FADV_WILLNEED)
        os.close(handle)


def read_source(source: SourceFile, limit: int = MAX_FILE_BYTES) -> bytes:
    """Return a file's content, at most ``limit`` bytes. Unpack a DICOM or NIfTI file that is packed by gzip.

    Raises :class:`DicomError` if the file can't be read or is larger.
    """
    content = _stored(source, limit)
    packed = content[: len(GZIP_MARK)] == GZIP_MARK and content[DICOM_MARK] != b"DICM"
    return gunzip(content, limit) if packed else content


def _stored(source: SourceFile, limit: int) -> bytes:
    try:
        if isinstance(source, Member):
            return source.read_bytes(limit, marked=True)
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DicomError("unreadable", "not a regular file")
        if status.st_size <= limit:
            return source.read_bytes()
        if not begins_as_scan(source):
            raise no_dicom()
        raise DicomError("too_large", f"{status.st_size} bytes; at most {limit} are read")
    except OSError as error:
        raise DicomError("unreadable", f"cannot be opened ({error.strerror})") from None


def begins_as_scan(source: SourceFile) -> bool:
    """Whether a file, or the content of a gzip file, has a mark of a scan. Raise OSError if it can't be opened.

    Also True for an archive's member that can't be read: reading it reports the fault.
    """
    if not isinstance(source, Member):
        return has_mark(beginning(source))
    start = source.beginning()
    return not start or has_mark(start)


def can_be_image(source: SourceFile, file_bytes: int) -> bool:
    """Whether a file may give an image, by its size and, if it is large, by its first bytes."""
    if file_bytes <= MARKED_BYTES:
        return True
    if file_bytes > MAX_FILE_BYTES:
        return False
    if isinstance(source, Member) and is_flood(file_bytes, source.packed_bytes):
        return False
    try:
        return begins_as_scan(source)
    except OSError:
        return False


class Tree(Protocol):
    """A folder, an archive or a single file. Names are relative to its root, with ``/`` between their parts."""

    root: Path

    def list(
        self, under: str = "", *, recursive: bool = True, skip: Sequence[Path] = ()
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the files below ``under``, sorted by path, and the refused files (path, reason, message).

        The files have the columns path, bytes, mtime_ns and those that :meth:`file_at` needs. For a zip archive's
        member mtime_ns holds its checksum, which also changes with the content. Hidden files and folders, whose names
        begin with a dot, are left out, and so are those of ``skip``.
        """
        ...

    def find(self, name: str) -> SourceFile | None:
        """Return the file of this name, None if there is none."""
        ...

    def has_files(self, under: str, suffix: str) -> bool:
        """Whether ``under`` directly holds a file whose name ends in ``suffix``."""
        ...

    def file_at(self, row: Any) -> SourceFile:
        """Return the file of a row of :meth:`list`."""
        ...


class FolderTree:
    """A folder with everything below it, including the contents of zip and tar archives."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(
        self, under: str = "", *, recursive: bool = True, skip: Sequence[Path] = ()
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """See :class:`Tree`. Links to files within ``under`` are followed, links to folders are not.

        With ``recursive``, archives are opened too. The path of a file in one begins with the archive's name.
        """
        top = self.root / under
        real_top = os.path.realpath(top)
        found: list[tuple[str, int, int]] = []
        packed: list[pd.DataFrame] = []
        refused: list[tuple[str, str, str]] = []
        own = {os.path.realpath(path) for path in skip}
        folders = [under.rstrip("/")]
        while folders:
            folder = folders.pop()
            try:
                entries = list_folder(self.root / folder)
            except OSError as error:
                refused.append((folder or ".", "unreadable", f"the folder can't be listed ({error.strerror})"))
                continue
            for entry in entries:
                if entry.name.startswith(".") or (own and os.path.realpath(entry.path) in own):
                    continue
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_symlink() and (fault := _link_fault(entry, real_top)) is not None:
                    if fault:
                        refused.append((name, "link", fault))
                elif entry.is_dir():
                    if recursive:
                        folders.append(name)
                else:
                    try:
                        status = entry.stat()
                    except OSError as error:
                        refused.append((name, "unreadable", f"can't be looked at ({error.strerror})"))
                        continue
                    if not stat.S_ISREG(status.st_mode):
                        refused.append((name, "special", "a pipe, socket or device, not a file"))
                    elif recursive and (message := unread_archive(entry.name)):
                        refused.append((name, "archive", message))
                    elif not recursive or not self._look_into(name, packed, refused):
                        size = _unpacked_size(Path(entry.path), status.st_size)
                        found.append((name, size, status.st_mtime_ns))
        files = listing(found, LISTED)
        if packed:
            plain = files.assign(offset=0, packed_bytes=0, method=0, crc=0, archive="")
            files = pd.concat([plain, *packed]).sort_values("path", ignore_index=True)
        return files, refusals(refused)

    def _look_into(self, name: str, packed: list[pd.DataFrame], refused: list[tuple[str, str, str]]) -> bool:
        """Add the files of the archive ``name`` to ``packed`` and ``refused``. Return False if it is no archive."""
        if not name.casefold().endswith(ARCHIVE_SUFFIXES):
            return False
        try:
            start = beginning(self.root / name)
            if not is_archive(start):
                return False
            tree = open_archive(self.root / name, start)
        except OSError:
            return False  # reading it as a file reports the error
        except UsageError as error:
            refused.append((name, "packing", str(error).removeprefix(f"{self.root / name}: ")))
            return True
        packed.append(tree.files.assign(path=[f"{name}/{path}" for path in tree.files["path"]], archive=name))
        refused += [(f"{name}/{path}", reason, message) for path, reason, message in tree.refused.to_numpy()]
        if tree.files.empty and tree.refused.empty:
            refused.append((name, "not_dicom", "an archive without files"))
        return True

    def find(self, name: str) -> SourceFile | None:
        """See :class:`Tree`."""
        path = self.root / name
        return path if path.is_file() else None

    def has_files(self, under: str, suffix: str) -> bool:
        """See :class:`Tree`."""
        try:
            with os.scandir(self.root / under) as entries:
                return any(entry.name.endswith(suffix) and not entry.is_dir() for entry in entries)
        except OSError:
            return False

    def file_at(self, row: Any) -> SourceFile:
        """See :class:`Tree`."""
        archive = getattr(row, "archive", "")
        if not archive:
            return self.root / row.path
        name = row.path[len(archive) + 1 :]
        return Member(self.root / archive, name, row.bytes, row.offset, row.packed_bytes, row.method, row.crc)


class FileTree:
    """A single file, under its own name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(
        self, under: str = "", *, recursive: bool = True, skip: Sequence[Path] = ()
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """See :class:`Tree`."""
        status = self.root.stat()
        row = (self.root.name, _unpacked_size(self.root, status.st_size), status.st_mtime_ns)
        return listing([row] if not under else [], LISTED), refusals([])

    def find(self, name: str) -> SourceFile | None:
        """See :class:`Tree`."""
        return None

    def has_files(self, under: str, suffix: str) -> bool:
        """See :class:`Tree`."""
        return False

    def file_at(self, row: Any) -> SourceFile:
        """See :class:`Tree`."""
        return self.root


def open_tree(path: Path) -> Tree | None:
    """Return the tree at ``path``: a folder, a zip or tar archive, or a DICOM or NIfTI file, perhaps packed by gzip.

    Return None if nothing is there. Raise UsageError that says what is there if it is none of these, or damaged.
    """
    if path.is_dir():
        return FolderTree(path)
    if not path.is_file():
        return None
    try:
        start = beginning(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    if has_mark(start) and not start.startswith(b"PK"):
        return FileTree(path)
    return open_archive(path, start)


def _unpacked_size(path: Path, size: int) -> int:
    """Return the unpacked size that a gzip file gives in its last bytes, or the size of any other file."""
    if not path.name.casefold().endswith(".gz") or size <= GZIP_LENGTH.size:
        return size
    try:
        with path.open("rb") as file:
            marked = file.read(len(GZIP_MARK)) == GZIP_MARK
            file.seek(-GZIP_LENGTH.size, os.SEEK_END)
            return max(GZIP_LENGTH.unpack(file.read(GZIP_LENGTH.size))[0], size) if marked else size
    except OSError:
        return size


def list_folder(folder: Path) -> Sequence[os.DirEntry[str]]:
    """Return the entries of a folder. Raise OSError if it can't be listed."""
    with os.scandir(folder) as entries:
        return list(entries)


def printable(path: str) -> str:
    """Return a path that is safe in a CSV: with line breaks, control characters and broken encodings escaped."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def stem(path: str) -> str:
    """Return a file's name without folders and ``.dcm``."""
    name = path.rpartition("/")[2]
    return name[:-4] if name.lower().endswith(".dcm") and len(name) > 4 else name


def _link_fault(entry: os.DirEntry[str], real_top: str) -> str | None:
    """Return why a link is refused, "" for one to ignore silently, None for one to follow."""
    target = os.path.realpath(entry.path)
    if os.path.commonpath([target, real_top]) != real_top:
        return "a link that leads out of the source; copy the file, or name its folder as the source"
    if not os.path.exists(target):  # noqa: PTH110
        return "a link to nothing"
    return "" if entry.is_dir() else None  # the folder's files are found at their real place
