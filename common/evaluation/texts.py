"""Tables and intervals as text."""

from __future__ import annotations

import numpy as np
import pandas as pd

NO_VALUE = "-"


def format_table(table: pd.DataFrame) -> str:
    """Return ``table`` as aligned text for a console: 5 decimals, whole numbers as they are, ``-`` for no value."""
    cells = table.map(_format_cell).astype(str)
    names = [str(table.index.name or ""), *(str(name) for name in table.index)]
    width = max(len(name) for name in names)
    lines = [name.ljust(width) for name in names]
    for column in cells.columns:
        texts = [str(column), *cells[column]]
        column_width = max(len(text) for text in texts)
        lines = [f"{line}  {text.rjust(column_width)}" for line, text in zip(lines, texts, strict=True)]
    return "\n".join(lines)


def interval_text(value: float | None, low: float | None, high: float | None, digits: int = 4) -> str:
    """Return ``value [low, high]``; a missing interval (None or NaN) is left out, a missing value is ``-``."""
    if pd.isna(value):
        return NO_VALUE
    return f"{value:.{digits}f}" + ("" if pd.isna(low) or pd.isna(high) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _format_cell(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        return NO_VALUE if np.isnan(value) else f"{value:.5f}"
    return str(value)
