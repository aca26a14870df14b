"""The frozen model's functions against diffusers and closed forms."""

import copy
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from transformers import CLIPTextModel, CLIPTokenizer

from dinv.diffusion.guidance import guided
from dinv.diffusion.sampling import Guidance, make_scheduler, sample, timesteps
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


def always(c, u=None, scale=1.0):
    """Classifier-free guidance, the same at every step."""
    return lambda i, t: Guidance(u, ((c, scale),))


def test_guidance_is_linear_and_scale_one_ignores_the_unconditional(model):
    z, t, c, u = latents(), torch.tensor([10, 500]), embeds(), embeds(seed=5)
    conditional, unconditional = model.predict(z, t, c), model.predict(z, t, u)
    alone = guided(model.predict, z, t, Guidance(u * float("nan"), ((c, 1.0),)))
    assert torch.equal(alone, conditional)
    # The paper's form with w = s - 1.
    w = 1.5
    paper = (1 + w) * conditional - w * unconditional
    ours = guided(model.predict, z, t, Guidance(u, ((c, 1 + w),)))
    torch.testing.assert_close(ours, paper, rtol=1e-4, atol=1e-5)


def linear(z, t, c):
    """A model whose output tells the condition; remembers nothing."""
    return z * c.mean(dim=(1, 2)).view(-1, 1, 1, 1)


class Counting:
    """`linear`, and how many images were passed through it in each call."""

    def __init__(self):
        self.batches = []

    def __call__(self, z, t, c):
        self.batches.append(len(z))
        return linear(z, t, c)


def test_several_terms_are_the_weighted_sum():
    z, t, base, a, b = torch.ones(2, 4, 8, 8), torch.tensor([3, 9]), *(embeds(seed=s) for s in (1, 2, 3))
    eps, eps_a, eps_b = (linear(z, t, c) for c in (base, a, b))
    predict = Counting()
    ours = guided(predict, z, t, Guidance(base, ((a, 3.0), (b, -1.5))))
    torch.testing.assert_close(ours, eps + 3.0 * (eps_a - eps) - 1.5 * (eps_b - eps))
    assert predict.batches == [6]


@pytest.mark.parametrize(
    ("scales", "passes"),
    [
        ((1.0, 0.0), 1),
        ((0.0, 0.0), 1),
        ((2.0, 0.0), 2),
        ((0.25, 0.75), 2),
        ((0.7, 0.3 + 1e-16), 2),
        ((1.0, 1.0), 3),
    ],
)
def test_passes_without_weight_are_skipped(scales, passes):
    z, t, conditions = torch.ones(2, 4, 8, 8), torch.tensor([3, 9]), [embeds(seed=s) for s in (1, 2, 3)]
    eps, eps_a, eps_b = (linear(z, t, c) for c in conditions)
    predict = Counting()
    ours = guided(predict, z, t, Guidance(conditions[0], tuple(zip(conditions[1:], scales, strict=True))))
    torch.testing.assert_close(ours, eps + scales[0] * (eps_a - eps) + scales[1] * (eps_b - eps))
    assert predict.batches == [2 * passes]


def test_conditions_may_differ_in_tokens_and_a_missing_base_is_noticed():
    z, t, a, b = torch.ones(2, 4, 8, 8), torch.tensor([3, 9]), embeds(tokens=3), embeds(tokens=7)
    ours = guided(linear, z, t, Guidance(a, ((b, 2.0),)))
    torch.testing.assert_close(ours, 2 * linear(z, t, b) - linear(z, t, a))
    with pytest.raises(ValueError, match="must sum to 1, not 2"):
        guided(linear, z, t, Guidance(None, ((b, 2.0),)))


def plain_loop(model, z, steps, calls, conditions):
    """diffusers' loop, written out: the unconditional comes first in the batch, scale 2."""
    for t, (c, u) in zip(calls, conditions, strict=True):
        both = model.predict(torch.cat([z, z]), t.expand(2 * len(z)), torch.cat([u, c]))
        uncond, cond = both.chunk(2)
        z = steps.step(uncond + 2.0 * (cond - uncond), t, z).prev_sample
    return z


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpmsolver++"])
def test_sampling_is_the_plain_loop_bit_by_bit(model, name):
    c, u, steps = embeds(), embeds(seed=5), make_scheduler(model, name, 5)
    with torch.no_grad():
        expected = plain_loop(model, latents(), steps, steps.timesteps, [(c, u)] * len(steps.timesteps))
    assert torch.equal(sample(model, latents(), name, 5, always(c, u, 2.0)), expected)


def test_the_condition_may_change_at_a_step(model):
    a, b, u, steps = embeds(), embeds(seed=7), embeds(seed=5), make_scheduler(model, "dpmsolver++", 5)
    seen = []

    def guidance_at(i, t):
        seen.append((i, t))
        return Guidance(u, ((a if i < 2 else b, 2.0),))

    ours = sample(model, latents(), "dpmsolver++", 5, guidance_at)
    with torch.no_grad():
        expected = plain_loop(model, latents(), steps, steps.timesteps, [(a, u)] * 2 + [(b, u)] * 3)
    assert torch.equal(ours, expected)
    assert seen == list(enumerate(timesteps(model, "dpmsolver++", 5)))


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("first", [1, 3, 5])
def test_a_later_start_is_that_of_diffusers_image_to_image(model, name, first):
    z0, eps, c, u, model = latents(), latents(seed=9), embeds(), embeds(seed=5), with_offset(model)
    theirs = make_pipeline(StableDiffusionImg2ImgPipeline, model, make_scheduler(model, name, 6))(
        image=z0,
        strength=(6 - first) / 6 + 1e-6,
        generator=torch.Generator().manual_seed(9),
        prompt_embeds=c,
        negative_prompt_embeds=u,
        guidance_scale=2.0,
        num_inference_steps=6,
        output_type="latent",
    ).images
    t = timesteps(model, name, 6)[first]
    start = model.add_noise(z0, eps, torch.tensor([t, t]))
    ours = sample(model, start, name, 6, always(c, u, 2.0), first_step=first)
    torch.testing.assert_close(ours, theirs)


class OneImage:
    """A model that knows its only image, z0: every correct sampler ends there from anywhere."""

    device = torch.device("cpu")

    def __init__(self, model, z0):
        self.schedule, self.alphas_cumprod, self.z0 = model.schedule, model.alphas_cumprod, z0

    def predict(self, z_t, t, c):
        abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (z_t - abar.sqrt() * self.z0) / (1 - abar).sqrt()


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpmsolver++"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("first", [0, 1, 5, 9])
def test_from_every_start_a_model_of_one_image_gives_that_image(model, name, spacing, first):
    z0, eps, model = latents(), latents(seed=9), copy.copy(model)
    model.schedule = model.schedule | {"timestep_spacing": spacing}
    t = torch.tensor([timesteps(model, name, 10)[first]] * 2)
    start = model.add_noise(z0, eps, t)
    end = sample(OneImage(model, z0), start, name, 10, always(embeds()), first_step=first)
    # What is left of the noise is that of timestep 0, where set_alpha_to_one=False stops: 3 %.
    assert (end - z0).abs().mean() < 0.04


@pytest.mark.parametrize("name", ["ddim", "pndm", "dpmsolver++"])
def test_an_early_end_has_the_noise_of_its_timestep(model, name):
    z0, eps = latents(), latents(seed=9)
    visited = timesteps(model, name, 10)
    start = model.add_noise(z0, eps, torch.tensor([visited[0]] * 2))
    end = sample(OneImage(model, z0), start, name, 10, always(embeds()), last_step=6)
    torch.testing.assert_close(
        end, model.add_noise(z0, eps, torch.tensor([visited[6]] * 2)), atol=1e-3, rtol=1e-3
    )
    nothing = sample(OneImage(model, z0), start, name, 10, always(embeds()), first_step=4, last_step=4)
    assert torch.equal(nothing, start)


def test_two_halves_of_ddim_are_the_whole(model):
    guidance_at = always(embeds())
    half = sample(model, latents(), "ddim", 6, guidance_at, last_step=3)
    whole = sample(model, latents(), "ddim", 6, guidance_at)
    assert torch.equal(sample(model, half, "ddim", 6, guidance_at, first_step=3), whole)


def with_offset(model):
    """The model with the steps_offset that diffusers' pipelines force on every scheduler."""
    shifted = copy.copy(model)
    shifted.schedule = model.schedule | {"steps_offset": 1}
    return shifted


def make_pipeline(cls, model, scheduler):
    pipeline = cls(
        vae=model.vae,
        unet=model.unet,
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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
    model = with_offset(tiny.load_tiny(text_model_folder))
    noise, c, u = latents(), embeds(), embeds(seed=5)
    ours = model.decode(sample(model, noise, name, 4, always(c, u, 2.0))).numpy()
    pipeline = make_pipeline(StableDiffusionPipeline, model, reference(model.schedule))
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
    assert difference.max() <= 1  # a half rounded up here and down there


def test_v_prediction_and_epsilon_models_of_equal_weights_sample_differently(model, v_model):
    c = embeds()
    a = sample(model, latents(), "ddim", 3, always(c))
    b = sample(v_model, latents(), "ddim", 3, always(c))
    assert not torch.equal(a, b)


def test_sampling_does_not_depend_on_the_batch(model):
    noise, c = latents(4), embeds(4)
    together = model.decode(sample(model, noise, "dpmsolver++", 3, always(c))).int()
    alone = torch.cat([sample(model, noise[[i]], "dpmsolver++", 3, always(c[[i]])) for i in range(4)])
    alone = model.decode(alone)
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


@pytest.fixture
def normalised_folder(text_model_folder, tmp_path):
    """A model whose VAE states mean and standard deviation of each latent channel."""
    shutil.copytree(text_model_folder, tmp_path / "model")
    path = tmp_path / "model/vae/config.json"
    statistics = {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [0.5, 2.0, 1.0, 4.0]}
    path.write_text(json.dumps(json.loads(path.read_text()) | statistics))
    return tmp_path / "model"


def test_means_and_deviations_of_latents_are_honoured_as_diffusers_does(normalised_folder):
    """Encoding as StableDiffusionXLImg2ImgPipeline.prepare_latents, decoding as its __call__."""
    model, images = tiny.load_tiny(normalised_folder), torch.from_numpy(tiny.random_images(2))
    vae, pixels = model.vae, images.permute(0, 3, 1, 2).float() / 127.5 - 1
    latents_mean = torch.tensor(vae.config.latents_mean).view(1, 4, 1, 1)
    latents_std = torch.tensor(vae.config.latents_std).view(1, 4, 1, 1)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        z = (posterior.mean - latents_mean) * vae.config.scaling_factor / latents_std
        decoded = vae.decode(z * latents_std / vae.config.scaling_factor + latents_mean).sample
    ours = model.encode(images)
    torch.testing.assert_close(ours.mean, z)
    torch.testing.assert_close(ours.std, posterior.std * vae.config.scaling_factor / latents_std)
    levels = ((decoded.clamp(-1, 1) / 2 + 0.5) * 255).round().byte().permute(0, 2, 3, 1)
    assert (model.decode(z).int() - levels.int()).abs().max() <= 1


def test_pndm_is_refused_where_it_would_ignore_the_schedule(model):
    rescaled = copy.copy(model)
    rescaled.schedule = model.schedule | {"rescale_betas_zero_snr": True}
    with pytest.raises(UserError, match=r"scheduler = 'pndm': .*rescale_betas_zero_snr.*use ddim"):
        timesteps(rescaled, "pndm", 5)
    for name in ("ddim", "dpmsolver++"):
        abar = make_scheduler(rescaled, name, 5).alphas_cumprod
        assert abar[-1] < 1e-6 < make_scheduler(model, name, 5).alphas_cumprod[-1]


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
    a, b = (m.decode(sample(m, latents(), "ddim", 3, always(c))).float() for m in (model, other))
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


def test_a_stage_imports_diffusers_and_transformers_only_when_it_loads_a_model():
    """They take seconds, and most runs find all their parts finished."""
    code = (
        "import sys, stages.download, stages.invert, stages.generate, stages.train;"
        "print({'diffusers', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
