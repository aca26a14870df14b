"""Tidy tables as CSV files, and tables for people as Markdown."""

from pathlib import Path

import pandas as pd
from tabulate import DataRow, TableFormat

from dinv.files import atomic_write

_ROW = DataRow("|", "|", "|")
# Cells are not padded, so that one long cell does not change every line of a committed table.
_MARKDOWN = TableFormat(
    lineabove=None,
    linebelowheader=lambda widths, aligns: "|" + "---|" * len(widths),
    linebetweenrows=None,
    linebelow=None,
    headerrow=_ROW,
    datarow=_ROW,
    padding=1,
    with_header_hide=None,
)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table with its header, atomically; equal tables give equal bytes."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def write_text(path: Path, text: str) -> None:
    """Write a text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def markdown(table: pd.DataFrame) -> str:
    """A table of text cells as Markdown, cells as they are."""
    text = table.astype(str).to_markdown(
        index=False, tablefmt=_MARKDOWN, stralign=None, disable_numparse=True
    )
    return f"{text}\n"


def mean_and_spread(mean: float, spread: float, digits: int = 2, sign: str = "") -> str:
    """`mean ± spread`, without the spread where it is unknown (not a number); sign "+" writes it always."""
    text = f"{mean:{sign}.{digits}f}"
    return text if pd.isna(spread) else f"{text} ± {spread:.{digits}f}"
