"""Texts for others, as reports and trackers, without the names of the user and the machine."""

from __future__ import annotations

import getpass
import platform
import re
import socket
from pathlib import Path


def anonymous(text: str) -> str:
    """Return ``text`` with ``~`` for the home folder, ``<user>`` and ``<host>`` for these names as parts of paths."""
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    for name, replacement in ((_user_name(), "<user>"), (socket.gethostname(), "<host>"), (platform.node(), "<host>")):
        if name:
            text = re.sub(rf"(?<=[/@]){re.escape(name)}(?![\w.-])", replacement, text)
    return text


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without a name
        return ""
