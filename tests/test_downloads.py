"""Fetching: one process at a time, what DVC sees of data/downloads, and what a start imports."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from dvc.repo import Repo
from PIL import Image

from dinv.errors import UserError
from dinv.images.image_set import load_image_set
from dinv.images.resize import convert_batch, to_square
from dinv.params import parse_params, read_yaml
from dinv.sources import downloaded, task
from dinv.sources.downloaded import Unpacked, fetch
from dinv.sources.idx import read_idx
from dinv.sources.registry import SOURCES
from stages import download

# Unpacks two files, the second when it may, and like torchvision's loaders trusts a folder that is there.
LOADER = """
import os, sys, time
from pathlib import Path
from dinv.sources.downloaded import Unpacked, fetch

def make(root):
    folder = root / "set"
    if not folder.exists():
        folder.mkdir()
        (folder / "a.png").touch()
        Path(sys.argv[1]).touch()
        while len(sys.argv) == 3 and not Path(sys.argv[2]).exists():
            time.sleep(0.02)
        (folder / "b.png").touch()
    return sorted(path.name for path in folder.iterdir())

print(fetch("toy", Path("data"), "toy.zip", make, Unpacked("set", "*.png", 2)))
"""


@contextlib.contextmanager
def loader(folder, *args):
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT), "DVC_ROOT": str(folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", LOADER, *map(str, args)], env=env, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(path):
    for _ in range(1000):
        if path.exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear")


def wait_for_waiting(process):
    line = process.stderr.readline()
    assert "another run is fetching toy; waiting for it" in line, line


def test_two_runs_that_fetch_the_same_archive_take_turns(tmp_path):
    with loader(tmp_path, tmp_path / "first", tmp_path / "go") as first:
        wait_for(tmp_path / "first")
        with loader(tmp_path, tmp_path / "second") as second:
            wait_for_waiting(second)
            (tmp_path / "go").touch()
            assert first.communicate()[0] == second.communicate()[0] == "['a.png', 'b.png']\n"
    assert not (tmp_path / "second").exists()


def test_what_a_killed_run_left_half_unpacked_is_removed_by_the_one_that_waits(tmp_path):
    with loader(tmp_path, tmp_path / "first", tmp_path / "never") as first:
        wait_for(tmp_path / "first")
        with loader(tmp_path, tmp_path / "second") as second:
            wait_for_waiting(second)
            first.kill()
            assert second.communicate()[0] == "['a.png', 'b.png']\n"


def test_an_attempt_does_not_trust_what_the_one_before_left(tmp_path):
    attempts = []

    def make(root):
        attempts.append((root / "set").exists())
        (root / "set").mkdir()
        if len(attempts) == 1:
            raise OSError("disk full")

    fetch("toy", tmp_path, "toy.zip", make, Unpacked("set", "*.png", 2))
    assert attempts == [False, False]


def test_a_read_only_folder_of_archives_needs_no_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(downloaded.os, "access", lambda *args: False)
    assert fetch("toy", tmp_path, "toy.zip", lambda root: root) == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_dvc_and_git_see_eurosats_split_and_no_archive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".dvcignore", ".gitignore", "data/downloads/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny.ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "--quiet"], check=True)
    split, archive = (tmp_path / "data/downloads" / n for n in ("split_zhou_EuroSAT.json", "cifar.tar.gz"))
    for path in (split, archive):
        path.write_text("one")
    repo = Repo.init()
    repo.run(name="download", cmd="echo done > out", deps=["data/downloads"], outs=["out"])
    assert repo.status() == {}
    archive.write_text("two")
    assert repo.status() == {}
    split.write_text("two")
    assert list(repo.status()) == ["download"]
    ignored = subprocess.run(
        ["git", "check-ignore", split, archive], check=False, capture_output=True, text=True
    )
    assert ignored.stdout.splitlines() == [str(archive)]


def test_a_run_in_a_copy_reads_the_split_that_dvc_sees_there(tmp_path, monkeypatch):
    """Not that of the project it was started from, where the archive is."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))
    (tmp_path / "project/data").mkdir(parents=True)
    (tmp_path / "project/data/split_zhou_EuroSAT.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^data/split_zhou_EuroSAT.json: no such file.*git add"):
        SOURCES["eurosat"](Path("data"), 0)


def test_choosing_reading_and_writing_images_needs_no_torch(tmp_path):
    script = """
import sys
from pathlib import Path
from dinv.images.image_set import ImageSetReader, save_image_set
from dinv.sources.params import DataParams
from dinv.sources.task import load_task
root, folder = sys.argv[1:]
given = {"source": "fashion_mnist", "root": root, "resolution": 32, "resize": "pad", "mode": "L", "seed": 0}
params = DataParams(**given, num_per_class=2, num_val_per_class=0, num_test=1)
save_image_set(load_task(params).train.load(), Path(folder))
ImageSetReader(Path(folder)).mapped()
print({"torch", "torchvision", "medmnist", "diffusers"} & set(sys.modules))
"""
    command = [sys.executable, "-c", script, str(tiny.ROOT / "data/bundled/fashion-mnist"), str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT), "DINV_SCRATCH": str(tmp_path)}
    assert subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("name", SOURCES)
def test_every_registered_source_is_there(name):
    assert callable(SOURCES[name])


def test_an_unknown_source_is_told_its_likely_name():
    raw = read_yaml(tiny.ROOT / "params.yaml")
    raw["data"]["source"] = "cifr10"
    with pytest.raises(
        UserError, match=r"data\.source = 'cifr10': no such source \(did you mean cifar10\?\).*stl10"
    ):
        parse_params(raw)


def stage(monkeypatch, place, model_folder, resize, sides):
    """Run the download stage in a new folder, on pictures of 30 pixels; return its image sets."""
    place.mkdir()
    monkeypatch.chdir(place)
    tiny.save_tiny_fashion_mnist(place / "mine", per_class=2, side=30)
    changed = {"root": "mine", "resolution": sides[0], "resize": resize, "num_per_class": 1}
    data = tiny.PARAMS.data.model_copy(update={**changed, "num_val_per_class": 1})
    download.main(data, tiny.model_params(model_folder, resolution=sides[1]))
    return {path.name: load_image_set(path) for path in (place / "data/real").iterdir() if path.is_dir()}


def test_the_model_gets_its_images_straight_from_the_originals(monkeypatch, tmp_path, grey_model_folder):
    sets = stage(monkeypatch, tmp_path / "a", grey_model_folder, "squash", (8, 24))
    originals = read_idx(tmp_path / "a/mine/train-images-idx3-ubyte.gz")
    small, large = sets["train"], sets["train_model"]
    assert set(sets) == {"train", "train_model", "val", "test"}
    assert small.ids == large.ids and small.labels.tolist() == large.labels.tolist()
    for found_small, found_large, image_id in zip(small.images, large.images, small.ids, strict=True):
        picture = Image.fromarray(originals[int(image_id.removeprefix("train/"))])
        assert (found_small == to_square(picture, 8, "squash", "L")).all()
        assert (found_large == to_square(picture, 24, "squash", "L")).all()


def test_pad_scales_the_padded_square_for_the_model(monkeypatch, tmp_path, grey_model_folder):
    sets = stage(monkeypatch, tmp_path / "a", grey_model_folder, "pad", (32, 16))
    assert (sets["train_model"].images == convert_batch(sets["train"].images, 16, 1)).all()


def test_equal_sides_give_equal_files(monkeypatch, tmp_path, grey_model_folder):
    stage(monkeypatch, tmp_path / "a", grey_model_folder, "center_crop", (16, 16))
    first, second = (tmp_path / f"a/data/real/{n}/part-00000.parquet" for n in ("train", "train_model"))
    assert first.read_bytes() == second.read_bytes()


def test_every_original_is_decoded_once(monkeypatch, tmp_path, grey_model_folder):
    reads, real = [], task.to_squares
    monkeypatch.setattr(task, "to_squares", lambda picture, *a: reads.append(picture) or real(picture, *a))
    sets = stage(monkeypatch, tmp_path / "a", grey_model_folder, "squash", (8, 24))
    assert len(reads) == sum(len(sets[name]) for name in ("train", "val", "test"))
