"""Write docs/options.md, the reference of all options, from the options themselves: python docs/reference.py."""

from __future__ import annotations

import re
import sys
from collections import Counter
from itertools import zip_longest
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from common.cli.arguments import Shown, option_groups  # noqa: E402
from common.cli.choices import load  # noqa: E402
from config import COMMANDS  # noqa: E402

INTRODUCTION = """\
# All options

`python docs/reference.py` writes this page from the options. `python COMMAND.py --help` shows the same.

- An option is written `--name=value`. A name is written in full.
- `0|1` is a boolean. `N` is a whole number, `X` a number.
- Every command has `--config=FILE`: a YAML file with a line `name: value` for each option. A flag wins over the file.
- `none` as a default means: not given. The meaning says what happens then.
- `python train.py --list=optim` prints each optimizer with the options that it knows and their defaults. `sched`,
  `sampler`, `loss`, `pool`, `seq`, `tracker`, `transform` and `model` print the other choices.

| command | what it does |
| --- | --- |
"""


def reference() -> str:
    """Return the text of docs/options.md. Options that several commands have stand once, at its end."""
    commands = {name: load(path) for name, path in COMMANDS.items()}
    groups = {name: option_groups(config_class) for name, config_class in commands.items()}
    count = Counter(title for titles in groups.values() for title in titles if title)
    rows = (
        f"| [`{name}.py`](#{name}py) | {_cell(_lines(config_class)[0])} |" for name, config_class in commands.items()
    )
    parts = [INTRODUCTION + "\n".join(rows)]
    for name, titles in groups.items():
        parts += [f"## {name}.py", "\n".join(map(_escaped, _lines(commands[name])))]
        if "" in titles:
            parts.append(_table(titles[""]))
        for title, options in titles.items():
            if title and count[title] == 1:
                parts += [f"### {_escaped(title)}", _table(options)]
        shared = ", ".join(f"[{title}](#{_anchor(title)})" for title in titles if count[title] > 1)
        parts.append(f"Also: {shared}.")
    parts.append("## Options of several commands")
    for title in (title for title in count if count[title] > 1):
        owners = ", ".join(f"`{name}.py`" for name, titles in groups.items() if title in titles)
        options = next(titles[title] for titles in groups.values() if title in titles)
        parts += [f"### {title}", f"Of {owners}.", _table(options)]
    return "\n\n".join(parts) + "\n"


def _lines(config_class: type) -> list[str]:
    return [line.strip() for line in (config_class.__doc__ or "").strip().splitlines()]


def _table(options: list[Shown]) -> str:
    head = "| option | values | default | meaning |\n| --- | --- | --- | --- |"
    rows = (
        f"| `{option.flag}` | {_cell(option.values)} | {_cell(option.default)} | {_cell(option.meaning)} |"
        for option in options
    )
    return "\n".join((head, *rows))


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, with flags as code."""
    pieces = re.split(r"(--[a-z]\w+(?:=\w+(?:,\w+)*|\.\.\.)?)", text)
    plain = ("".join(f"\\{sign}" if sign in "\\`*<>[]" else sign for sign in piece) for piece in pieces[::2])
    flags = (f"`{piece}`" for piece in pieces[1::2])
    return "".join(piece for pair in zip_longest(plain, flags, fillvalue="") for piece in pair)


def _cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|")


def _anchor(title: str) -> str:
    return "".join(sign for sign in title.lower() if sign.isalnum() or sign in " -_").replace(" ", "-")


if __name__ == "__main__":
    (DOCS / "options.md").write_text(reference(), encoding="utf-8")
