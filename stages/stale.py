"""Outputs of blocks that params.yaml no longer names."""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path


def remove_stale(expected: Mapping[str, Collection[str]]) -> None:
    """Remove what DVC put into some folders under names that are not expected, with a line for each.

    A stage may depend on a folder of outputs, such as data/classifiers; what an arm that is gone has left
    there would otherwise be taken for a part of it. Only names that the folder's .gitignore lists are
    removed: DVC writes its outputs there, and has a copy of each in its cache. A user's own files stay.

    Args:
        expected: folder -> names in it, without suffix.
    """
    for folder, names in expected.items():
        for path in _outputs(Path(folder)):
            if path.name.partition(".")[0] in names or path.name in names or not path.exists():
                continue
            print(
                f"{path}: removed, since params.yaml names it no more; DVC's cache still has it", flush=True
            )
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _outputs(folder: Path) -> list[Path]:
    """What DVC has put into a folder, according to the .gitignore there."""
    ignored = folder / ".gitignore"
    lines = ignored.read_text().split() if ignored.is_file() else []
    return [folder / line.removeprefix("/") for line in lines if line.startswith("/")]
