"""Hashes that are the same on every machine, to seed random streams."""

from __future__ import annotations

import hashlib

HASH_BITS = 63


def stable_hash(*parts: str | int) -> int:
    """Return a number in [0, 2**63) that depends on ``parts`` only: not on process, machine or Python version.

    BLAKE2b gets each part after its type and length, so that ("ab", "c"), ("a", "bc") and ("a", "b", "c") differ, and
    so do 1 and "1". Raises TypeError for anything but text and whole numbers, whose text could differ elsewhere.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if type(part) not in (str, int):
            raise TypeError(f"stable_hash takes text and whole numbers, not {type(part).__name__}: {part!r}")
        data = str(part).encode("utf-8", "surrogatepass")
        kind = b"s" if isinstance(part, str) else b"i"
        digest.update(kind + len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little") % 2**HASH_BITS
