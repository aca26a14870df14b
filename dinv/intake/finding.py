"""What `dinv check` reports: one finding a line."""

from dataclasses import dataclass

from dinv.intake.survey import Survey

# Reasons, in the order in which they are shown, and what they mean.
REASONS = {
    "broken": "cannot be read, and the pipeline will refuse it",
    "duplicate_across_splits": "the same picture, to the pixel, in two splits: the test is not fair",
    "near_duplicate_across_splits": "nearly the same picture in two splits",
    "duplicate": "the same picture, to the pixel, twice in a split",
    "near_duplicate": "nearly the same picture twice in a split",
    "label": "looks like another class",
    "blurred": "far less sharp than its class",
    "single_colour": "no contrast",
    "small": "the original is smaller than what is made of it",
    "grey": "grey in a task in colour",
    "few_images": "a class with few training images",
    "imbalance": "the largest class has many times the training images of this one",
    "autoencoder": "the model's autoencoder loses what tells classes apart",
}


@dataclass(frozen=True)
class Finding:
    """One thing that may be wrong.

    Attributes:
        reason: a key of REASONS.
        value: the number that was compared with the threshold, or "" for a broken picture.
        row: of the survey; None: it is of a class, or of the task.
        split, file, class_name: of the picture, where there is one.
        other: the file that it duplicates, or the class that it looks like.
        note: for people.
    """

    reason: str
    value: float | str
    row: int | None = None
    split: str = ""
    file: str = ""
    class_name: str = ""
    other: str = ""
    other_row: int | None = None
    note: str = ""


def of_picture(
    survey: Survey,
    row: int,
    reason: str,
    value: float | str,
    other: str = "",
    other_row: int | None = None,
    note: str = "",
) -> Finding:
    """A finding of one picture."""
    return Finding(
        reason,
        value,
        row,
        survey.splits[row],
        survey.ids[row],
        survey.class_of(row),
        other,
        other_row,
        note,
    )
