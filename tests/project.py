"""A throw-away copy of this project as a git + DVC repository, on a tiny model and tiny data."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import preloaded
import tiny
from ruamel.yaml import YAML

COPIED = ("dinv", "stages", "models/pretrained", "dvc.yaml", "params.yaml", ".dvcignore", ".gitignore")
SMALL = {
    "data.root": "tinydata",
    "data.resolution": 16,
    "data.num_per_class": 3,
    "data.num_val_per_class": 2,
    "model.resolution": 16,
    "invert.embeddings.num_visits": 5,
    "generate.inversion.num_images_per_embedding": 2,
    "generate.inversion.num_inference_steps": 3,
    "train.cnn.num_steps": 20,
    "train.cnn.warmup_steps": 2,
    "train.cnn.seeds": [0, 1],
}
ARMS = list(tiny.PARAMS.arms)
INVERT, GENERATE, MEASURE, TRAIN = (
    {f"{stage}@{name}" for name in names}
    for stage, names in (
        ("invert", tiny.PARAMS.invert),
        ("generate", tiny.PARAMS.generate),
        ("measure", tiny.PARAMS.measure.features),
        ("train", ARMS),
    )
)
STAGES = {"download", *INVERT, *GENERATE, *MEASURE, *TRAIN, "evaluate"}


class Project:
    """Runs commands in the project's folder with a hermetic environment."""

    def __init__(self, root: Path):
        self.root = root

    def run(self, *command: str, ok: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.root, env=self.env(**env), capture_output=True, text=True, check=False
        )
        assert not ok or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def dvc(self, *args: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("dvc", *args, ok=ok)

    def stage(self, name: str, *args: str, ok: bool = False, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("python3", "-m", f"stages.{name}", *args, ok=ok, **env)

    def repro(self, *args: str) -> set[str]:
        """Run `dvc repro`; return the stages that ran."""
        out = self.dvc("repro", "--no-run-cache", *args).stdout
        return set(re.findall(r"^Running stage '(.+)':", out, re.M))

    def set(self, **params: object) -> None:
        """Change parameters, written section__block__key=value; comments stay."""
        yaml, path = YAML(), self.root / "params.yaml"
        yaml.width = 200
        document = yaml.load(path.read_text())
        for name, value in params.items():
            *sections, key = name.split("__")
            place = document
            for section in sections:
                place = place[section]
            assert key in place, name
            place[key] = value
        with path.open("w") as file:
            yaml.dump(document, file)

    def copy(self, root: Path) -> "Project":
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root)

    def env(self, **extra: str) -> dict[str, str]:
        home = self.root.parent / "home"
        home.mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "GIT_", "AWS_", "DINV_"))}
        bin_folder = str(Path(sys.executable).parent)
        return kept | {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home),
            "DVC_GLOBAL_CONFIG_DIR": str(home),
            "DVC_SYSTEM_CONFIG_DIR": str(home),
            "DVC_SITE_CACHE_DIR": str(home / "site"),
            "DVC_TEST": "true",
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.com",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.com",
            "HF_HUB_OFFLINE": "1",
            "PATH": os.pathsep.join([preloaded.folder_of_python3(), bin_folder, kept["PATH"]]),
            **extra,
        }


def create(root: Path) -> Project:
    """A committed project that has not run yet."""
    root.mkdir(parents=True)
    for name in COPIED:
        source = tiny.ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, root / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(source, root / name)
    tiny.save_tiny_model(root / "models/fashion-ldm", num_channels=1, text=False)
    for name in (
        "fashion-features",
        "satellite-features",
        "cells-features",
        "mini-sd/clip",
        "mini-sd/encoder",
    ):
        shutil.copytree(tiny.ROOT / "models" / name, root / "models" / name)
    tiny.save_tiny_fashion_mnist(root / "tinydata")
    project = Project(root)
    project.set(**{k.replace(".", "__"): v for k, v in SMALL.items()})
    project.run("git", "init", "--quiet")
    project.dvc("init", "--quiet")
    shutil.copytree(tiny.ROOT / ".dvc/plots", root / ".dvc/plots")
    project.run("git", "add", ".")
    project.run("git", "commit", "--quiet", "-m", "start")
    return project
