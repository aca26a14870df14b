"""Pictures that are there twice, to the pixel or nearly, within and across splits."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dinv.images.fingerprint import Fingerprints
from dinv.intake.finding import Finding, of_picture
from dinv.intake.survey import Survey

CHUNK = 200_000_000 // 32  # pairs whose bits are counted at a time


def duplicate_findings(survey: Survey, near_bits: int, without: list[int]) -> list[Finding]:
    """One finding for every picture that has an earlier equal; its most similar one is named.

    A pair across splits comes first: it makes results on the test split look better than they are.

    Args:
        near_bits: see Thresholds.
        without: rows whose fingerprints say nothing, since they have no contrast.
    """
    rows = survey.readable
    exact = _exact(survey, rows)
    near = near_pairs(survey.prints[rows], near_bits, np.isin(rows, without))
    pairs = {(int(rows[i]), int(rows[j])): bits for i, j, bits in near}
    pairs |= dict.fromkeys(exact, 0)
    best: dict[tuple[int, bool], tuple[tuple[bool, int, int], int]] = {}
    for (first, second), bits in pairs.items():
        is_near = (first, second) not in exact
        across = survey.splits[first] != survey.splits[second]
        key = (second, across)
        rank = ((is_near, bits, first), first)
        best[key] = min(best.get(key, rank), rank)
    return [
        _finding(survey, second, first, across, is_near, bits)
        for (second, across), ((is_near, bits, _), first) in sorted(best.items())
    ]


def _exact(survey: Survey, rows: NDArray[np.int64]) -> set[tuple[int, int]]:
    """(earlier, later) of pictures with equal pixels; the earlier one is the first in its split."""
    first: dict[tuple[str, str], int] = {}
    pairs = set()
    for row in rows.tolist():
        digest, split = survey.digests[row], survey.splits[row]
        others = [first[digest, name] for name in ("train", "val", "test") if (digest, name) in first]
        pairs |= {(other, row) for other in others}
        first.setdefault((digest, split), row)
    return pairs


def near_pairs(
    prints: Fingerprints, near_bits: int, ignored: NDArray[np.bool_]
) -> Iterator[tuple[int, int, int]]:
    """(i, j, bits) with i < j of all pairs whose fingerprints differ in `near_bits` bits or fewer."""
    words = np.ascontiguousarray(prints).view(np.uint64)
    rows = np.flatnonzero(~ignored)
    words = words[rows]
    step = max(1, CHUNK // max(len(words), 1))
    for start in range(0, len(words), step):
        block = words[start : start + step]
        bits = np.bitwise_count(block[:, None] ^ words[None, start:]).sum(2, dtype=np.int64)
        later = np.arange(len(words) - start)[None] > np.arange(len(block))[:, None]
        for i, j in zip(*np.nonzero((bits <= near_bits) & later), strict=True):
            yield int(rows[start + i]), int(rows[start + j]), int(bits[i, j])


def _finding(survey: Survey, row: int, other: int, across: bool, is_near: bool, bits: int) -> Finding:
    reason = ("near_" if is_near else "") + "duplicate" + ("_across_splits" if across else "")
    note = f"{survey.splits[other]}, {survey.class_of(other)}"
    if survey.labels[row] != survey.labels[other]:
        note += ": another class"
    return of_picture(survey, row, reason, bits, survey.ids[other], other, note)
