"""What `dinv init` prints: plain text, a few lines each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from dinv.intake.look import Found
from dinv.intake.place import SHOWN
from dinv.intake.propose import COLOUR_FROM, Changes, value_at
from dinv.intake.shipped import Shipped

MAX_ROWS = 30
IMBALANCED = 3.0  # largest class over smallest, from which it is worth a word
SCARCE = 5  # training images of a class
OTHER_MODEL = "models/stable-diffusion-v1-4.yaml"


def describe(found: Found, unread: Sequence[str], own_test: bool) -> str:
    """Classes, counts, sizes, colour, and what may be wrong."""
    total = sum(len(p.raw.ids) for p in found.splits.values())
    head = f"{found.root}: {found.source}, {len(found.class_names)} classes, {total} images"
    lines = [head, "", _table(found), "", _sizes(found), _colour(found)]
    if not own_test:
        lines.append("test: a fifth of every class, set aside by data.seed; there is no test split")
    lines += [*_balance(found), *_broken(found)]
    for name in unread:
        remedy = f"; rename it to val if it is a split: mv {found.root}/{name} {found.root}/val"
        lines.append(f"not read: {found.root}/{name}{remedy if name.startswith('val') else ''}")
    return "\n".join(lines)


def _table(found: Found) -> str:
    counts = [found.counts(split) for split in found.splits]
    rows = [[name, *numbers] for name, *numbers in zip(found.class_names, *counts, strict=True)]
    shown = rows[:MAX_ROWS]
    if len(rows) > MAX_ROWS:
        shown.append([f"({len(rows) - MAX_ROWS} more)", *([""] * len(counts))])
    align = ["left", *["right"] * len(counts)]
    rows = [*shown, ["all", *map(sum, counts)]]
    return tabulate(rows, ["class", *found.splits], disable_numparse=True, colalign=align)


def _sizes(found: Found) -> str:
    sides = found.sides
    middle = "x".join(str(int(side)) for side in np.median(sides, axis=0))
    if (sides == sides[0]).all():
        return f"sizes: all {middle}"
    return f"sizes: shorter side {sides[:, 0].min()} to {sides[:, 0].max()}, median picture {middle}"


def _colour(found: Found) -> str:
    share = found.share_in_colour
    if share in (0.0, 1.0):
        return f"colour: {'all in colour' if share else 'none, all are grey'}"
    grey = sum(int(p.is_grey[row]) for p in found.splits.values() for row in p.readable)
    note = "" if share >= COLOUR_FROM else f"; fewer than {COLOUR_FROM:.0%} in colour: taken as grey"
    return f"colour: {share:.1%} in colour, {grey} grey{note}"


def _balance(found: Found) -> list[str]:
    counts = found.counts("train")
    lines = []
    few = [f"{name} ({n})" for name, n in zip(found.class_names, counts, strict=True) if n < SCARCE]
    if max(counts) >= IMBALANCED * max(min(counts), 1):
        lines.append(
            f"imbalance: the largest class has {max(counts)} training images, the smallest {min(counts)}; "
            "generate.inversion.balance_classes: true makes as many of each"
        )
    if few:
        lines.append(
            f"few training images: {', '.join(few)}; the pipeline needs 2, and learns little from few"
        )
    return lines


def _broken(found: Found) -> list[str]:
    if not found.broken:
        return []
    more = len(found.broken) - SHOWN
    shown = [f"  {line}" for line in found.broken[:SHOWN]]
    head = f"broken: {len(found.broken)} that the pipeline will refuse"
    return [head, *shown, *([f"  and {more} more"] if more > 0 else [])]


def explain_choice(levels: Mapping[str, float], chosen: Shipped, root: str) -> str:
    """Why this shipped model, and what it can not do."""
    others = ", ".join(f"{path} {level:.1f}" for path, level in levels.items() if path != chosen.path)
    level = levels[chosen.path]
    lines = [
        f"model: {chosen.path}; its autoencoder leaves {level:.1f} dB of your images"
        + (f" ({others})" if others else "")
    ]
    if level >= chosen.known_db:
        lines.append("  As much as of images of its own domain: it knows such pictures.")
    else:
        lines.append(
            f"  Below {chosen.known_db:.0f} dB: it does not know such pictures, and what it generates will "
            f"not look like them. It shows that the pipeline runs. For results, on a GPU:\n"
            f"  dinv init {root} --model {OTHER_MODEL}"
        )
    return "\n".join(lines)


def explain_other(path: str, resolution: int) -> str:
    """What a model that does not ship needs."""
    return (
        f"model: {path}, at {resolution} pixels, with the settings of presets/sd14-fast.yaml\n"
        "  It wants a GPU: docs/running_large.md has times and memory.\n"
        "  measure.features stays: networks that ship know one domain each; docs/metrics.md names others."
    )


def explain_changes(changes: Changes, current: Mapping[str, Any], dry_run: bool) -> str:
    """The difference, key by key."""
    lines = []
    if changes.write:
        lines.append("params.yaml would change:" if dry_run else "params.yaml changed:")
        lines += [f"  {k}: {_show(value_at(current, k))} -> {_show(v)}" for k, v in changes.write.items()]
    else:
        lines.append("params.yaml stays as it is")
    if changes.kept:
        lines.append("kept, since params.yaml is for this folder already (--reset writes these too):")
        lines += [
            f"  {k}: {_show(value_at(current, k))}, proposed {_show(v)}" for k, v in changes.kept.items()
        ]
    return "\n".join(lines)


def _show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def next_steps(broken: bool) -> str:
    """Commands to run now."""
    first = "Repair or remove the broken pictures, then:" if broken else "Next:"
    return (
        f"{first}\n"
        "  dinv check       what may be wrong with pictures, labels, and the model for them\n"
        "  dinv estimate    what the run will take\n"
        "  dinv pilot       a small run: are generated images worth it on these?\n"
        "  dvc repro        the whole pipeline; metrics/grid.png and metrics/table.md are its result"
    )
