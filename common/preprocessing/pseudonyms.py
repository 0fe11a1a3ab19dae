"""Pseudonyms for what identifies a patient: keyed hashes that are the same in every run, from a key the user keeps."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from common.dicom.elements import all_elements
from common.errors import UsageError, WorkError

if TYPE_CHECKING:
    from pydicom import Dataset

KEY_BYTES = 32
HASH_BYTES = 8  # a million values meet with a chance of 3e-8
TELLING_LENGTH = 6  # shorter texts stand in too many names by chance
SHORTEST = 3  # of what is left of a telling text without its accents, spaces and signs
TEXT_KINDS = ("AE", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "UC", "UI", "UT")  # value representations, PS3.5 6.2
STANDARD_UIDS = "1.2.840.10008."
_NOT_TELLING = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Pseudonyms:
    """Replaces values by keyed hashes; what matches ``public`` (a regular expression) is a pseudonym already and stays.

    Without the key nobody can try out which patient's number gives a hash, however few numbers there are.
    """

    key: bytes = field(repr=False)
    public: str | None = None

    def of(self, kind: str, value: str) -> str:
        """Return ``<kind>_<16 hexadecimal digits>`` for a value, "" for none; of two kinds the same value's differ."""
        if not value or self.is_public(value):
            return value
        data = value.encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(data, key=self.key, person=kind.encode(), digest_size=HASH_BYTES)
        return f"{kind}_{digest.hexdigest()}"

    def name(self, image_id: str, dataset: Dataset) -> str:
        """Return an image's id, or its pseudonym where it contains a text of its file's header.

        That is any UID but the standard's own, part of a person's name, number, date or free text of six characters or
        more. Compared are letters a-z and digits, whatever their case and what stands between them. DicomError for a
        header of too many elements.
        """
        bare = _bare(image_id)
        if self.is_public(image_id) or len(bare) < SHORTEST:
            return image_id
        for text in identifying_texts(dataset):
            if len(text) >= TELLING_LENGTH and len(_bare(text)) >= SHORTEST and _bare(text) in bare:
                return self.of("image", image_id)
        return image_id

    def is_public(self, value: str) -> bool:
        """Whether a value is a pseudonym already."""
        return self.public is not None and re.fullmatch(self.public, value) is not None

    @property
    def fingerprint(self) -> str:
        """A text that tells two keys apart and gives neither away."""
        return hashlib.blake2b(b"fingerprint", key=self.key, digest_size=HASH_BYTES).hexdigest()


def identifying_texts(dataset: Dataset) -> Iterator[str]:
    """Yield the texts of a header that may say who the patient is, also those in sequences and the file's meta part.

    Names come in parts. A value that can't be read is left out: nobody can compare it. DicomError for too many.
    """
    from pydicom.multival import MultiValue

    for part in (getattr(dataset, "file_meta", None), dataset):
        for element in all_elements(part) if part is not None else ():
            if element.VR in TEXT_KINDS:
                values = element.value if isinstance(element.value, MultiValue | list) else [element.value]
                for value in values:
                    yield from _parts(str(value or ""), element.VR)


def _parts(value: str, kind: str) -> list[str]:
    if kind == "UI":
        return [] if value.startswith(STANDARD_UIDS) else [value]
    return re.split(r"[\^= ,.;]+", value) if kind == "PN" else [value.strip()]


def load_key(path: Path) -> bytes:
    """Return the key in ``path``, made there on first use and readable by its owner alone (mode 600).

    Raises UsageError for a file that is no key, WorkError where it can't be made. Two runs that start at once get the
    same key.
    """
    try:
        if not path.exists():
            _make_key(path)
        text = path.read_text(encoding="ascii").strip()
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        key = bytes.fromhex(text)
    except OSError as error:
        raise WorkError(f"{path}: the key of the pseudonyms can't be read or made ({error.strerror})") from None
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UsageError(
            f"{path}: not a key of pseudonyms; restore it from a copy, or remove it: all pseudonyms then become others"
        )
    return key


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 600
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another run was first
        except OSError:  # a disk without hard links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _bare(text: str) -> str:
    return _NOT_TELLING.sub("", text.lower())
