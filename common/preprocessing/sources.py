"""Where the files to convert lie: a folder tree or a zip archive read in place, and what is refused.

Nothing outside the folder or archive that the user named is ever read: links that lead out and names that climb are
refused by name, before any file is opened.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import pandas as pd

from common.dicom.errors import DicomError
from common.dicom.reading import MAX_FILE_BYTES
from common.errors import UsageError

# Why a file is not even opened; common.dicom has the reasons of those that were.
REFUSALS = ("name", "duplicate", "link", "special", "packing", "unreadable")
LISTED = ("path", "bytes", "mtime_ns")
PACKED = ("offset", "packed_bytes", "method", "crc")
DICOM_MARK = slice(128, 132)  # where a file says that it is one
MAX_TABLE_BYTES = 2**28  # of a CSV in an archive; the competition's has 150 MB
# What unpacks to more than so many times its size is no scan and no table: a flood, made to fill memory or disk.
FLOOD_BYTES, FLOOD_RATIO = 2**25, 100
BLOCK_BYTES = 2**16  # of an archive, unpacked at once
MARKED_BYTES = 2**22  # a larger file is asked for DICOM's mark before it counts or is unpacked as a whole
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a zip member: 30 bytes, then its name and an extra field
_ENCRYPTED = 1


@dataclass(frozen=True)
class ZipMember:
    """A file within a zip archive, as its directory describes it; read without looking at any other."""

    archive: Path
    name: str
    file_bytes: int
    offset: int
    packed_bytes: int
    method: int
    crc: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return the unpacked content as a file; OSError where the archive is damaged."""
        if mode != "rb":
            raise ValueError(f"a file in an archive is only read, not opened as {mode!r}")
        try:
            return io.BytesIO(self.read_bytes(MAX_TABLE_BYTES))
        except DicomError as error:
            raise OSError(errno.EIO, str(error), str(self)) from None

    def read_bytes(self, limit: int = MAX_TABLE_BYTES, *, marked: bool = False) -> bytes:
        """Return the unpacked content; DicomError where it is damaged, OSError where the archive can't be read.

        Never more than ``limit`` bytes are unpacked, whatever the directory promises, and hardly anything of a flood.
        ``marked``: a large file without DICOM's mark is refused at its beginning.
        """
        if self.file_bytes > limit:
            raise DicomError("too_large", f"{self.file_bytes} bytes; at most {limit} are read")
        if self.file_bytes > FLOOD_BYTES and self.file_bytes > FLOOD_RATIO * self.packed_bytes:
            raise DicomError(
                "too_large", f"{self.file_bytes} bytes, packed to {self.packed_bytes}: made to fill memory"
            )
        # Grown in place, where joined blocks would take twice the memory.
        content = io.BytesIO()
        for block in self._unpacked():
            content.write(block)
            if marked and self.file_bytes > MARKED_BYTES and content.tell() >= DICOM_MARK.stop:
                if content.getbuffer()[DICOM_MARK] != b"DICM":
                    raise no_dicom()
                marked = False
        whole = content.getvalue()
        if len(whole) != self.file_bytes or zlib.crc32(whole) != self.crc:
            raise DicomError("unreadable", "the archive is damaged here: length or checksum differ")
        return whole

    def begins_as_dicom(self) -> bool:
        """Whether the content has DICOM's mark; also where it can't be read, which reading it will say."""
        start = b""
        with suppress(OSError, DicomError):
            for block in self._unpacked():
                start += block
                if len(start) >= DICOM_MARK.stop:
                    return start[DICOM_MARK] == b"DICM"
        return True

    def _unpacked(self) -> Iterator[bytes]:
        """Yield the content in blocks, at most a byte more than the directory promises."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            header = file.read(_LOCAL_HEADER.size)
            if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
                raise DicomError("unreadable", "the archive is damaged here")
            name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)[-2:]
            file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
            packed, left = self.packed_bytes, self.file_bytes + 1
            inflater = zlib.decompressobj(-zlib.MAX_WBITS) if self.method == zipfile.ZIP_DEFLATED else None
            while packed > 0 and left > 0 and (block := file.read(min(packed, BLOCK_BYTES))):
                packed -= len(block)
                try:
                    block = block[:left] if inflater is None else inflater.decompress(block, left)
                except zlib.error:
                    raise DicomError("unreadable", "the archive is damaged here") from None
                left -= len(block)
                yield block


SourceFile = Path | ZipMember


def announce(source: SourceFile) -> None:
    """Tell the operating system that a file will be read soon; nothing more, and nothing where it can't be."""
    if isinstance(source, ZipMember):
        return
    with suppress(OSError):
        handle = os.open(source, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not stop us here
        with suppress(OSError):
            os.posix_fadvise(handle, 0, MAX_FILE_BYTES, os.POSIX_FADV_WILLNEED)
        os.close(handle)


def read_source(source: SourceFile, limit: int = MAX_FILE_BYTES) -> bytes:
    """Return a file's content, at most ``limit`` bytes; :class:`DicomError` where it can't be read or is larger."""
    try:
        if isinstance(source, ZipMember):
            return source.read_bytes(limit, marked=True)
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DicomError("unreadable", "not a regular file")
        if status.st_size <= limit:
            return source.read_bytes()
        if not begins_as_dicom(source):
            raise no_dicom()
        raise DicomError("too_large", f"{status.st_size} bytes; at most {limit} are read")
    except OSError as error:
        raise DicomError("unreadable", f"cannot be opened ({error.strerror})") from None


def begins_as_dicom(source: SourceFile) -> bool:
    """Whether a file has DICOM's mark; OSError where it can't be opened."""
    if isinstance(source, ZipMember):
        return source.begins_as_dicom()
    with source.open("rb") as file:
        return file.read(DICOM_MARK.stop)[DICOM_MARK] == b"DICM"


def no_dicom() -> DicomError:
    """Return what is said of a file without DICOM's mark."""
    return DicomError("not_dicom", "not a DICOM file: the mark DICM is missing")


def can_be_image(source: SourceFile, file_bytes: int) -> bool:
    """Whether a file may give an image, by its size and, if it is a large one, by its beginning."""
    if file_bytes <= MARKED_BYTES:
        return True
    if file_bytes > MAX_FILE_BYTES:
        return False
    if isinstance(source, ZipMember) and file_bytes > FLOOD_BYTES and file_bytes > FLOOD_RATIO * source.packed_bytes:
        return False
    try:
        return begins_as_dicom(source)
    except OSError:
        return False


class Tree(Protocol):
    """A folder or archive. Names are relative to its root, with ``/`` between their parts."""

    root: Path

    def list(
        self, under: str = "", *, recursive: bool = True, skip: Sequence[Path] = ()
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the files below ``under``, sorted by path, and those that are refused (path, reason, message).

        The former have path, bytes, mtime_ns (of an archive's member its checksum: either changes with the content)
        and what :meth:`file_at` needs. Hidden files and folders (a dot first) are left out, and those
        of ``skip``.
        """
        ...

    def find(self, name: str) -> SourceFile | None:
        """Return the file of this name, None where there is none."""
        ...

    def has_files(self, under: str, suffix: str) -> bool:
        """Whether a file directly in ``under`` ends in ``suffix``."""
        ...

    def file_at(self, row: Any) -> SourceFile:
        """Return the file of a row of :meth:`list`."""
        ...


class FolderTree:
    """A folder with everything below it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(
        self, under: str = "", *, recursive: bool = True, skip: Sequence[Path] = ()
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """See :class:`Tree`. Links to files within ``under`` are followed, links to folders are not."""
        top = self.root / under
        real_top = os.path.realpath(top)
        found: list[tuple[str, int, int]] = []
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
                    if stat.S_ISREG(status.st_mode):
                        found.append((name, status.st_size, status.st_mtime_ns))
                    else:
                        refused.append((name, "special", "a pipe, socket or device, not a file"))
        return _listing(found, LISTED), _refusals(refused)

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
        return self.root / row.path


class ZipTree:
    """A zip archive, read in place: its directory once, then each file by its place in the archive."""

    def __init__(self, root: Path) -> None:
        """UsageError where ``root`` is no zip archive or its directory can't be read."""
        self.root = root
        try:
            with zipfile.ZipFile(root) as archive:
                members = archive.infolist()
        except OSError as error:
            raise UsageError(f"{root}: cannot be read ({error.strerror})") from None
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise UsageError(f"{root}: not a whole zip archive ({error}); download or pack it again") from None
        last = {info.filename: number for number, info in enumerate(members)}
        overlapping = _overlapping(members)
        found, refused = [], []
        for number, info in enumerate(members):
            if info.is_dir() or any(part.startswith(".") for part in info.filename.split("/") if part != ".."):
                continue
            fault = (
                _member_fault(info)
                or (("packing", "overlaps another file of the archive") if number in overlapping else None)
                or (
                    ("duplicate", "the archive holds another file of this name")
                    if last[info.filename] != number
                    else None
                )
            )
            if fault:
                refused.append((info.filename, *fault))
            else:
                found.append((info.filename, info.file_size, info.CRC, info.header_offset, info.compress_size,
                              info.compress_type, info.CRC))  # fmt: skip
        if _follows_another(root, members):
            refused.append(
                (f"{root.name} (its beginning)", "packing", "a cut archive, which holds the one that is read")
            )
        self.files = _listing(found, (*LISTED, *PACKED))
        self.refused = _refusals(refused)

    def list(
        self, under: str = "", *, recursive: bool = True, skip: Sequence[Path] = ()
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """See :class:`Tree`."""
        files, refused = (
            table[np.array([_is_under(path, under, recursive) for path in table["path"]], dtype=bool)]
            for table in (self.files, self.refused)
        )
        return files.reset_index(drop=True), refused.reset_index(drop=True)

    def find(self, name: str) -> SourceFile | None:
        """See :class:`Tree`."""
        place = self.files["path"].searchsorted(name)
        if place == len(self.files) or self.files["path"].iloc[place] != name:
            return None
        return self.file_at(next(self.files.iloc[[place]].itertuples()))

    def has_files(self, under: str, suffix: str) -> bool:
        """See :class:`Tree`."""
        return any(path.endswith(suffix) and _is_under(path, under, False) for path in self.files["path"])

    def file_at(self, row: Any) -> SourceFile:
        """See :class:`Tree`."""
        return ZipMember(self.root, row.path, row.bytes, row.offset, row.packed_bytes, row.method, row.crc)


def open_tree(path: Path) -> Tree | None:
    """Return the tree at ``path``: a folder or a zip archive; None where there is neither."""
    if path.is_dir():
        return FolderTree(path)
    if path.is_file():
        return ZipTree(path)
    return None


def list_folder(folder: Path) -> Sequence[os.DirEntry[str]]:
    """Return what lies in a folder; OSError where it can't be listed."""
    with os.scandir(folder) as entries:
        return list(entries)


def printable(path: str) -> str:
    """Return a file's path as it can stand in a CSV: without line breaks, control characters and broken encodings."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def stem(path: str) -> str:
    """Return a file's name without folders and ``.dcm``."""
    name = path.rpartition("/")[2]
    return name[:-4] if name.lower().endswith(".dcm") and len(name) > 4 else name


def _link_fault(entry: os.DirEntry[str], real_top: str) -> str | None:
    """Return why a link is refused; "" for one that needs no word, None for one to follow."""
    target = os.path.realpath(entry.path)
    if os.path.commonpath([target, real_top]) != real_top:
        return "a link that leads out of the source; copy the file, or name its folder as the source"
    if not os.path.exists(target):  # noqa: PTH110
        return "a link to nothing"
    return "" if entry.is_dir() else None  # what lies in the folder is found where it is


def _member_fault(info: zipfile.ZipInfo) -> tuple[str, str] | None:
    """Return why an archive's member is refused: reason and message; None where it isn't."""
    parts = info.orig_filename.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in info.orig_filename or "\\" in info.orig_filename:
        return "name", "the name leads out of the archive"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "link", "a link within an archive"
    if info.flag_bits & _ENCRYPTED:
        return "packing", "encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "packing", "packed by another method than deflate"
    return None


def _overlapping(members: Sequence[zipfile.ZipInfo]) -> set[int]:
    """Return the numbers of the members whose packed bytes run into the next one's, or that stand where another does.

    Many can share their bytes so, and a small archive gives as many large files.
    """
    order = sorted(range(len(members)), key=lambda number: (members[number].header_offset, number))
    found = set()
    for number, following in pairwise(order):
        info, start = members[number], members[following].header_offset
        end = info.header_offset + _LOCAL_HEADER.size + len(info.orig_filename) + info.compress_size
        if start == info.header_offset:
            found.add(following)
        elif end > start:
            found.add(number)
    return found


def _follows_another(root: Path, members: Sequence[zipfile.ZipInfo]) -> bool:
    """Whether another archive's members stand before the first of these, as where that was cut after a whole one."""
    with root.open("rb") as file:
        return min((info.header_offset for info in members), default=0) > 0 and file.read(4) == b"PK\3\4"


def _is_under(path: str, under: str, recursive: bool) -> bool:
    if under and not path.startswith(f"{under}/"):
        return False
    return recursive or "/" not in path[len(under) + 1 if under else 0 :]


def _listing(rows: Sequence[tuple[Any, ...]], columns: Sequence[str]) -> pd.DataFrame:
    values = list(zip(*rows, strict=True)) or [()] * len(columns)
    table = {
        name: np.array(column, dtype=object if name == "path" else np.int64)
        for name, column in zip(columns, values, strict=True)
    }
    return pd.DataFrame(table).sort_values("path", ignore_index=True)


def _refusals(rows: Sequence[tuple[str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["path", "reason", "message"], dtype=object).sort_values(
        "path", ignore_index=True
    )
