"""What `dinv check` writes and prints."""

import csv
from collections import Counter
from dataclasses import asdict
from typing import Any

from dinv.files import atomic_write, write_json
from dinv.intake.check import Checked, CheckOptions, find
from dinv.intake.finding import REASONS, Finding
from dinv.intake.networks import UNET
from dinv.intake.sheet import contact_sheet
from dinv.params import load_params

COLUMNS = ("reason", "value", "split", "file", "class", "other", "note")
LIST, SHEET, SUMMARY = "findings.csv", "contact_sheet.png", "summary.json"


def check(options: CheckOptions) -> Checked:
    """Look at the task of params.yaml, and write the list, the sheet and the summary; raises UserError."""
    found = find(load_params(), options)
    write(found, options)
    return found


def write(found: Checked, options: CheckOptions) -> None:
    """The three files; a sheet of an earlier check does not stay."""
    with atomic_write(options.output / LIST) as path, path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_row(finding) for finding in found.findings)
    write_json(options.output / SUMMARY, summary(found))
    sheet = contact_sheet(found.survey, found.findings)
    if sheet is None:
        (options.output / SHEET).unlink(missing_ok=True)
        return
    with atomic_write(options.output / SHEET) as path:
        sheet.save(path, "PNG")


def _row(f: Finding) -> tuple[Any, ...]:
    return (f.reason, f.value, f.split, f.file, f.class_name, f.other, f.note)


def summary(found: Checked) -> dict[str, Any]:
    """Counts by reason and what was measured, as JSON has it."""
    counts = Counter(finding.reason for finding in found.findings)
    return {
        "images": len(found.survey),
        "findings": {reason: counts[reason] for reason in REASONS if counts[reason]},
        "label_accuracy": found.label_accuracy,
        "autoencoder": None if found.loss is None else asdict(found.loss),
    }


def words(found: Checked, options: CheckOptions) -> str:
    """The summary for people."""
    counts = Counter(finding.reason for finding in found.findings)
    lines = [f"{len(found.survey)} images, {len(found.findings)} findings"]
    lines += [f"{counts[reason]:6d}  {reason}: {REASONS[reason]}" for reason in REASONS if counts[reason]]
    if found.label_accuracy is not None:
        network = "the model's UNet" if options.features == UNET else options.features
        right = f"{found.label_accuracy:.1%}"
        lines.append(f"labels: a classifier of features of {network} is right on {right} of held-out images")
        if counts["label"]:
            lines.append("  where it errs, right labels are flagged too: look at each before you change it")
    if (loss := found.loss) is not None:
        lines.append(
            f"autoencoder: classes are told apart on {loss.originals:.1%} of originals, "
            f"{loss.reconstructions:.1%} of reconstructions (p = {loss.p_value:.2g})"
        )
    lines.append(f"list: {options.output / LIST}")
    if any(finding.row is not None for finding in found.findings):
        lines.append(f"pictures: {options.output / SHEET}")
    return "\n".join(lines)
