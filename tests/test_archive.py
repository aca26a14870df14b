"""The generator under DVC: a fresh clone gets it from the remote, whatever became of the hub."""

import shutil

import project as projects
import pytest
import tiny
from test_readme import PIN, prepare_hub_cache

from dinv.archive import place_of
from dinv.diffusion.loading import model_digest

LOAD = """
import torch
from dinv.diffusion.loading import fetch_model, load_model
from dinv.params import load_params
params = load_params().model
print(load_model(fetch_model(params), params, torch.device("cpu")).width)
"""


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A project that has not run, with a DVC remote in a folder."""
    project = projects.create(tmp_path_factory.mktemp("archive") / "project")
    shutil.copy(tiny.ROOT / PIN, project.root / PIN)
    project.dvc("remote", "add", "--default", "storage", str(project.root.parent / "remote"))
    project.run("git", "add", ".")
    project.run("git", "commit", "--quiet", "-m", "remote")
    return project


@pytest.fixture
def project(committed, tmp_path):
    """A copy, with an empty remote."""
    copy = committed.copy(tmp_path / "project")
    copy.dvc("remote", "modify", "storage", "url", str(tmp_path / "remote"))
    return copy


def archive(project, *options, ok=True, **env):
    return project.run("dinv", "archive-model", *options, ok=ok, **env)


def clone(project, root):
    """What a colleague has after git clone and dvc pull."""
    project.run("git", "add", ".")
    project.run("git", "commit", "--quiet", "-m", "archived")
    project.run("git", "clone", "--quiet", str(project.root), str(root))
    other = projects.Project(root)
    other.dvc("pull", "--quiet", ok=False)  # no stage has run: only the model is there
    return other


def test_a_model_of_the_hub_comes_back_in_a_fresh_clone(project, tmp_path):
    cache = prepare_hub_cache(tmp_path)
    (snapshot,) = (tmp_path / "hub").glob("*/snapshots/*")
    (snapshot / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    (snapshot / "unused.bin").write_bytes(b"x" * 100)
    digest = model_digest(snapshot)
    project.set(model__path=PIN, data__mode="RGB")
    done = archive(project, "--push", HF_HUB_CACHE=cache)
    folder = "models/stable-diffusion-v1-4"
    assert done.stdout.startswith(
        f"{folder} is under DVC, and in the remote\nmodel.path = {folder} in params.yaml"
    )
    assert f"git add {folder}.dvc models/.gitignore params.yaml" in done.stdout
    text = (project.root / "params.yaml").read_text()
    assert f"path: {folder}" in text and "# folder in diffusers layout" in text
    shutil.rmtree(cache)  # the hub has lost it
    other = clone(project, tmp_path / "clone")
    assert model_digest(other.root / folder) == digest
    assert (other.root / folder / "README.md").exists() and not (other.root / folder / "unused.bin").exists()
    assert not any(p.is_symlink() for p in (project.root / folder).rglob("*"))
    assert other.run("python3", "-c", LOAD).stdout == "16\n"
    again = archive(project, "--push")
    assert again.stdout.startswith(f"{folder} is under DVC") and "params.yaml" not in again.stdout


def test_a_folder_of_the_project_stays_where_it_is(project, tmp_path):
    tiny.save_tiny_model(project.root / "models/mine", num_channels=1, text=False)
    project.set(model__path="models/mine")
    before = (project.root / "params.yaml").read_text()
    done = archive(project)
    assert "then: dvc push models/mine.dvc" in done.stdout
    assert (project.root / "params.yaml").read_text() == before
    project.dvc("push")
    other = clone(project, tmp_path / "clone")
    assert model_digest(other.root / "models/mine") == model_digest(project.root / "models/mine")


def test_what_cannot_be_archived_is_one_line(project, tmp_path):
    def refused(**params):
        project.set(**params)
        done = archive(project, "--push", ok=False)
        *bars, last = done.stderr.splitlines()
        assert done.returncode == 1 and all(not bar or bar.startswith("copy:") for bar in bars), done.stderr
        return last

    assert "model.path = 'models/fashion-ldm': models/fashion-ldm is in git" in refused()
    assert "cannot be fetched from the hub" in refused(model__path=PIN)
    elsewhere = tiny.save_tiny_model(tmp_path / "elsewhere/mine", num_channels=1, text=False)
    tiny.save_tiny_model(project.root / "models/mine", num_channels=1, text=False, seed=1)
    assert "models/mine: is there and another model than" in refused(model__path=str(elsewhere))
    shutil.rmtree(project.root / "models/mine")
    project.dvc("remote", "remove", "storage")
    assert "dvc push models/mine.dvc: ERROR: failed to push" in refused()


def test_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/a").mkdir(parents=True)
    (tmp_path / "models/b.yaml").touch()
    (tmp_path / "link").symlink_to("/tmp")
    found = [
        place_of(p).as_posix() for p in (tmp_path / "models/a", tmp_path / "models/b.yaml", tmp_path / "link")
    ]
    assert found == ["models/a", "models/b", "models/link"]
