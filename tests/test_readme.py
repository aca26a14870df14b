"""README: its commands work, and what it says of parameters is so."""

import re
import shutil
from functools import reduce
from operator import getitem

import pytest
import tiny
from PIL import Image
from ruamel.yaml import YAML

from dinv.params import Params

README = (tiny.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
PIN = "models/stable-diffusion-v1-4.yaml"
# Small numbers in place of the real ones, and places of this test for places of the reader.
SMALLER = {
    "num_visits=1000": "num_visits=2",
    "model.resolution=256": "model.resolution=16",
    "data.resolution=96": "data.resolution=16",
    "s3://my-bucket": "../remote",
}


def lock():
    return YAML(typ="safe").load((tiny.ROOT / "dvc.lock").read_text())["stages"]


def test_committed_lock_belongs_to_the_committed_parameters():
    params = YAML(typ="safe").load((tiny.ROOT / "params.yaml").read_text())
    for stage, entry in lock().items():
        for name, value in entry.get("params", {}).get("params.yaml", {}).items():
            assert reduce(getitem, name.split("."), params) == value, (stage, name)


def test_what_reruns_is_said_of_every_section():
    rows = re.findall(r"^\| (?:a block of |a line of )?`(\w+)`", README, re.M)
    assert rows == list(Params.model_fields)


def test_first_block_is_the_make_targets():
    targets = re.findall(r"^(\w+):", (tiny.ROOT / "Makefile").read_text(), re.M)
    assert re.findall(r"^make (\w+)", BLOCKS[0], re.M) == ["repro", "test"]
    assert {"repro", "test"} <= set(targets)


def prepare_own_images(root):
    for k, name in enumerate(("cat", "dog")):
        folder = root / "my_images" / name
        folder.mkdir(parents=True)
        for i in range(5):
            Image.fromarray(tiny.random_images(1, 24, seed=10 * k + i)[0]).save(folder / f"{i}.png")


def prepare_hub_cache(root):
    """What a download would leave: the pinned snapshot of a tiny Stable Diffusion in the hub's cache."""
    pin = YAML(typ="safe").load((tiny.ROOT / PIN).read_text())
    folder = f"models--{pin['repo_id'].replace('/', '--')}"
    snapshot = root / "hub" / folder / "snapshots" / pin["revision"]
    tiny.save_tiny_model(snapshot)
    shutil.rmtree(snapshot / "tokenizer-source")
    return str(root / "hub")


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS[1:], ids=lambda b: b.split("\n")[0][:30])
def test_commands_work(finished, tmp_path, block):
    project = finished.copy(tmp_path / "copy")
    prepare_own_images(project.root)
    script = block
    for real, small in SMALLER.items():
        script = script.replace(real, small)
    extra = {}
    if PIN in block:
        extra["HF_HUB_CACHE"] = prepare_hub_cache(tmp_path)
        shutil.copy(tiny.ROOT / PIN, project.root / PIN)
        project.set(train__cnn__num_steps=2, train__cnn__warmup_steps=0, invert__embeddings__num_tokens=3)
    done = project.run("bash", "-e", "-c", script, **extra)
    assert "ERROR" not in done.stderr
