"""The scripts that remake the bundled models run, resume after a kill, and write models that dinv loads."""

import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
import traceback
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from PIL import Image

from dinv.errors import UserError
from dinv.features.network import load_network
from dinv.images.resize import to_square
from dinv.sources import parquet
from models.pretraining.data import load_images, load_labels
from models.pretraining.domain import load_domain, symmetry
from models.pretraining.encoder import ImageTokens, pooled
from models.pretraining.features import save
from models.pretraining.loop import Trained, batch_ids, learning_rate, start_from
from models.pretraining.sample_task import sample
from models.pretraining.unet import Denoiser, earlier_steps
from models.pretraining.views import random_views

DOMAINS = tiny.ROOT / "models/domains"
STEPS = 4


def save_parquet(path, n=16, side=64):
    def encoded(array):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    images = [encoded(a) for a in tiny.random_images(n, side)]
    pq.write_table(pa.table({"image": images, "class": ["river", "forest"] * (n // 2)}), path)
    return path


def call(name, arguments):
    """A command's main, not compiled: that takes a minute and changes neither steps nor files."""
    arguments = [name, *map(str, arguments)]
    with mock.patch.object(sys, "argv", arguments), mock.patch.object(torch, "compile", lambda f: f):
        importlib.import_module(f"models.pretraining.{name}").main()


def start(step, domain, images, output, *options):
    """The command in a fork of this process, which has paid for the imports; its pid and what it says."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        sys.stdout = sys.stderr = os.fdopen(writes, "w")
        status = 1
        try:
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
            files = ["--domain", DOMAINS / f"{domain}.yaml", "--images", images, "--output", output]
            call(step, [*files, "--batch-size", "8", "--checkpoint-every", "1", *options])
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    os.close(writes)
    return pid, os.fdopen(reads)


def run(*arguments):
    pid, said = start(*arguments)
    with said:
        text = said.read()
    assert os.waitpid(pid, 0)[1] == 0, text
    return text


def kill_after_first_step(*arguments):
    pid, said = start(*arguments)
    with said:
        assert any("step 1 of" in line for line in said)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "it had ended before it could be killed"


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model of satellite tiles made in one go, and the images it has seen."""
    root = tmp_path_factory.mktemp("whole")
    images = save_parquet(root / "pretrain.parquet")
    for step in ("vae", "encoder", "unet"):
        run(step, "satellite", images, root / "whole/model", "--steps", STEPS)
    return root / "whole/model", images


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(whole, tmp_path):
    whole, images = whole
    killed = tmp_path / "killed/model"
    for step in ("vae", "encoder", "unet"):
        kill_after_first_step(step, "satellite", images, killed, "--steps", STEPS)
        assert f"{step} step 1 of" not in run(step, "satellite", images, killed, "--steps", STEPS)
    assert digests(whole.parent) == digests(killed.parent)
    model = tiny.load_tiny(whole, resolution=32)
    assert model.latent_shape == (8, 8, 8) and model.empty_prompt_embeds(5).shape == (5, 128)
    assert model.schedule["timestep_spacing"] == "linspace"
    size = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
    assert size < 20e6, "a bundled model must stay below 20 MB"


@pytest.mark.slow
def test_clothes_are_made_in_the_shipped_layout(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10_016, 28, 28), np.uint8)
    tiny.write_idx(tmp_path / "images.gz", images)
    for step in ("vae", "encoder", "unet"):
        out = run(step, "fashion", tmp_path / "images.gz", tmp_path / "model", "--steps", "2")
        assert f"{step} step 2 of 2" in out
    shipped = tiny.ROOT / "models/fashion-ldm"
    for part in ("unet", "vae"):
        ours, theirs = (
            json.loads((m / part / "config.json").read_text()) for m in (tmp_path / "model", shipped)
        )
        trained = {"scaling_factor", "_diffusers_version"}
        assert {k: v for k, v in ours.items() if k not in trained} == {
            k: v for k, v in theirs.items() if k not in trained
        }


@pytest.mark.slow
def test_a_run_may_stop_early_and_still_give_the_average(whole, tmp_path):
    folder, images = whole
    shutil.copytree(folder.parent, tmp_path / "copy")
    unet = tmp_path / "copy/model/unet/diffusion_pytorch_model.safetensors"
    before = unet.read_bytes()
    unet.unlink()
    run("unet", "satellite", images, tmp_path / "copy/model", "--steps", "1")
    assert unet.read_bytes() == before


def test_images_come_in_colour_and_small(tmp_path):
    domain = load_domain(DOMAINS / "satellite.yaml")
    path = save_parquet(tmp_path / "pretrain.parquet")
    images = load_images(path, domain)
    assert images.shape == (16, 3, 32, 32) and images.min() >= -1 and images.max() <= 1
    assert load_labels(path, domain).tolist() == [1, 0] * 8


def test_labelled_clothes_are_left_out(tmp_path):
    domain = load_domain(DOMAINS / "fashion.yaml")
    clothes = np.zeros((10_002, 28, 28), np.uint8)
    clothes[10_000] = 255
    tiny.write_idx(tmp_path / "images.gz", clothes)
    images = load_images(tmp_path / "images.gz", domain)
    assert images.shape == (2, 1, 32, 32)
    assert images[0, 0, 2:30, 2:30].min() == 1 and images[0, 0, 0].max() == -1 and images[1].max() == -1


def test_there_are_eight_symmetries_and_the_second_mirrors():
    image = torch.arange(9.0).view(1, 3, 3)
    seen = {tuple(symmetry(image, i).flatten().tolist()) for i in range(8)}
    assert len(seen) == 8
    assert torch.equal(symmetry(image, 0), image) and torch.equal(symmetry(image, 1), image.flip(-1))


@pytest.mark.parametrize("name", ["satellite", "cells", "fashion"])
def test_views_keep_shape_and_range_and_differ(name):
    domain = load_domain(DOMAINS / f"{name}.yaml")
    torch.manual_seed(0)
    images = torch.rand(4, domain.channels, 32, 32) * 2 - 1
    first, second = random_views(images, domain.views), random_views(images, domain.views)
    assert first.shape == images.shape and first.abs().max() <= 1
    assert not torch.allclose(first, second)


def test_a_wrong_key_of_a_domain_is_named(tmp_path):
    path = tmp_path / "mars.yaml"
    path.write_text((DOMAINS / "satellite.yaml").read_text().replace("channels", "chanels"))
    with pytest.raises(UserError, match=r"mars\.yaml.*chanels"):
        load_domain(path)


def test_each_epoch_shows_every_image_once():
    epoch = torch.cat([batch_ids(12, step, 4) for step in range(3, 6)])
    assert sorted(epoch.tolist()) == list(range(12))
    assert epoch.tolist() != torch.cat([batch_ids(12, step, 4) for step in range(3)]).tolist()


def test_the_learning_rate_rises_and_falls_to_zero():
    rates = [learning_rate(step, 1000, 2.0) for step in range(1001)]
    assert rates[0] == 0.01 and max(rates) == rates[199] == 2.0 and rates[1000] == 0


def test_a_start_of_other_widths_is_refused(tmp_path):
    model = tiny.save_tiny_model(tmp_path / "other")
    with pytest.raises(UserError, match=r"--start .*other: has no unet of this domain's widths"):
        start_from(model, "unet", Denoiser((32, 64)).unet)


def test_a_missing_earlier_step_is_named(tmp_path):
    with pytest.raises(UserError, match=r"run python -m models\.pretraining\.vae first"):
        earlier_steps(tmp_path / "model")


def test_the_average_of_a_short_run_forgets_its_first_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    trained = Trained(model, ema_decay=0.999)
    for weight in [0.0] + 99 * [1.0]:
        torch.nn.init.constant_(model.weight, weight)
        trained.average.update_parameters(model)
    assert trained.average.module.weight.item() > 0.99, "0.999 from the start on would give 0.09"


def test_a_bundled_task_is_what_the_data_stage_would_make_of_the_originals(tmp_path):
    table = pq.read_table(save_parquet(tmp_path / "unnamed.parquet"))
    images = [{**entry, "path": f"{i}.png"} for i, entry in enumerate(table["image"].to_pylist())]
    pq.write_table(pa.table({"image": images, "class": table["class"]}), tmp_path / "all.parquet")
    for name, per_class in (("train", 3), ("test", 2)):
        sample(tmp_path / "all.parquet", per_class, 32, tmp_path / f"task/{name}.parquet")
    raw = parquet.load(tmp_path / "task", 0)
    assert sorted(raw.train.labels) == [0, 0, 0, 1, 1, 1] and sorted(raw.test.labels) == [0, 0, 1, 1]
    for i, name in enumerate(raw.train.ids):
        original = images[int(name.removeprefix("train/").removesuffix(".png"))]["bytes"]
        expected = to_square(Image.open(io.BytesIO(original)), 32, "center_crop", "RGB")
        assert np.array_equal(np.asarray(raw.train.read(i)), expected)
    with pytest.raises(UserError, match="class 'forest': 8 images"):
        sample(tmp_path / "all.parquet", 9, 32, tmp_path / "more.parquet")


@pytest.mark.parametrize("task", ["satellite", "cells"])
def test_bundled_tasks_have_the_images_that_their_cards_name(task):
    raw = parquet.load(tiny.ROOT / "data/bundled" / task, 0)
    train, test = np.bincount(raw.train.labels), np.bincount(raw.test.labels)
    card = (tiny.ROOT / f"data/bundled/{task}/README.md").read_text()
    assert f"has {train.min()} images per class" in card and len({*train}) == len({*test}) == 1
    assert (
        f"`test.parquet` {test.min()} per\nclass" in card or f"`test.parquet` {test.min()} per class" in card
    )
    assert test.sum() >= 2000 and train.min() >= 100
    names = {name.partition("/")[2] for name in raw.train.ids} & {n.partition("/")[2] for n in raw.test.ids}
    assert not names
    assert raw.train.read(0).size == raw.test.read(0).size == (32, 32)


def test_the_encoder_ships_its_convolutions_averaged_over_positions(tmp_path):
    torch.manual_seed(0)
    encoder = ImageTokens(3)
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    encoder(images)  # moves the batch normalisations' running means
    encoder.eval()
    save(pooled(encoder, 3), tmp_path)
    with torch.no_grad():
        found = load_network(tmp_path)(images)
        maps = encoder.body[:15](images)
    assert maps.shape == (8, 128, 4, 4)
    torch.testing.assert_close(found, maps.mean((2, 3)), rtol=2e-2, atol=2e-3)  # float16 weights
    assert not hasattr(load_network(tmp_path), "head")
