"""The scripts that remake the bundled model run, resume, and write a model that dinv loads."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.slow
NOT_COMPILED = os.environ | {"TORCHDYNAMO_DISABLE": "1"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    images = np.random.default_rng(0).integers(0, 256, (10_064, 28, 28), np.uint8)
    tiny.write_idx(folder / "images.gz", images)
    return folder


def script(name, workplace, steps):
    command = [sys.executable, str(tiny.ROOT / f"models/pretrain_{name}.py"), "--images", "images.gz"]
    sizes = ["--output", "model", "--batch-size", "8", "--steps", str(steps)]
    done = subprocess.run(
        command + sizes, cwd=workplace, capture_output=True, text=True, check=False, env=NOT_COMPILED
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_three_steps_make_a_model_and_resume(workplace):
    for name in ("vae", "encoder", "unet"):
        assert f"{name} step 2 of 2" in script(name, workplace, 2)
    assert "encoder step 3 of 3" in script("encoder", workplace, 3)
    model = tiny.load_tiny(workplace / "model", resolution=32)
    assert model.latent_shape == (8, 8, 8) and model.empty_prompt_embeds(5).shape == (5, 128)
    shipped = tiny.load_tiny(tiny.ROOT / "models/fashion-ldm", resolution=32)
    ours, theirs = model.unet.config, shipped.unet.config
    assert {k: v for k, v in ours.items() if k[0] != "_"} == {k: v for k, v in theirs.items() if k[0] != "_"}
