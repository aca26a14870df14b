"""Fixtures shared by all tests."""

import os
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import project as projects
import tiny


@pytest.fixture(scope="session")
def text_model_folder(tmp_path_factory):
    """Tiny Stable Diffusion layout with CLIP text encoder, RGB, epsilon prediction."""
    return tiny.save_tiny_model(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture(scope="session")
def grey_model_folder(tmp_path_factory):
    """Tiny model in the bundled model's layout: grey, stored empty embedding, no text encoder."""
    folder = tmp_path_factory.mktemp("models") / "grey"
    return tiny.save_tiny_model(folder, num_channels=1, text=False)


@pytest.fixture(scope="session")
def model(text_model_folder):
    return tiny.load_tiny(text_model_folder)


@pytest.fixture(scope="session")
def v_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "v"
    return tiny.load_tiny(tiny.save_tiny_model(folder, prediction_type="v_prediction"))


@pytest.fixture(autouse=True)
def _no_global_seed_is_relied_on():
    torch.seed()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """A project after its first `dvc repro`, committed; made once for all test processes. Copy before changing."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    project = projects.Project(shared / "finished" / "project")
    with FileLock(shared / "finished.lock"):
        if not (shared / "finished" / "done").exists():
            projects.create(project.root)
            assert project.repro() == projects.STAGES
            project.run("git", "add", ".")
            project.run("git", "commit", "--quiet", "-m", "ran")
            (shared / "finished" / "done").touch()
    return project
