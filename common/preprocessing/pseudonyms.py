"""Replace what identifies a patient by keyed hashes. The user keeps the key, so every run gives the same pseudonyms."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.cli.console import tell
from common.errors import UsageError, WorkError

KEY_BYTES = 32
HASH_BYTES = 8  # the chance that two of a million values collide is 3e-8
IMAGE, FILE = "image", "file"  # kinds of names besides those of a header
FRAME_DIGITS = 4  # at least, for the frame number after an image's own name
NOT_BESIDE = {"dataset.json": "a dataset", "environment.json": "an experiment"}  # folders that hold these are shared


@dataclass(frozen=True)
class Pseudonyms:
    """Replaces values by keyed hashes. A value that is a pseudonym already stays.

    ``public`` maps a kind of value (image, patient, ...) to a regular expression that matches such pseudonyms. Without
    the key nobody can find the patient number behind a hash by trying all numbers.
    """

    key: bytes = field(repr=False)
    public: Mapping[str, str] = field(default_factory=dict)

    def of(self, kind: str, value: str) -> str:
        """Return ``<kind>_<16 hexadecimal digits>`` for a value, "" for "". The digits depend on the kind, too."""
        if not value or self.is_public(kind, value):
            return value
        data = value.encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(data, key=self.key, person=kind.encode(), digest_size=HASH_BYTES)
        return f"{kind}_{digest.hexdigest()}"

    def image(self, instance: str, frame: int) -> str:
        """Return the id of a frame (1..). ``instance`` is the pseudonym of the file's SOPInstanceUID or path."""
        return self.of(IMAGE, f"{instance}\n{frame}")

    def is_public(self, kind: str, value: str) -> bool:
        """Whether a value is a pseudonym already."""
        return kind in self.public and re.fullmatch(self.public[kind], value) is not None

    @property
    def fingerprint(self) -> str:
        """A text that tells keys apart without revealing them."""
        return hashlib.blake2b(b"fingerprint", key=self.key, digest_size=HASH_BYTES).hexdigest()


def framed(name: str, frame: int, frames: int) -> str:
    """Return the id of a frame (1..) of an image with a name of its own, as in ``ID_1_0002``."""
    digits = max(FRAME_DIGITS, len(str(frames)))
    return name if frames == 1 else f"{name}_{frame:0{digits}d}"


def is_made(kind: str, value: str) -> bool:
    """Whether a value looks like a pseudonym of :meth:`Pseudonyms.of`."""
    return value.startswith(kind) and re.fullmatch(rf"{kind}_[0-9a-f]{{{2 * HASH_BYTES}}}", value) is not None


def load_key(path: Path) -> bytes:
    """Return the key in ``path``. On first use, make one that only its owner can read (mode 600) and report it.

    Two runs that start at once get the same key. Raises UsageError for a file that is no key, and for a path within a
    dataset or an experiment, since these are shared. Raises WorkError if the key can't be read or made.
    """
    for folder in path.absolute().parents:
        for name, what in NOT_BESIDE.items():
            if (folder / name).exists():
                raise UsageError(f"--pseudonym_key={path}: lies in {what} ({folder}), which is passed on without it")
    try:
        if not path.exists() and _make_key(path):
            tell(
                f"{path.absolute()}: a new key of pseudonyms; keep it to yourself, and a copy of it: with another key "
                "all ids become others"
            )
        text = path.read_text(encoding="ascii").strip()
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        key = bytes.fromhex(text)
    except OSError as error:
        raise WorkError(
            f"{path}: the key of the pseudonyms can't be read or made ({error.strerror}); --pseudonym_key names "
            "another place"
        ) from None
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UsageError(
            f"{path}: not a key of pseudonyms; restore it from a copy, or remove it: all pseudonyms then become others"
        )
    return key


def _make_key(path: Path) -> bool:
    """Make a key file in one step. Return False if another run made it first."""
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
            return False
        except OSError:  # a disk without hard links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True
