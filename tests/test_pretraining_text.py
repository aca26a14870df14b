"""A model with text is made from several sources, every step resumes, and dinv reads all its parts."""

import importlib
import json
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image
from test_pretraining import DOMAINS, call, digests, save_parquet

from dinv.diffusion.image_encoder import load_image_encoder
from dinv.errors import UserError
from dinv.features.extractors import load_extractor
from dinv.sources import image_folder
from models.pretraining import loop, measure
from models.pretraining.clip import clip_loss, image_features, load_clip
from models.pretraining.data import captions_of, load_captioned, load_images
from models.pretraining.domain import load_domain
from models.pretraining.image_encoder import Frozen, ImageEmbedding
from models.pretraining.loop import start_from
from models.pretraining.mosaics import read_mosaics
from models.pretraining.text import MAX_LENGTH, Captions, TextEncoder, ids_of, train_tokenizer
from models.pretraining.unet import Denoiser
from models.pretraining.vae import autoencoder

NAMES = ["trilobite", "slug, slimy thing", "lion, king of beasts, Panthera leo", "goldfish"]
NUM_PHOTOS, NUM_TILES = 40, 16  # the last of each are at hand as unseen ones, too
STEPS = ["vae", "clip", "encoder", "unet", "image_encoder", "vae --decoder-only"]


def save_mosaics(folder, n=NUM_PHOTOS):
    """A mosaic whose images differ in brightness, so that JPEG keeps them apart."""
    folder.mkdir(parents=True)
    levels = np.zeros((256, 32, 32, 3), np.uint8) + np.arange(256, dtype=np.uint8)[:, None, None, None]
    mosaic = levels.reshape(16, 16, 32, 32, 3).swapaxes(1, 2).reshape(512, 512, 3)
    Image.fromarray(mosaic).save(folder / "0000.jpg", quality=100)
    np.save(folder / "labels.npy", (np.arange(n) % 4).astype(np.int16))
    classes = [{"index": i, "name": name} for i, name in enumerate(NAMES)]
    (folder.parent / "classes.json").write_text(json.dumps({"classes": classes}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    save_mosaics(root / "tiny-imagenet-32/pretrain")
    for folder in ("eurosat", "blood_cells"):
        (root / folder).mkdir()
        for split in ("pretrain", "pool"):
            save_parquet(root / folder / f"{split}.parquet", NUM_TILES)
    settings = yaml.safe_load((DOMAINS / "photos.yaml").read_text())
    settings["sources"][0]["held_out"] = {"images_per_class": 4, "classes": ["slug", "lion"]}
    (root / "photos.yaml").write_text(yaml.safe_dump(settings))
    return root


def run(step, data, output, *options):
    """The command in this process: importing torch again would take longer than two steps."""
    name, *flags = step.split()
    files = ["--domain", data / "photos.yaml", "--images", data, "--output", output]
    sizes = ["--steps", "2", "--batch-size", "8", "--checkpoint-every", "1"] if step in STEPS else []
    call(name, [*files, *flags, *sizes, *options])


def interrupt_after_first_step(*arguments):
    def save_and_stop(checkpoint, step, save=loop.Checkpoint.save):
        save(checkpoint, step)
        raise KeyboardInterrupt

    with mock.patch.object(loop.Checkpoint, "save", save_and_stop), pytest.raises(KeyboardInterrupt):
        run(*arguments)


@pytest.fixture(scope="module")
def models(data, tmp_path_factory):
    """The same model made in one go and with every step interrupted, and its VAE before the decoder's step."""
    root = tmp_path_factory.mktemp("models")
    whole, killed = root / "whole/model", root / "killed/model"
    for step in STEPS:
        if step == STEPS[-1]:
            first_vae = AutoencoderKL.from_pretrained(whole / "vae")
        run(step, data, whole)
        interrupt_after_first_step(step, data, killed)
        run(step, data, killed)
    return SimpleNamespace(whole=whole, killed=killed, first_vae=first_vae)


@pytest.mark.slow
def test_interrupted_steps_resume_to_the_same_bytes(models):
    assert digests(models.whole.parent) == digests(models.killed.parent)


@pytest.mark.slow
def test_dinv_loads_the_model_and_agrees_on_the_empty_prompt(models):
    model = tiny.load_tiny(models.whole, resolution=32)
    assert model.latent_shape == (8, 8, 8) and model.width == 128
    empty = TextEncoder(models.whole)([""])[0]
    assert torch.allclose(model.empty_prompt_embeds(MAX_LENGTH), empty, atol=1e-6)
    assert not (models.whole / "empty_prompt_embeds.safetensors").exists()


@pytest.mark.slow
def test_the_clip_folder_is_a_feature_network(models):
    images = tiny.random_images(3, 32)
    features = load_extractor("clip", models.whole / "clip", torch.device("cpu"))(images)
    clip, _ = load_clip(models.whole)
    with torch.no_grad():
        ours = image_features(clip, torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    assert torch.allclose(torch.nn.functional.normalize(features, dim=1), ours, atol=1e-3)


@pytest.mark.slow
def test_the_image_encoder_learns_from_clip_for_the_frozen_unet(models):
    images = tiny.random_images(3, 32)
    clip, _ = load_clip(models.whole)
    found = load_image_encoder(models.whole, torch.device("cpu"))(images)
    with torch.no_grad():
        started = ImageEmbedding(clip)(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)[:, 0]
    assert found.shape == (3, 128), "the width of the UNet's cross-attention"
    near = (found - started).norm() / started.norm()
    assert 0 < near < 0.5, "two steps away"
    report = json.loads((models.whole / "measured_image_encoder.json").read_text())
    assert len(report) == 3 and all(len(part) == 4 for part in report.values())


@pytest.mark.slow
def test_training_the_decoder_alone_keeps_latents(models):
    vae = AutoencoderKL.from_pretrained(models.whole / "vae")
    assert vae.config.scaling_factor == models.first_vae.config.scaling_factor
    before = models.first_vae.state_dict()
    changed = {k for k, v in vae.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith(("decoder.", "post_quant_conv.")) for k in changed)


@pytest.mark.slow
def test_an_autoencoder_starts_from_another(models, data):
    vae = autoencoder(load_domain(data / "photos.yaml"))
    start_from(models.whole, "vae", vae)
    theirs = AutoencoderKL.from_pretrained(models.whole / "vae", torch_dtype=torch.float32).state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in vae.state_dict().items())


@pytest.mark.slow
def test_it_is_measured_on_unseen_images_of_each_source(models, data, capsys, monkeypatch):
    monkeypatch.setattr(measure, "SAMPLING_STEPS", 2)
    run("measure", data, models.whole)
    report = json.loads(capsys.readouterr().out)
    assert [part["images"] for part in report.values()] == [8, NUM_TILES, NUM_TILES]
    for part in report.values():
        assert {"loss_own_tokens", "loss_own_caption", "loss_empty_prompt"} <= part.keys()
        assert 0 <= part["clip_zero_shot_accuracy"] <= 1
    assert (models.whole / "samples.png").exists()


def test_a_picture_leaves_out_images_that_may_not_be_shown(data):
    domain = load_domain(data / "photos.yaml")
    unseen = load_captioned(data, domain, unseen=True)
    parts = [unseen.only(unseen.sources == number) for number in range(3)]
    few = measure.few_to_show(parts, domain)
    assert torch.equal(few, torch.cat([parts[1].images[:5], parts[2].images[:5]]))


def test_an_image_encoder_needs_a_finished_model(tmp_path):
    (tmp_path / "vae").mkdir()
    with pytest.raises(
        UserError, match=r"unet: no such folder; run python -m models\.pretraining\.unet first"
    ):
        Frozen(tmp_path)


def test_a_missing_clip_is_named(tmp_path):
    with pytest.raises(UserError, match=r"run python -m models\.pretraining\.clip first"):
        TextEncoder(tmp_path)


def test_held_out_images_are_in_no_training_set(data):
    domain = load_domain(data / "photos.yaml")
    seen, unseen = load_captioned(data, domain), load_captioned(data, domain, unseen=True)
    assert seen.sources.bincount().tolist() == [NUM_PHOTOS - 8, NUM_TILES, NUM_TILES]
    assert unseen.sources.bincount().tolist() == [8, NUM_TILES, NUM_TILES]
    photos = [d.images[d.sources == 0].mean((1, 2, 3)) for d in (seen, unseen)]
    levels = ((photos[1] + 1) * 127.5).round().tolist()
    assert levels == [25, 26, 29, 30, 33, 34, 37, 38], "the last four of classes 1 and 2, in order"
    assert torch.cdist(photos[0][:, None], photos[1][:, None]).min() > 0.5 / 127.5
    assert load_images(data, domain).shape == seen.images.shape


def test_captions_name_the_class_of_photos_only(data):
    domain = load_domain(data / "photos.yaml")
    seen = load_captioned(data, domain)
    assert seen.captions[1][0] == "a photo of a slug" and "a photo of a slimy thing" in seen.captions[1]
    assert seen.captions[4] == list(domain.sources[1].captions) and len(seen.captions) == 6
    assert seen.kinds[seen.sources == 1].unique().tolist() == [4]
    captions = Captions(seen.captions)
    kinds = torch.arange(6).repeat(200)
    drawn = captions.draw(kinds)
    assert all(captions.texts[i] in seen.captions[k] for i, k in zip(drawn, kinds, strict=True))
    assert len(set(drawn.tolist())) > 50


def test_half_of_the_captions_use_the_first_name():
    captions = captions_of(["lion", "king of beasts", "Panthera leo"], ("a {}", "{}"))
    assert sum("lion" in c for c in captions) == len(captions) / 2 and len(captions) == 8
    assert captions_of(["fly"], ("{}",)) == ["fly"]


def test_the_tokenizer_reads_any_text(tmp_path):
    tokenizer = train_tokenizer(["a photo of a lion", "a photo of a slug"] * 3, tmp_path)
    ids = ids_of(tokenizer, ["a photo of a lion", "", "Ünknown 7 words & more than fit into sixteen places"])
    assert ids.shape == (3, MAX_LENGTH) and (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (ids[1, 1:] == tokenizer.eos_token_id).all() and ids[2, -1] == tokenizer.eos_token_id
    assert (ids[0] != tokenizer.eos_token_id).sum() == 6, "words that were seen are one token each"
    assert tokenizer.eos_token_id not in ids[2, :-1], "no byte is unknown"
    assert (tmp_path / "vocab.json").exists() and (tmp_path / "merges.txt").exists()


def test_every_caption_of_the_kind_is_right():
    kinds = torch.tensor([0, 0, 1])
    right = 50 * (kinds[:, None] == kinds).float()
    assert clip_loss(right, kinds).item() == pytest.approx(2 / 3 * np.log(2), abs=1e-4)
    assert clip_loss(50 * torch.eye(3), kinds) > 1, "its own caption alone is not"


def test_text_and_tokens_go_through_the_unet_apart():
    model = Denoiser((32, 64), empty=torch.full((16, 128), 7.0))
    seen = []

    def unet(noisy, t, condition):
        seen.append((t, condition))
        return SimpleNamespace(sample=torch.full((len(noisy),), condition.shape[1]))

    del model.unet
    model.unet = unet
    noisy, t = torch.zeros(1000, 8, 1, 1), torch.arange(1000)
    predicted = model(noisy, t, torch.zeros(1000, 5, 128), torch.ones(600, 16, 128))
    by_length = {condition.shape[1]: (steps, condition) for steps, condition in seen}
    assert torch.equal(by_length[16][0], t[:600]) and torch.equal(by_length[5][0], t[600:])
    for length, (_, condition) in by_length.items():
        empty = (condition == 7).all((1, 2)).float().mean()
        assert 0.05 < empty < 0.15, f"{length} tokens: empty {empty}"
    assert predicted.tolist() == [16] * 600 + [5] * 400, "in the order of the images"


def test_mosaics_are_unpacked_as_an_image_folder(data, tmp_path):
    mosaics = read_mosaics(data / "tiny-imagenet-32/pretrain")
    unpack(data, tmp_path / "photos")
    splits = image_folder.load(tmp_path / "photos", 0)
    assert splits.class_names == ["goldfish", "lion", "slug", "trilobite"]
    pictures = {int(p.stem): np.asarray(Image.open(p)) for p in (tmp_path / "photos").rglob("*.png")}
    assert all(np.array_equal(pictures[i], image) for i, image in enumerate(mosaics.images))
    assert len(pictures) == NUM_PHOTOS


def test_held_out_images_are_unpacked_as_train_and_test(data, tmp_path):
    unpack(data, tmp_path / "seen", "--held-out", data / "photos.yaml")
    rows = {s: sorted(int(p.stem) for p in (tmp_path / "seen" / s).rglob("*.png")) for s in ("train", "test")}
    assert rows == {"train": [25, 26, 29, 30], "test": [33, 34, 37, 38]}
    assert image_folder.load(tmp_path / "seen", 0).class_names == ["lion", "slug"]
    with pytest.raises(UserError, match="exists; remove it"):
        unpack(data, tmp_path / "seen")


def unpack(data, output, *options):
    images = data / "tiny-imagenet-32/pretrain"
    arguments = ["unpack", "--images", images, "--output", output, *options]
    with mock.patch.object(sys, "argv", [*map(str, arguments)]):
        importlib.import_module("models.pretraining.unpack_mosaics").main()


def test_a_class_to_hold_out_must_exist(data, tmp_path):
    wrong = (data / "photos.yaml").read_text().replace("- lion", "- loin")
    (tmp_path / "photos.yaml").write_text(wrong)
    with pytest.raises(UserError, match="'loin' is no class's first name"):
        load_images(data, load_domain(tmp_path / "photos.yaml"))
