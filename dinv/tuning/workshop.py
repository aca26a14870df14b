"""Folders in which other parameters have made other data, beside a project that stays as it is.

A folder has the project's files as links, but for what other parameters make anew: that is made there by the
project's own stages. Finished parts are shared, so that only new images are computed.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dinv.classify.arms import Arm
from dinv.errors import UserError
from dinv.params import LEARNED

Sections = Mapping[str, Any]
_MADE = {"learned", "generated", "previews", "curves", "classifiers", "features"}
_OF_DOWNLOAD = ("real", "model.json", "fingerprints.txt")
_OWN = {"data", "params.yaml", ".git", ".dvc", ".scratch"}


def stages_to_run(before: Sections, after: Sections, arms: Sequence[Arm]) -> list[tuple[str, ...]]:
    """Stages whose parameters differ and that the arms' images need, in order, each with its block."""
    download = any(before[name] != after[name] for name in ("data", "model"))
    invert: dict[str, None] = {}
    generate: dict[str, None] = {}
    for block in (arm.images.rpartition("/")[2] for arm in arms if not arm.only_real):
        source = str(after["generate"][block]["input"])
        learned = source.removeprefix(LEARNED)
        if source != learned and (download or before["invert"][learned] != after["invert"][learned]):
            invert[learned] = None
        if download or learned in invert or before["generate"][block] != after["generate"][block]:
            generate[block] = None
    return [
        *([("download",)] if download else []),
        *(("invert", block) for block in invert),
        *(("generate", block) for block in generate),
    ]


@dataclass(frozen=True)
class Data:
    """A folder with the data that some sections make; code is in `project`, finished parts in `scratch`."""

    folder: Path
    sections: Sections
    project: Path
    scratch: Path

    @contextmanager
    def changed(self, sections: Sections, arms: Sequence[Arm]) -> "Iterator[Data]":
        """Data of other sections as far as the arms need them: these, if nothing of it differs.

        Raises:
            UserError: a stage failed; its message is above.
        """
        stages = stages_to_run(self.sections, sections, arms)
        if not stages:
            yield self
            return
        self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tune-", dir=self.scratch) as name:
            folder = Path(name)
            furnish(folder, self.folder.resolve(), stages)
            with (folder / "params.yaml").open("w") as file:
                YAML(typ="safe").dump(dict(sections), file)
            for stage in stages:
                self._run(stage, folder)
            yield Data(folder, sections, self.project, self.scratch)

    def _run(self, stage: tuple[str, ...], folder: Path) -> None:
        command = [sys.executable, "-m", f"stages.{stage[0]}", *stage[1:]]
        env = {**os.environ, "PYTHONPATH": str(self.project), "DINV_SCRATCH": str(self.scratch)}
        if subprocess.run(command, cwd=folder, env=env, check=False).returncode != 0:
            raise UserError(f"{' '.join(stage)}: failed, see above; run again, finished trials are kept")


def furnish(folder: Path, root: Path, stages: list[tuple[str, ...]]) -> None:
    """Link what the stages do not make."""
    for path in root.iterdir():
        if path.name not in _OWN:
            (folder / path.name).symlink_to(path)
    data = folder / "data"
    data.mkdir()
    for path in (root / "data").iterdir():
        if path.name not in {*_MADE, *_OF_DOWNLOAD}:
            (data / path.name).symlink_to(path)
    if ("download",) not in stages:
        for name in _OF_DOWNLOAD:
            (data / name).symlink_to(root / "data" / name)
    for stage, name in (("invert", "learned"), ("generate", "generated")):
        (data / name).mkdir()
        there = root / "data" / name
        for path in there.iterdir() if there.is_dir() else ():
            if (stage, path.name) not in stages:
                (data / name / path.name).symlink_to(path)
