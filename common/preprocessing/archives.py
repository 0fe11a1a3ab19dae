"""Read files of zip and tar archives in place: list the archive once, then read each file at its offset.

The limits on memory hold whatever an archive declares. These members are refused, and the others are still read: names
that lead out of the archive, links, members that share bytes with another, and floods (a huge file packed small).
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pandas as pd

from common.dicom.errors import DicomError
from common.errors import UsageError
from common.preprocessing.packed import BLOCK_BYTES, GZIP_MARK, MARK_END, is_flood, is_scan, no_dicom, within_gzip

LISTED = ("path", "bytes", "mtime_ns")
PACKED = ("offset", "packed_bytes", "method", "crc")
PLAIN = -1  # method of a tar archive's files: unpacked bytes at the offset, without header and checksum
MAX_TABLE_BYTES = 2**28  # of a CSV in an archive; the competition's has 150 MB
MAX_DIRECTORY_BYTES = 2**28  # of a zip archive: two million files
MAX_TAR_HEADER_BYTES = 2**20  # a long name or a list of attributes
MARKED_BYTES = 2**22  # a larger file is unpacked, or counts as an image, only if it has the mark of a scan
MAX_TIME_NS = 2**62
ARCHIVE_SUFFIXES = (".zip", ".tar")  # of files in a folder that are read as archives
UNREAD_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
TAR_MARK = slice(257, 262)
UNREAD_MARKS = {  # first bytes of files that are not read, and what these files are
    GZIP_MARK: "packed by gzip, and no DICOM file",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ\0": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
}
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a zip member: 30 bytes, then its name and an extra field
_ENCRYPTED = 1


def unread_archive(name: str, *, inside: bool = False) -> str:
    """Return why a file whose name is an archive's isn't opened, else "". ``inside``: it is a member of an archive."""
    if name.casefold().endswith(UNREAD_SUFFIXES):
        return "an archive that can't be read in place: unpack it beside"
    if inside and name.casefold().endswith(ARCHIVE_SUFFIXES):
        return "an archive within an archive: unpack the outer one"
    return ""


@dataclass(frozen=True)
class Member:
    """A file within an archive, as the archive's directory lists it."""

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
        """Return the unpacked content as a file. Raise OSError if the archive is damaged."""
        if mode != "rb":
            raise ValueError(f"a file in an archive is only read, not opened as {mode!r}")
        try:
            return io.BytesIO(self.read_bytes(MAX_TABLE_BYTES))
        except DicomError as error:
            raise OSError(errno.EIO, str(error), str(self)) from None

    def read_bytes(self, limit: int = MAX_TABLE_BYTES, *, marked: bool = False) -> bytes:
        """Return the unpacked content, at most ``limit`` bytes.

        Raises DicomError for a damaged file, a file that is too large, and a flood. Raises OSError if the archive can't
        be read. With ``marked``, a large file without the mark of a scan is refused after its first bytes.
        """
        if self.file_bytes > limit:
            raise DicomError("too_large", f"{self.file_bytes} bytes; at most {limit} are read")
        if is_flood(self.file_bytes, self.packed_bytes):
            raise DicomError(
                "too_large", f"{self.file_bytes} bytes, packed to {self.packed_bytes}: made to fill memory"
            )
        # A buffer grows in place. Joining blocks would take twice the memory.
        content = io.BytesIO()
        for block in self._unpacked():
            content.write(block)
            if marked and self.file_bytes > MARKED_BYTES and content.tell() >= MARK_END:
                if not is_scan(content.getbuffer()) and content.getbuffer()[:2] != GZIP_MARK:
                    raise no_dicom()
                marked = False
        whole = content.getvalue()
        if len(whole) != self.file_bytes or (self.method != PLAIN and zlib.crc32(whole) != self.crc):
            raise DicomError("unreadable", "the archive is damaged here: length or checksum differ")
        return whole

    def beginning(self) -> bytes:
        """Return the first bytes of the content, up to a scan's mark or as far as they can be read."""
        start = b""
        with suppress(OSError, DicomError):
            for block in self._unpacked():
                start += block
                if len(start) >= MARK_END:
                    break
        return start

    def _unpacked(self) -> Iterator[bytes]:
        """Yield the content in blocks, at most one byte more than the directory declares."""
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            if self.method != PLAIN:
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


class ArchiveTree:
    """The files of an archive, as a :class:`common.preprocessing.sources.Tree`."""

    kind: ClassVar[str]

    def __init__(self, root: Path) -> None:
        """Raise UsageError if ``root`` is no such archive or its directory can't be read."""
        self.root = root
        self.found: list[tuple[Any, ...]] = []
        self.faults: list[tuple[str, str, str]] = []
        try:
            self._read()
        except OSError as error:
            raise UsageError(f"{root}: cannot be read ({error.strerror})") from None
        self.files = listing(self.found, (*LISTED, *PACKED))
        self.refused = refusals(self.faults)

    def _read(self) -> None:
        raise NotImplementedError

    def list(
        self, under: str = "", *, recursive: bool = True, skip: Sequence[Path] = ()
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """See :class:`common.preprocessing.sources.Tree`."""
        files, refused = (
            table[np.array([_is_under(path, under, recursive) for path in table["path"]], dtype=bool)]
            for table in (self.files, self.refused)
        )
        return files.reset_index(drop=True), refused.reset_index(drop=True)

    def find(self, name: str) -> Member | None:
        """See :class:`common.preprocessing.sources.Tree`."""
        place = self.files["path"].searchsorted(name)
        if place == len(self.files) or self.files["path"].iloc[place] != name:
            return None
        return self.file_at(next(self.files.iloc[[place]].itertuples()))

    def has_files(self, under: str, suffix: str) -> bool:
        """See :class:`common.preprocessing.sources.Tree`."""
        return any(path.endswith(suffix) and _is_under(path, under, False) for path in self.files["path"])

    def file_at(self, row: Any) -> Member:
        """See :class:`common.preprocessing.sources.Tree`."""
        return Member(self.root, row.path, row.bytes, row.offset, row.packed_bytes, row.method, row.crc)


class ZipTree(ArchiveTree):
    """A zip archive. Only the directory at its end is read."""

    kind = "zip"

    def _read(self) -> None:
        try:
            with BoundedFile(self.root, MAX_DIRECTORY_BYTES) as file, zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, MemoryError) as error:
            raise UsageError(f"{self.root}: not a whole zip archive ({error}); download or pack it again") from None
        last = {info.filename: number for number, info in enumerate(members)}
        overlapping = _overlapping(members)
        for number, info in enumerate(members):
            if info.is_dir() or is_hidden(info.filename):
                continue
            fault = (
                _zip_fault(info)
                or (("packing", "overlaps another file of the archive") if number in overlapping else None)
                or (_same_name() if last[info.filename] != number else None)
            )
            if fault:
                self.faults.append((info.filename, *fault))
            else:
                self.found.append((info.filename, info.file_size, info.CRC, info.header_offset, info.compress_size,
                                   info.compress_type, info.CRC))  # fmt: skip
        if self._follows_another(members):
            self.faults.append(
                (f"{self.root.name} (its beginning)", "packing", "a cut archive, which holds the one that is read")
            )

    def _follows_another(self, members: Sequence[zipfile.ZipInfo]) -> bool:
        """Whether the file begins with another archive, which was truncated and contains the one that is read."""
        with self.root.open("rb") as file:
            return min((info.header_offset for info in members), default=0) > 0 and file.read(4) == b"PK\3\4"


class TarTree(ArchiveTree):
    """An uncompressed tar archive. Only the headers between its files are read."""

    kind = "tar"

    def _read(self) -> None:
        size = self.root.stat().st_size
        members: dict[str, tuple[Any, ...]] = {}
        fault = ""
        with BoundedFile(self.root, MAX_TAR_HEADER_BYTES) as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    for info in _tar_members(archive):
                        self._add(info, size, members)
                    file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    fault = "a header is damaged; no file behind it can be found"
            except (tarfile.TarError, ValueError, OverflowError, ArithmeticError, LookupError, EOFError, RecursionError,
                    MemoryError) as error:  # fmt: skip
                fault = f"it is cut or damaged ({type(error).__name__}); no file behind that place can be found"
        self.found += members.values()
        if fault and not self.found:
            raise UsageError(f"{self.root}: not a whole tar archive; download or pack it again")
        if fault:
            self.faults.append((f"{self.root.name} (its end)", "packing", fault))

    def _add(self, info: tarfile.TarInfo, size: int, members: dict[str, tuple[Any, ...]]) -> None:
        name = info.name.removeprefix("./")
        if info.isdir() or is_hidden(name):
            return
        fault = name_fault(name) or _tar_fault(info)
        if fault is None and info.offset_data + info.size > size:
            fault = ("unreadable", "the archive is cut here")
        if fault:
            self.faults.append((name, *fault))
            return
        if name in members:  # the last one counts, because tar appends newer versions
            self.faults.append((name, *_same_name()))
        time = min(max(int(info.mtime * 1e9), 0), MAX_TIME_NS)
        members[name] = (name, info.size, time, info.offset_data, info.size, PLAIN, 0)


class BoundedFile(io.BufferedReader):
    """A file that never reads more than ``limit`` bytes at once, whatever its headers declare."""

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(io.FileIO(path))
        self.limit = limit
        self.bytes = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        """Return up to ``size`` bytes, or all that are left if it is negative. Raise ValueError for too many."""
        left = self.bytes - self.tell()
        asked = left if size is None or size < 0 else min(size, left)  # Python allocates before it reads
        if asked > self.limit:
            raise ValueError("a header is too long")
        return super().read(asked)


def _tar_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield an archive's members without keeping them in memory."""
    place = -1
    while (info := archive.next()) is not None:
        archive.members.clear()
        if info.size < 0 or archive.offset <= place:  # such a length leads back, into an endless loop
            raise tarfile.ReadError("a negative length")
        place = archive.offset
        yield info


def is_hidden(name: str) -> bool:
    """Whether a file or one of its folders begins with a dot."""
    return any(part.startswith(".") for part in name.split("/") if part != "..")


def name_fault(name: str) -> tuple[str, str] | None:
    """Return the reason and message if a member's name is refused, else None."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in name or "\\" in name:
        return "name", "the name leads out of the archive"
    message = unread_archive(name, inside=True)
    return ("archive", message) if message else None


def _same_name() -> tuple[str, str]:
    return "duplicate", "the archive holds another file of this name"


def _tar_fault(info: tarfile.TarInfo) -> tuple[str, str] | None:
    if info.issym() or info.islnk():
        return "link", "a link within an archive"
    if info.issparse():
        return "packing", "packed as a sparse file"
    return None if info.isreg() else ("special", "a pipe, socket or device, not a file")


def _zip_fault(info: zipfile.ZipInfo) -> tuple[str, str] | None:
    fault = name_fault(info.orig_filename)
    if fault is not None:
        return fault
    if stat.S_ISLNK(info.external_attr >> 16):
        return "link", "a link within an archive"
    if info.flag_bits & _ENCRYPTED:
        return "packing", "encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "packing", "packed by another method than deflate"
    return None


def _overlapping(members: Sequence[zipfile.ZipInfo]) -> set[int]:
    """Return the indices of members that share packed bytes: a way to make many large files of a small archive."""
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


def _is_under(path: str, under: str, recursive: bool) -> bool:
    if under and not path.startswith(f"{under}/"):
        return False
    return recursive or "/" not in path[len(under) + 1 if under else 0 :]


def listing(rows: Sequence[tuple[Any, ...]], columns: Sequence[str]) -> pd.DataFrame:
    """Return rows as a table of files, sorted by path. All other columns are int64."""
    values = list(zip(*rows, strict=True)) or [()] * len(columns)
    table = {
        name: np.array(column, dtype=object if name == "path" else np.int64)
        for name, column in zip(columns, values, strict=True)
    }
    return pd.DataFrame(table).sort_values("path", ignore_index=True)


def refusals(rows: Sequence[tuple[str, str, str]]) -> pd.DataFrame:
    """Return refused files (path, reason, message) as a table, sorted by path."""
    return pd.DataFrame(rows, columns=["path", "reason", "message"], dtype=object).sort_values(
        "path", ignore_index=True
    )


def beginning(path: Path) -> bytes:
    """Return a file's first bytes, which tell :func:`open_archive` and ``has_mark`` what it is."""
    with path.open("rb") as file:
        return file.read(BLOCK_BYTES)


def is_archive(start: bytes) -> bool:
    """Whether a file that begins with ``start`` is read as an archive."""
    return start[TAR_MARK] == b"ustar" or start.startswith(b"PK")


def open_archive(path: Path, start: bytes) -> ArchiveTree:
    """Return the archive in a file that begins with ``start``. UsageError says what any other file is."""
    suffix = PurePosixPath(path.name.casefold()).suffix
    if start[TAR_MARK] == b"ustar" or (suffix == ".tar" and not start.startswith(b"PK")):  # the oldest have no mark
        return TarTree(path)
    if start.startswith(b"PK") or suffix == ".zip":
        return ZipTree(path)
    if within_gzip(start)[TAR_MARK] == b"ustar":
        raise UsageError(
            f"{path}: a tar archive packed by gzip, which can't be read in place: gunzip makes a tar archive of it, "
            "which can, or unpack it and name the folder"
        )
    for mark, what in UNREAD_MARKS.items():
        if start.startswith(mark):
            raise UsageError(f"{path}: {what}, which can't be read in place: unpack it and name the folder")
    raise UsageError(f"{path}: neither a folder, a DICOM file (the mark DICM is missing) nor a zip or tar archive")
