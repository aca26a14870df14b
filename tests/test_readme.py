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
SMALL_RUN = (
    "dvc exp run -S model.resolution=16 -S model.dtype=float32 -S data.resolution=16 "
    "-S invert.embeddings.num_visits=2 -S generate.inversion.num_inference_steps=2 -S train.cnn.num_steps=2"
)
# Small numbers in place of the real ones, and places of this test for places of the reader.
SMALLER = {
    f"{PIN}\ndvc repro": f"{PIN}\n{SMALL_RUN}",
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
    """Two classes in colour, and what `dinv init` chooses from: presets, and a model in colour."""
    shutil.copytree(tiny.ROOT / "presets", root / "presets", dirs_exist_ok=True)
    tiny.save_tiny_model(root / "models/cells-ldm", text=False)
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
        project.set(train__cnn__num_steps=2, train__cnn__warmup_steps=0)
    done = project.run("bash", "-e", "-c", script, **extra)
    assert "ERROR" not in done.stderr
