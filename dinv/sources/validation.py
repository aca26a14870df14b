"""Whether a labelled task will have validation images."""

from pathlib import Path

from dinv.sources.params import DataParams
from dinv.sources.registry import SOURCES

# Sources that always bring their own, and those that do if the user has made them: these are listed quickly.
ALWAYS = frozenset({"eurosat", "pathmnist", "dermamnist", "bloodmnist"})
PERHAPS = frozenset({"image_folder", "image_csv"})


def has_validation(data: DataParams) -> bool:
    """Whether there will be any, without fetching the images; raises UserError for a broken listing."""
    if data.num_val_per_class > 0 or data.source in ALWAYS:
        return True
    return data.source in PERHAPS and SOURCES[data.source](Path(data.root), data.seed).val is not None
