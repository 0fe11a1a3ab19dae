"""Rows of the tables that options choose from, and the rule that a choice is never given what it doesn't know."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from common.errors import UsageError, nearest

PROJECT = Path(__file__).parent.parent.parent  # where modules of your own lie


@dataclass(frozen=True)
class Row:
    """One choice: its name on the command line, what it is, and the options that it knows with their defaults.

    ``parameters`` maps an option's name (``optim_momentum``) to the value it has where the user gives none; this is the
    only place where that default is written.
    """

    name: str
    summary: str
    parameters: Mapping[str, Any] = field(default_factory=dict, kw_only=True)


RowT = TypeVar("RowT", bound=Row)


def table(rows: Iterable[RowT]) -> dict[str, RowT]:
    """Return rows by their names."""
    return {row.name: row for row in rows}


def choose(option: str, name: str, rows: Mapping[str, RowT]) -> RowT:
    """Return the row called ``name``, or the row of your own that a dotted path names: ``examples.kind.HISTOGRAM``.

    Raises UsageError, naming the nearest, where ``--option`` has no such choice.
    """
    if name in rows:
        return rows[name]
    if is_dotted_path(name):
        return own_row(option, name, type(next(iter(rows.values()))))
    raise UsageError(f"--{option}={name}: unknown; choose from {', '.join(rows)}{nearest(name, rows)}")


def is_dotted_path(text: str) -> bool:
    """Whether a text may name something in a module: ``examples.kind.HISTOGRAM``."""
    parts = text.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)


def own_row(option: str, path: str, kind: type[RowT]) -> RowT:
    """Return the row that a dotted path names; UsageError where there is none, or it is no row of ``--option``."""
    module, _, name = path.rpartition(".")
    file = own_file(module)
    if not file.is_file():
        raise UsageError(f"--{option}={path}: there is no {file}; a row of your own is named <module>.<name>")
    row = getattr(importlib.import_module(module), name, None)
    if not isinstance(row, kind):
        raise UsageError(f"--{option}={path}: {file} has no {kind.__name__} of the name {name}")
    return row


def own_file(module: str) -> Path:
    """Return where a module of the user's own lies: in this project's folder, whether it is there or not.

    Nothing else is imported by its name. A checkpoint holds such names too, so that one from elsewhere could make its
    reader import what the reader did not put there.
    """
    return PROJECT.joinpath(*module.split(".")).with_suffix(".py")


def settings(option: str, row: Row, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every option that ``row`` knows: the ``given`` one, or its default where that is None.

    Raises UsageError, naming the choice and what it knows, for an option that is given and that ``row`` doesn't know.
    """
    for name, value in given.items():
        if value is not None and name not in row.parameters:
            known = ", ".join(f"--{known}" for known in row.parameters) or "no option of this kind"
            raise UsageError(f"--{name}: --{option}={row.name} doesn't know it; it knows {known}")
    return {name: default if given.get(name) is None else given[name] for name, default in row.parameters.items()}


def describe(rows: Mapping[str, Row]) -> list[str]:
    """Return a line for each row: name, summary, and the options it knows with their defaults."""
    width = max(map(len, rows))
    return [
        f"{name:{width}}  {row.summary}" + "".join(f" --{key}={_text(value)}" for key, value in row.parameters.items())
        for name, row in rows.items()
    ]


def summaries(rows: Mapping[str, Row]) -> str:
    """Return what the rows are, for the help of an option: ``mean: mean of the probabilities; logit: …``."""
    return "; ".join(f"{name}: {row.summary}" for name, row in rows.items())


def load(path: str) -> Any:
    """Return what a dotted path names, such as ``torch.optim.SGD``; the module is imported only now."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(_text(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
