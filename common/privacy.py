"""Remove the names of user and machine from texts for others, such as reports and trackers."""

from __future__ import annotations

import getpass
import platform
import re
import socket
from pathlib import Path


def anonymous(text: str) -> str:
    """Replace the home folder by ``~``, and names of user and host in paths by ``<user>`` and ``<host>``."""
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
