"""The frozen model's functions against diffusers and closed forms."""

import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from transformers import CLIPTextModel, CLIPTokenizer

from dinv.diffusion.sampling import sample
from dinv.errors import UserError


def latents(n=2, seed=0):
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def embeds(n=2, tokens=3, seed=1):
    return torch.randn(n, tokens, 16, generator=torch.Generator().manual_seed(seed))


def test_add_noise_equals_diffusers(model):
    z0, eps, t = latents(), latents(seed=9), torch.tensor([3, 700])
    scheduler = DDPMScheduler.from_config(model.schedule)
    torch.testing.assert_close(model.add_noise(z0, eps, t), scheduler.add_noise(z0, eps, t))


def test_v_target_equals_diffusers(v_model):
    z0, eps, t = latents(), latents(seed=9), torch.tensor([3, 700])
    expected = DDPMScheduler.from_config(v_model.schedule).get_velocity(z0, eps, t)
    torch.testing.assert_close(v_model.target(z0, eps, t), expected)


def test_epsilon_target_is_the_noise(model):
    eps = latents(seed=9)
    assert model.target(latents(), eps, torch.tensor([3, 700])) is eps


def test_guidance_is_linear_and_scale_one_ignores_the_unconditional(model):
    z, t, c, u = latents(), torch.tensor([10, 500]), embeds(), embeds(seed=5)
    conditional, unconditional = model.predict(z, t, c), model.predict(z, t, u)
    assert torch.equal(model.guided(z, t, c, u * float("nan"), 1), conditional)
    # The paper's form with w = s - 1.
    w = 1.5
    paper = (1 + w) * conditional - w * unconditional
    torch.testing.assert_close(model.guided(z, t, c, u, 1 + w), paper, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("ddim", lambda c: DDIMScheduler.from_config(c, clip_sample=False, set_alpha_to_one=False)),
        ("pndm", lambda c: PNDMScheduler.from_config(c, skip_prk_steps=True, set_alpha_to_one=False)),
        ("dpmsolver++", DPMSolverMultistepScheduler.from_config),
    ],
)
def test_sampling_equals_diffusers_own_pipeline(text_model_folder, name, reference):
    """StableDiffusionPipeline with prompt_embeds is an independent implementation of the loop."""
    model = tiny.load_tiny(text_model_folder)
    noise, c, u = latents(), embeds(), embeds(seed=5)
    ours = sample(model, noise, c, u, 2.0, name, 4).numpy()
    pipeline = StableDiffusionPipeline(
        vae=model.vae,
        unet=model.unet,
        scheduler=reference(model.schedule),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=c,
        negative_prompt_embeds=u,
        latents=noise,
        guidance_scale=2.0,
        num_inference_steps=4,
        height=16,
        width=16,
        output_type="np",
    ).images
    difference = np.abs(ours.astype(int) - np.round(theirs * 255))
    # A random model amplifies rounding; a wrong loop is off by tens of levels.
    assert difference.mean() < 1 and difference.max() <= 4


def test_v_prediction_and_epsilon_models_of_equal_weights_sample_differently(model, v_model):
    c = embeds()
    a = sample(model, latents(), c, c, 1.0, "ddim", 3)
    b = sample(v_model, latents(), c, c, 1.0, "ddim", 3)
    assert not torch.equal(a, b)


def test_sampling_does_not_depend_on_the_batch(model):
    noise, c = latents(4), embeds(4)
    together = sample(model, noise, c, c, 1.0, "dpmsolver++", 3).int()
    alone = torch.cat(
        [sample(model, noise[i : i + 1], c[i : i + 1], c[:1], 1.0, "dpmsolver++", 3) for i in range(4)]
    )
    assert (together - alone.int()).abs().max() <= 1


def test_encode_scales_like_diffusers_and_decode_inverts_the_pixel_range(model):
    images = torch.from_numpy(tiny.random_images(2))
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = model.vae.encode(pixels).latent_dist.mean * model.vae.config.scaling_factor
        decoded = model.vae.decode(expected / model.vae.config.scaling_factor).sample
    torch.testing.assert_close(model.encode(images).mean, expected)
    levels = ((decoded.clamp(-1, 1) / 2 + 0.5) * 255).round().byte().permute(0, 2, 3, 1)
    assert torch.equal(model.decode(expected), levels)


def test_grey_images_enter_a_colour_model_but_not_the_reverse(model, grey_model_folder):
    grey = torch.from_numpy(tiny.random_images(1, channels=1))
    torch.testing.assert_close(model.encode(grey).mean, model.encode(grey.expand(-1, -1, -1, 3)).mean)
    with pytest.raises(UserError, match=r"data\.mode.*set it to L"):
        tiny.load_tiny(grey_model_folder).encode(torch.from_numpy(tiny.random_images(1)))


def test_empty_prompt_is_clip_of_the_empty_string(text_model_folder, model):
    tokenizer = CLIPTokenizer.from_pretrained(text_model_folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(text_model_folder / "text_encoder")
    ids = torch.tensor([[tokenizer.bos_token_id, *[tokenizer.eos_token_id] * 7]])
    with torch.no_grad():
        expected = encoder(ids).last_hidden_state[0, :3]
    torch.testing.assert_close(model.empty_prompt_embeds(3), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_precisions_give_close_images(text_model_folder, model, dtype):
    other = tiny.load_tiny(text_model_folder, dtype=dtype)
    assert next(other.unet.parameters()).dtype == getattr(torch, dtype)
    c = embeds()
    a, b = (sample(m, latents(), c, c, 1.0, "ddim", 3).float() for m in (model, other))
    assert (a - b).abs().mean() < 8


def test_bfloat16_gradients_of_embeddings_are_close_to_float32(text_model_folder, model):
    """On the CPU they take another attention kernel than images do."""
    g = torch.Generator().manual_seed(3)
    z, c = torch.randn(4, 4, 8, 8, generator=g), torch.randn(4, 3, 16, generator=g)
    t, gradients = torch.tensor([10, 200, 500, 900]), []
    for m in (model, tiny.load_tiny(text_model_folder, dtype="bfloat16")):
        own = c.clone().requires_grad_()
        gradients += torch.autograd.grad(m.predict(z, t, own).square().sum(), own)
    similarity = torch.cosine_similarity(*(gradient.flatten(1) for gradient in gradients))
    assert (similarity > 0.98).all()
