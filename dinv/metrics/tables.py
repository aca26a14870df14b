"""Tidy tables as CSV files."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinv.files import atomic_write


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows of equal keys, with a header, atomically; equal rows give equal bytes.

    Args:
        path: the file.
        rows: column -> value.
        columns: the header; without it, the keys of the first row.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue())
