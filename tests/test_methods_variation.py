"""Image-variation models: strategy variation against diffusers' pipeline, and inversion from the encoder's embedding."""

import shutil
from dataclasses import asdict

import pytest
import tiny
import tiny_methods as methods
import torch
from diffusers import DDIMScheduler, StableDiffusionImageVariationPipeline
from PIL import Image
from tiny_methods import make, plan, render
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from dinv.diffusion.loading import model_digest
from dinv.errors import UserError
from dinv.execution.params import ExecutionParams
from dinv.inversion.bank import load_bank
from dinv.inversion.base import Place
from dinv.inversion.encoded import encoder_embeds
from dinv.inversion.registry import METHODS
from dinv.strategies.from_noise import start_latents
from dinv.strategies.worker import image_digests

BLOCK = {**methods.SAMPLER, "num_images_per_source": 2}


def save_variation_model(folder, width=16, num_channels=3):
    """The layout of StableDiffusionImageVariationPipeline: no text encoder, no empty prompt."""
    tiny.save_tiny_model(folder, text=False, num_channels=num_channels)
    (folder / "empty_prompt_embeds.safetensors").unlink()
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=24, patch_size=8, projection_dim=width,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    CLIPImageProcessor(**size).save_pretrained(folder / "feature_extractor")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_variation_model(tmp_path_factory.mktemp("variation") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return tiny.load_tiny(folder)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return methods.save_real(tmp_path_factory.mktemp("real") / "train")


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "scratch"))


def pipeline(model):
    pipe = StableDiffusionImageVariationPipeline(
        vae=model.vae,
        unet=model.unet,
        scheduler=DDIMScheduler.from_config(
            model.schedule, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(f"{model.params.path}/image_encoder"),
        feature_extractor=CLIPImageProcessor.from_pretrained(f"{model.params.path}/feature_extractor"),
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_variation_is_that_of_diffusers(folder, real, monkeypatch):
    model = tiny.load_tiny(folder)
    model.schedule["steps_offset"] = 1  # the only one that diffusers' pipelines accept
    strategy = make("variation", real, model, **BLOCK)
    draws = plan(strategy)[:4]
    inputs = strategy.inputs(draws)
    assert [(d.source_id, d.label) for d in draws] == [(f"image-{i}", i % 3) for i in range(4)]
    theirs = pipeline(model)(
        [Image.fromarray(image) for image in real.take(range(4)).images],
        height=16,
        width=16,
        latents=start_latents(inputs["noise_seed"], model.latent_shape),
        num_inference_steps=4,
        guidance_scale=2.0,
        output_type="np",
    ).images
    difference = (render(strategy, model, draws).float() - torch.from_numpy(theirs) * 255).abs()
    assert difference.max() <= 0.51


def test_without_guidance_nothing_leads_away_and_costs_half(model, real):
    plain = make("variation", real, model, **{**BLOCK, "guidance_scale": 1.0})
    assert "negative_prompt_embeds" not in plain.inputs(plan(plain)[:1])
    assert plan(plain)[0].facts["unet_passes"] == 4
    assert plan(make("variation", real, model, **BLOCK))[0].facts["unet_passes"] == 8


def test_images_depend_on_their_id_and_the_seed_alone(model, real, tmp_path):
    few, many, other = (
        make("variation", real, model, **{**BLOCK, **update})
        for update in ({}, {"num_images_per_source": 3}, {"seed": 1})
    )
    digests = image_digests(few, plan(few), [])
    assert image_digests(many, plan(many)[: len(few)], []) == digests and len(many) == 21
    assert not set(digests) & set(image_digests(other, plan(other), []))
    whole = render(few, model).int()
    backwards = render(few, model, plan(few)[::-1], micro_batch=2).int().flip(0)
    assert (whole - backwards).abs().max() <= 1
    shuffled = make(
        "variation", methods.save_real(tmp_path / "order", order=[6, 2, 0, 5, 1, 4, 3]), model, **BLOCK
    )
    again = {d.id: (d, x) for d, x in zip(plan(shuffled), render(shuffled, model).int(), strict=True)}
    assert [asdict(again[d.id][0]) for d in plan(few)] == [asdict(d) for d in plan(few)]
    assert (torch.stack([again[d.id][1] for d in plan(few)]) - whole).abs().max() <= 1
    assert all(len(shown) and label for label, shown in few.previews())


def test_grey_images_are_encoded_as_grey_pictures(model):
    grey = tiny.random_images(3, channels=1)
    from dinv.diffusion.image_encoder import load_image_encoder

    encode = load_image_encoder(tiny.Path(model.params.path), torch.device("cpu"))
    torch.testing.assert_close(encode(grey), encode(grey.repeat(3, axis=3)))


# Inversion from the encoder's embedding.


def warm_params(**update):
    values = {**tiny.invert_params().model_dump(), "method": "warm_image_embeddings", "init": "image_encoder"}
    return METHODS["warm_image_embeddings"].Params.model_validate({**values, **update})


def learn(method, params, real, model, output):
    place = Place(lambda: model, ["code", "model"], ExecutionParams.here("cpu"))
    return METHODS[method].learn(params, real, place, output)


def test_learning_starts_from_the_encoders_embedding(model, real, tmp_path):
    curve = learn("warm_image_embeddings", warm_params(lr=1e-9, num_visits=2), real, model, tmp_path / "a")
    bank = load_bank(tmp_path / "a")
    expected = encoder_embeds(model, real, "test")[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(bank.prompt_embeds, expected, atol=1e-6, rtol=1e-5)
    assert bank.ids == real.ids and {loss.kind for loss in curve} == {"training", "heldout"}
    # Attention to K equal tokens is attention to one.
    z, t = torch.randn(7, 4, 8, 8), torch.full((7,), 500)
    one = model.predict(z, t, expected[:, :1])
    torch.testing.assert_close(model.predict(z, t, expected), one, rtol=1e-4, atol=1e-5)


def test_apart_from_the_start_it_is_the_inversion_of_image_embeddings(folder, real, tmp_path):
    """With an encoder that says the same of every image, an empty prompt that says so too gives the same bank."""
    model = tiny.load_tiny(folder)
    same = torch.linspace(-1, 1, 16)
    from dinv.inversion import warm_start

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warm_start, "encoder_embeds", lambda model, real, user: same.repeat(len(real), 1))
        learn("warm_image_embeddings", warm_params(init_std=0.1), real, model, tmp_path / "warm")
    model._empty_prompt = same.repeat(3, 1)
    params = tiny.invert_params(init_std=0.1)
    learn("image_embeddings", params, real, model, tmp_path / "plain")
    for a, b in zip(*(vars(load_bank(tmp_path / name)).values() for name in ("warm", "plain")), strict=True):
        assert a == b if isinstance(a, list) else torch.equal(a, b)


def test_each_image_starts_from_its_own_whatever_the_micro_batch(model, real, tmp_path):
    params = warm_params(num_visits=2)
    place = Place(lambda: model, ["code"], ExecutionParams.here("cpu").model_copy(update={"micro_batch": 3}))
    METHODS["warm_image_embeddings"].learn(params, real, place, tmp_path / "small")
    learn("warm_image_embeddings", params, real, model, tmp_path / "large")
    small, large = (load_bank(tmp_path / name).prompt_embeds for name in ("small", "large"))
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-3)


# What does not fit.


@pytest.mark.parametrize("missing", ["image_encoder", "feature_extractor"])
def test_a_model_without_image_encoder_is_refused_in_one_line(folder, real, tmp_path, missing):
    shutil.copytree(folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / missing)
    model = tiny.load_tiny(tmp_path / "model")
    with pytest.raises(
        UserError, match=r"^variation: needs an image encoder, and model.path = .* has no"
    ) as raised:
        make("variation", real, model, **BLOCK)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"^warm_image_embeddings: needs an image encoder"):
        learn("warm_image_embeddings", warm_params(), real, model, tmp_path / "out")


def test_an_encoder_of_another_width_and_a_damaged_one_are_refused_in_one_line(folder, real, tmp_path):
    wide = tiny.load_tiny(save_variation_model(tmp_path / "wide", width=24))
    with pytest.raises(UserError, match=r"makes 24 numbers, its UNet's cross-attention takes 16"):
        make("variation", real, wide, **BLOCK)
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken/image_encoder/model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="its image encoder cannot be loaded"):
        make("variation", real, tiny.load_tiny(tmp_path / "broken"), **BLOCK)


def test_the_models_digest_covers_the_encoder_and_other_models_keep_theirs(
    folder, text_model_folder, tmp_path
):
    shutil.copytree(folder, tmp_path / "a")
    before = model_digest(tmp_path / "a")
    assert before == model_digest(folder)
    config = tmp_path / "a/image_encoder/config.json"
    config.write_text(config.read_text() + " ")
    assert model_digest(tmp_path / "a") != before
    shutil.copytree(text_model_folder, tmp_path / "b")
    before = model_digest(tmp_path / "b")
    shutil.copytree(folder / "feature_extractor", tmp_path / "b/feature_extractor")  # of a safety checker
    assert model_digest(tmp_path / "b") == before
