"""Strategies of the field: what holds for every one, and each against diffusers or its equation."""

import copy
import json
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_methods as methods
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from sklearn.neighbors import NearestNeighbors
from tiny_methods import make, plan, render
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from dinv.diffusion.bottleneck import bottleneck_noise
from dinv.diffusion.ddim import ddim_invert, inversion_timesteps, step_mean, variance, x0_and_eps
from dinv.diffusion.sampling import Guidance, sample, timesteps
from dinv.diffusion.sentences import SentenceModel
from dinv.diffusion.text import load_text_encoder, prompt_for
from dinv.errors import UserError
from dinv.features.extractors import load_extractor
from dinv.features.params import FeatureNetwork
from dinv.features.watched import FrozenNetwork
from dinv.features.zero_shot import ZeroShot
from dinv.images.fingerprint import fingerprints, nearest_distance, read_fingerprints, write_fingerprints
from dinv.images.image_set import save_image_set
from dinv.inversion.class_embeddings import ClassEmbeddings, ClassEmbeddingsParams, learn_class, make_plan
from dinv.inversion.invert import ImageStream
from dinv.inversion.prompt_bank import PromptBank, PromptBankParams, read_prompts
from dinv.sources.idx import read_idx
from dinv.strategies.cost import unet_passes
from dinv.strategies.diff_ii import circle
from dinv.strategies.dreamda import posterior_sample
from dinv.strategies.edits import other_class
from dinv.strategies.from_image import first_step
from dinv.strategies.from_noise import start_latents
from dinv.strategies.genie_ada import after_largest_jump
from dinv.strategies.pool import Pool
from dinv.strategies.registry import STRATEGIES
from dinv.strategies.retrieval import nearest
from dinv.strategies.worker import image_digests

NEW = sorted(methods.BLOCKS)
OF_IMAGES = [name for name in NEW if "num_images_per_source" in methods.BLOCKS[name]]


@pytest.fixture(scope="module")
def model(text_model_folder, tmp_path_factory):
    folder = methods.save_reading_model(text_model_folder, tmp_path_factory.mktemp("reading") / "model")
    return tiny.load_tiny(folder)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return methods.save_workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture(autouse=True)
def _in_the_workplace(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return methods.save_real(tmp_path_factory.mktemp("real") / "train")


@pytest.fixture(scope="module")
def class_bank(tmp_path_factory):
    return methods.save_class_bank(tmp_path_factory.mktemp("learned") / "tokens")


def pipeline_of(cls, model, scheduler):
    """diffusers' own pipeline of the model's folder."""
    pipe = cls(
        vae=model.vae,
        unet=model.unet,
        scheduler=scheduler,
        tokenizer=CLIPTokenizer.from_pretrained(f"{model.params.path}/tokenizer"),
        text_encoder=CLIPTextModel.from_pretrained(f"{model.params.path}/text_encoder"),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


# What holds for every strategy.


def test_every_strategy_is_tested():
    elsewhere = {
        "diffusion_inversion",
        "domain",
        "other_class_guidance",
        "pool_sample",
        "reconstruction",
        "import_folder",
        "gan",
        "gan_inversion",
        "variation",
    }
    assert {*elsewhere, *NEW} == set(STRATEGIES)


@pytest.mark.parametrize("name", NEW)
def test_images_do_not_depend_on_micro_batch_order_or_other_images(model, real, tmp_path, name):
    strategy = make(name, real, model)
    draws = plan(strategy)
    whole = render(strategy, model).int()
    backwards = render(strategy, model, draws[::-1], micro_batch=2).int().flip(0)
    assert (whole - backwards).abs().max() <= 1
    others = make(name, methods.save_real(tmp_path / "order", order=[6, 2, 0, 5, 1, 4, 3]), model)
    again = {d.id: (d, x) for d, x in zip(plan(others), render(others, model).int(), strict=True)}
    assert [asdict(again[d.id][0]) for d in draws] == [asdict(d) for d in draws]
    assert (torch.stack([again[d.id][1] for d in draws]) - whole).abs().max() <= 1


@pytest.mark.parametrize("name", NEW)
def test_more_images_only_append_and_keep_their_digests(model, real, name):
    number = next(k for k in methods.BLOCKS[name] if k.startswith("num_images_per"))
    few, many = (make(name, real, model, **{number: n}) for n in (1, 3))
    assert plan(many)[: len(few)] == plan(few)
    assert len(many) == 3 * len(few) and len({d.id for d in plan(many)}) == len(many)
    assert image_digests(many, plan(many)[: len(few)], []) == image_digests(few, plan(few), [])


@pytest.mark.parametrize("name", [n for n in NEW if "seed" in methods.BLOCKS[n]])
def test_the_seed_changes_every_image(model, real, name):
    a, b = (make(name, real, model, seed=seed) for seed in (0, 1))
    assert not set(image_digests(a, plan(a), [])) & set(image_digests(b, plan(b), []))
    different = (render(a, model) != render(b, model)).flatten(1).any(1)
    assert different.all()


@pytest.mark.parametrize("name", NEW)
def test_draws_have_the_same_facts_and_the_grid_has_rows(model, real, name):
    strategy = make(name, real, model)
    assert len({tuple(d.facts) for d in plan(strategy)}) == 1
    assert all(len(shown) and len(label) for label, shown in strategy.previews())


@pytest.mark.parametrize("name", [n for n in NEW if n != "retrieval"])
def test_a_model_without_text_encoder_is_refused_in_one_line(grey_model_folder, real, name):
    model = tiny.load_tiny(grey_model_folder)
    with pytest.raises(UserError, match=rf"^{name}: needs prompts, and model.path = .* no text encoder; use"):
        make(name, real, model)


# Prompts.


def test_prompts_are_embedded_as_diffusers_does(model):
    pipe = pipeline_of(StableDiffusionPipeline, model, DDIMScheduler.from_config(model.schedule))
    prompts = ["a photo of a dog house", "", "x" * 100]
    theirs, empty = pipe.encode_prompt(prompts, "cpu", 1, True)
    ours = load_text_encoder(model, "test").embeds(prompts)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], empty[0], rtol=1e-4, atol=1e-5)


def test_a_prompt_names_its_class_with_spaces_and_must_have_a_place_for_it(real, model):
    assert prompt_for("one {class}, a {class}", "dog_house") == "one dog house, a dog house"
    with pytest.raises(ValidationError, match=r"no \{class\}"):
        make("class_name_prompt", real, model, prompt="a photo")


def test_class_name_prompt_is_stable_diffusion(model, real):
    strategy = make("class_name_prompt", real, model, num_images_per_class=1)
    inputs = strategy.inputs(plan(strategy))
    scheduler = DDIMScheduler.from_config(model.schedule, clip_sample=False, set_alpha_to_one=False)
    theirs = pipeline_of(StableDiffusionPipeline, model, scheduler)(
        ["a photo of a cat", "a photo of a dog house", "a photo of a eel"],
        latents=start_latents(inputs["noise_seed"], model.latent_shape),
        num_inference_steps=4,
        guidance_scale=2.0,
        output_type="np",
    ).images
    difference = (render(strategy, model).float() - torch.from_numpy(theirs) * 255).abs()
    assert difference.max() <= 0.51
    assert [(d.label, d.source_id) for d in plan(strategy)] == [(0, None), (1, None), (2, None)]


# SDEdit and what uses it.


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_is_that_of_diffusers(model, real, scheduler, strength):
    """Independent: StableDiffusionImg2ImgPipeline, given the same latents of the image and the same noise."""
    strategy = make("image_to_image", real, model, scheduler=scheduler, strengths=[strength])
    draw = plan(strategy)[1]
    inputs = strategy.inputs([draw])
    classes = {"ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}
    options = {"clip_sample": False, "set_alpha_to_one": False} if scheduler == "ddim" else {}
    theirs = pipeline_of(
        StableDiffusionImg2ImgPipeline, model, classes[scheduler].from_config(model.schedule, **options)
    )(
        "a photo of a dog house",
        image=model.encode(inputs["images"]).mean,
        strength=strength,
        generator=torch.Generator().manual_seed(int(inputs["noise_seed"])),
        num_inference_steps=4,
        guidance_scale=2.0,
        output_type="latent",
    ).images
    ours = render(strategy, model, [draw]).int()
    assert (ours - model.decode(theirs).int()).abs().max() <= 1
    assert (
        draw.source_id == "image-1" and draw.label == 1 and draw.facts["prompt"] == "a photo of a dog house"
    )


def test_steps_of_a_strength_are_those_of_diffusers():
    pipe = StableDiffusionImg2ImgPipeline
    for n in (4, 25, 50):
        for strength in (0.25, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
            scheduler = DDIMScheduler()
            scheduler.set_timesteps(n)
            stub = type("Stub", (), {"scheduler": scheduler})()
            theirs, _ = pipe.get_timesteps(stub, n, strength, "cpu")
            assert first_step(strength, n) == n - len(theirs)


def test_strengths_are_drawn_evenly_and_each_row_starts_where_its_own_says(model, real):
    strategy = make("image_to_image", real, model, num_images_per_source=100, strengths=[0.25, 0.5, 1.0])
    drawn = [d.facts["strength"] for d in plan(strategy)]
    assert all(abs(drawn.count(r) / len(drawn) - 1 / 3) < 0.08 for r in (0.25, 0.5, 1.0))
    inputs = strategy.inputs(plan(strategy)[:9])
    assert inputs["first_step"].tolist() == [{0.25: 3, 0.5: 2, 1.0: 0}[r] for r in drawn[:9]]


def test_a_strength_of_less_than_a_step_is_refused(real, model):
    with pytest.raises(
        ValidationError, match=r"strengths: 0\.1 of num_inference_steps = 4 is less than one step"
    ):
        make("image_to_image", real, model, strengths=[0.5, 0.1])


def test_a_weak_edit_stays_nearer_to_the_image(model, real):
    images = [render(make("image_to_image", real, model, strengths=[r]), model).float() for r in (0.25, 1.0)]
    source = (
        model.decode(model.encode(torch.from_numpy(real.take(range(7)).images)).mean)
        .float()
        .repeat(2, 1, 1, 1)
    )
    near, far = ((x - source).square().mean() for x in images)
    assert near < far


def test_class_tokens_take_the_prompts_place(model, real, class_bank):
    strategy = make("image_to_image", real, model, class_bank, prompt=None)
    inputs = strategy.inputs(plan(strategy)[:3])
    bank = torch.randn(3, 3, 16, generator=torch.Generator().manual_seed(5))
    assert torch.equal(inputs["prompt_embeds"], bank[[1, 2, 0]])  # cat, dog house, eel
    assert torch.equal(inputs["negative_prompt_embeds"][0], model.empty_prompt_embeds(3))
    assert render(strategy, model).shape == (14, 16, 16, 3)
    assert plan(strategy)[1].facts["prompt"] == "<dog_house>"


def test_prompt_and_learned_input_exclude_each_other(model, real, class_bank):
    with pytest.raises(UserError, match="leaves what input = 'data/learned/tokens' holds without effect"):
        make("image_to_image", real, model, Path("data/learned/tokens"))
    with pytest.raises(UserError, match="no embeddings there"):
        make("image_to_image", real, model, class_bank.parent, prompt=None)


def test_genie_goes_to_every_other_class_and_takes_its_label(model, real):
    strategy = make("genie", real, model, num_images_per_source=2)
    draws = plan(strategy)
    for image_id, own in zip(real.ids, real.labels, strict=True):
        labels = {d.label for d in draws if d.source_id == image_id}
        assert labels == {0, 1, 2} - {int(own)}
    assert all(d.facts["prompt"] == f"a photo of a {['cat', 'dog house', 'eel'][d.label]}" for d in draws)
    orders = {tuple(other_class(10, 4, 0, str(i), v) for v in range(9)) for i in range(20)}
    assert len(orders) == 20 and all(sorted(o) == [0, 1, 2, 3, 5, 6, 7, 8, 9] for o in orders)


def test_diff_mix_labels_follow_the_strength(model, real):
    strategy = make("diff_mix", real, model, strengths=[0.25, 0.5], gamma=0.8)
    for d in plan(strategy):
        own, target = int(real.labels[real.ids.index(d.source_id)]), d.facts["target"]
        weight = d.facts["strength"] ** 0.8
        assert own != target and sum(d.probabilities) == pytest.approx(1)
        assert d.probabilities[target] == pytest.approx(weight) and d.probabilities[own] == pytest.approx(
            1 - weight
        )
        assert d.label == max(range(3), key=lambda k, p=d.probabilities: p[k])
    assert {d.label == d.facts["target"] for d in plan(strategy)} == {True, False}


@pytest.mark.parametrize(
    ("scheduler", "scale"), [("ddim", 2.0), ("ddim", 1.0), ("pndm", 2.0), ("dpmsolver++", 1.0)]
)
def test_the_cost_that_is_reported_is_what_the_unet_computes(model, real, scheduler, scale, monkeypatch):
    settings = {"scheduler": scheduler, "guidance_scale": scale}
    names = ["class_name_prompt", "image_to_image"] + ["diff_ii", "dreamda"] * (scheduler == "ddim")
    for name in names:
        strategy = make(name, real, model, **settings)
        draws, rows, forward = plan(strategy), [], model.unet.forward
        monkeypatch.setattr(
            model.unet, "forward", lambda z, *a, f=forward, r=rows, **k: (r.append(len(z)), f(z, *a, **k))[1]
        )
        render(strategy, model, draws)
        monkeypatch.undo()
        assert sum(rows) == sum(d.facts["unet_passes"] for d in draws)
    assert unet_passes("pndm", 100, 2.0) == 202


# One embedding per class.


def class_params(**update):
    image = tiny.invert_params().model_dump()
    return ClassEmbeddingsParams.model_validate(
        {**image, "method": "class_embeddings", "batch_size": 2, **update}
    )


def reference_class(model, images, params):
    """One class, written again with torch.optim and mse_loss."""
    stream = ImageStream(params, "class cat")
    from dinv.rng import generator

    g = generator(params.seed, "class-order", "cat")
    rows = torch.cat([torch.randperm(len(images), generator=g) for _ in range(9)])
    c = model.empty_prompt_embeds(params.num_tokens)[None].clone().requires_grad_()
    optimizer = torch.optim.AdamW([c], lr=params.lr, weight_decay=params.weight_decay)
    posterior = model.encode(images)
    for step in range(params.num_visits):
        chosen = rows[2 * step : 2 * step + 2]
        xi = torch.stack([stream.noise((4, 8, 8)) for _ in range(2)])
        eps = torch.stack([stream.noise((4, 8, 8)) for _ in range(2)])
        t = torch.tensor([stream.timestep(2 * step + i, 1000) for i in range(2)])
        z0 = posterior.mean[chosen] + posterior.std[chosen] * xi
        output = model.unet(
            model.scheduler.add_noise(z0, eps, t), t, encoder_hidden_states=c.expand(2, -1, -1)
        ).sample
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(output, eps).backward()
        optimizer.step()
    return c.detach()[0]


def test_class_embedding_equals_a_plain_implementation(model):
    images, params = torch.from_numpy(tiny.random_images(3)), class_params(num_visits=5, weight_decay=0.01)
    bank = learn_class(model, images, 0, "cat", params)
    torch.testing.assert_close(
        bank.prompt_embeds[0], reference_class(model, images, params), rtol=1e-3, atol=2e-3
    )


def test_class_embedding_lowers_the_heldout_loss_of_its_images(model):
    bank = learn_class(model, torch.from_numpy(tiny.random_images(3)), 0, "cat", class_params(num_visits=40))
    assert bank.heldout_loss[-1, 0] < bank.heldout_loss[0, 0] and bank.ids == ["cat"]


def test_a_class_depends_on_its_own_images_only_and_not_on_their_order(model, real, tmp_path):
    others = methods.save_real(tmp_path / "order", order=[6, 2, 0, 5, 1, 4, 3])
    fewer = methods.save_real(tmp_path / "fewer", order=[0, 3, 6, 1, 2])
    plans = [make_plan(r, ["key"], class_params()) for r in (real, others, fewer)]
    digests = [p.digests(range(3)) for p in plans]
    assert digests[0] == digests[1]
    assert [a == b for a, b in zip(digests[0], digests[2], strict=True)] == [True, False, False]
    assert (plans[0].task([0]).images == plans[1].task([0]).images).all()


def test_class_embeddings_are_written_and_read(model, real, tmp_path, monkeypatch):
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "scratch"))
    from dinv.inversion.base import Place

    place = Place(lambda: model, ["key"], tiny.PARAMS.execution)
    curve = ClassEmbeddings.learn(class_params(), real, place, tmp_path / "tokens")
    assert {point.kind for point in curve} == {"training", "heldout"}
    strategy = make("image_to_image", real, model, tmp_path / "tokens", prompt=None)
    assert strategy.inputs(plan(strategy)[:2])["prompt_embeds"].shape == (2, 3, 16)
    (tmp_path / "images").mkdir()
    methods.save_embeddings(tmp_path / "images", torch.zeros(2, 3, 16), [0, 0], ["a", "b"])
    with pytest.raises(UserError, match="one per class"):
        make("image_to_image", real, model, tmp_path / "images", prompt=None)


# Diff-II.


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_inversion_is_that_of_diffusers(model, v_model, kind, spacing):
    model = copy.copy(model if kind == "epsilon" else v_model)
    model.schedule = {**model.schedule, "timestep_spacing": spacing}
    z0, c = latents(2), torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    scheduler = DDIMInverseScheduler.from_config(model.schedule, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(5)
    expected = z0
    for t in scheduler.timesteps:
        with torch.no_grad():
            expected = scheduler.step(model.unet(expected, t, c).sample, t, expected).prev_sample
    ours = ddim_invert(model, z0, c, inversion_timesteps(model, 5, 5))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_finer_inversion_comes_back_nearer_to_the_image(model):
    z0, c = latents(2), torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    errors = []
    for n in (20, 80):
        start = ddim_invert(model, z0, c, inversion_timesteps(model, n, 2 * n))
        assert inversion_timesteps(model, n, 2 * n)[-1] == timesteps(model, "ddim", n)[0]
        back = sample(model, start, "ddim", n, lambda i, t: Guidance(None, ((c, 1.0),)))
        errors.append((back - z0).square().mean())
    assert errors[1] < errors[0] / 3 < 0.15


def test_circle_is_the_papers_equation_and_stays_on_the_circle():
    z1, z2 = latents(3), latents(3, seed=8)
    z2 = z2 * (z1.flatten(1).norm(dim=1) / z2.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    theta = torch.cosine_similarity(z1.flatten(1), z2.flatten(1)).arccos()
    for u in (0.0, 0.3, 2.5):
        a, b = (((1 + u) * theta).sin() / theta.sin(), (u * theta).sin() / theta.sin())
        expected = a.view(-1, 1, 1, 1) * z1 - b.view(-1, 1, 1, 1) * z2
        found = circle(z1, z2, u * theta)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            found.flatten(1).norm(dim=1), z1.flatten(1).norm(dim=1), rtol=1e-4, atol=1e-3
        )
    torch.testing.assert_close(circle(z1, z2, 2 * torch.pi - theta), z2, rtol=1e-4, atol=1e-3)
    assert torch.equal(circle(z1, z1, torch.ones(3)), z1)


def test_partners_are_of_the_same_class_never_the_image_and_a_lonely_image_is_refused(model, real, tmp_path):
    draws = plan(make("diff_ii", real, model, num_images_per_source=20))
    label_of = dict(zip(real.ids, real.labels.tolist(), strict=True))
    for d in draws:
        assert (
            d.facts["partner_id"] != d.source_id and label_of[d.facts["partner_id"]] == label_of[d.source_id]
        )
    assert len({d.facts["partner_id"] for d in draws if d.source_id == "image-0"}) == 2
    assert abs(sum(d.facts["angle"] for d in draws) / len(draws) - torch.pi) < 0.6
    with pytest.raises(UserError, match=r"'image-2' is the only one of its class.*add images"):
        make("diff_ii", methods.save_real(tmp_path / "lonely", labels=[0, 0, 1]), model)


def test_the_suffix_rules_the_noisier_steps_only(model, real):
    strategy = make("diff_ii", real, model)
    inputs, renderer = strategy.inputs(plan(strategy)[:2]), strategy.renderer()
    stages = renderer._stages(model, inputs)
    used = [stages(i, t).terms[0][0] for i, t in enumerate(timesteps(model, "ddim", 4))]
    suffixed = [torch.equal(c, inputs["suffixed_embeds"]) for c in used]
    assert suffixed == [t >= 500 for t in timesteps(model, "ddim", 4)] == [True, True, False, False]
    encoder = load_text_encoder(model, "test")
    prompts = [f"{d.facts['prompt']} {d.facts['suffix']}" for d in plan(strategy)[:2]]
    assert torch.equal(inputs["suffixed_embeds"], encoder.embeds(prompts))


def test_options_of_diff_ii_that_have_no_effect_are_refused(model, real, class_bank):
    for update, message in (
        ({"num_inversion_steps": 6}, "multiple of num_inference_steps"),
        ({"suffixes": []}, "go together"),
        ({"prompt": None}, "need a prompt"),
        ({"scheduler": "pndm"}, "ddim"),
    ):
        with pytest.raises(ValidationError, match=message):
            make("diff_ii", real, model, **update)
    plain = make("diff_ii", real, model, class_bank, prompt=None, suffixes=[], suffix_fraction=0.0)
    assert render(plain, model, plan(plain)[:2]).shape == (2, 16, 16, 3)


# DreamDA.


def test_encoder_and_decoder_give_the_image_back_where_nothing_is_changed(model, real):
    strategy = make("dreamda", real, model, bottleneck_std=0.0, guidance_scale=1.0)
    inputs = strategy.inputs(plan(strategy)[:3])
    inputs["prompt_embeds"] = inputs["negative_prompt_embeds"]
    found = strategy.renderer().latents(model, inputs)
    torch.testing.assert_close(found, model.encode(inputs["images"]).mean, rtol=1e-3, atol=1e-3)


def test_a_step_is_that_of_diffusers_with_eta_one(model, v_model):
    for m in (model, v_model):
        scheduler = DDIMScheduler.from_config(m.schedule, clip_sample=False, set_alpha_to_one=False)
        scheduler.set_timesteps(4)
        t, z, noise = scheduler.timesteps[1], latents(2), latents(2, seed=4)
        output = latents(2, seed=3)
        expected = scheduler.step(output, t, z, eta=1.0, variance_noise=noise).prev_sample
        abar_t, abar_s = m.alphas_cumprod[t], m.alphas_cumprod[t - 250]
        sigma2 = variance(abar_t, abar_s)
        ours = step_mean(*x0_and_eps(m, z, output, abar_t), abar_s, sigma2) + sigma2.sqrt() * noise
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_the_path_of_the_image_has_the_noise_of_its_timesteps():
    """q(z_s | z_t, z_0) marginalised over q(z_t | z_0) is q(z_s | z_0), DDIM's lemma 1."""
    z0, abar_t, abar_s = torch.full((4000, 1, 1, 1), 2.0), torch.tensor(0.3), torch.tensor(0.7)
    g = torch.Generator().manual_seed(0)
    z_t = abar_t.sqrt() * z0 + (1 - abar_t).sqrt() * torch.randn(z0.shape, generator=g)
    z_s = posterior_sample(z0, z_t, abar_t, abar_s, torch.randn(z0.shape, generator=g))
    assert abs(z_s.mean() - abar_s.sqrt() * 2) < 0.03 and abs(z_s.var() - (1 - abar_s)) < 0.03


def test_bottleneck_noise_is_in_units_of_the_features(model):
    features = []
    keep = model.unet.mid_block.register_forward_hook(lambda m, a, h: features.append(h.detach()))
    z, t, c = latents(2), torch.tensor([500, 500]), torch.randn(2, 3, 16)
    with torch.no_grad():
        model.unet(z, t, c)
        keep.remove()
        with bottleneck_noise(model.unet, 2, 3.0, lambda i, shape: torch.ones(shape)):
            after = model.unet.mid_block.register_forward_hook(lambda m, a, h: features.append(h.detach()))
            model.unet(z, t, c)
            after.remove()
    plain, noisy = features
    added = 3 * plain.flatten(1).std(1)
    torch.testing.assert_close((noisy - plain).flatten(1).mean(1), added, rtol=1e-3, atol=1e-3)
    assert not model.unet.mid_block._forward_hooks


def test_each_pass_has_its_own_bottleneck_noise_and_the_source_has_none(model, real, monkeypatch):
    strategy, seen = make("dreamda", real, model), []
    from dinv.strategies import dreamda

    def spy(unet, num_images, scale, noise):
        def record(which, shape):
            xi = noise(which, shape)
            seen.append((which, xi))
            return xi

        return bottleneck_noise(unet, num_images, scale, record)

    monkeypatch.setattr(dreamda, "bottleneck_noise", spy)
    render(strategy, model, plan(strategy)[:2])
    assert [which for which, _ in seen] == [0, 1] * 3  # three steps, base and condition
    assert len({xi.flatten()[0].item() for _, xi in seen}) == 6


# Retrieval.


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 9), st.integers(0, 9))
def test_neighbours_in_chunks_are_those_of_scikit_learn(num_pool, num_queries, chunk, seed):
    rng = np.random.default_rng(seed)
    pool, queries = (rng.normal(size=(n, 4)).astype(np.float32) for n in (num_pool, num_queries))
    pool, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (pool, queries))
    k = min(3, num_pool)
    rows, cosines = nearest(queries, pool, k, chunk)
    distances, _ = NearestNeighbors(n_neighbors=k, metric="cosine").fit(pool).kneighbors(queries)
    np.testing.assert_allclose(cosines, 1 - distances, atol=2e-5)
    np.testing.assert_allclose(cosines, np.take_along_axis(queries @ pool.T, rows, 1), atol=2e-5)
    assert all(len(set(row)) == k for row in rows.tolist())


def test_of_equally_near_images_the_first_is_taken_whatever_the_chunk():
    pool = np.tile(np.float32([[1, 0]]), (7, 1))
    for chunk in (1, 3, 10):
        assert nearest(pool[:1], pool, 3, chunk)[0].tolist() == [[0, 1, 2]]


def test_retrieval_takes_the_nearest_of_the_pool_and_refuses_and_counts_near_duplicates(real, capsys):
    strategy = make("retrieval", real, None)
    said = "".join(capsys.readouterr())
    assert "retrieval: 1 of 10 pool images are near-duplicates of test or validation images" in said
    draws, pool = plan(strategy), Pool(Path("pool"), (16, 16, 3), "squash")
    assert len(pool) == 10 and "deeper/copy.jpg" in pool.ids
    assert all(d.facts["pool_id"] != "deeper/copy.jpg" and d.facts["num_refused"] == 1 for d in draws)
    extract = load_extractor("convnet", tiny.ROOT / "models/fashion-features", torch.device("cpu"))
    ids = [i for i in pool.ids if i != "deeper/copy.jpg"]
    a = extract(real.take(range(7)).images)
    b = extract(pool.take([pool.ids.index(i) for i in ids]).images)
    cosine = torch.cosine_similarity(a[:, None], b[None], dim=2)
    for d in draws[:7]:
        row = cosine[real.ids.index(d.source_id)]
        assert d.facts["pool_id"] == ids[int(row.argmax())] and d.facts["similarity"] == pytest.approx(
            row.max().item(), abs=2e-5
        )
        assert d.label == real.labels[real.ids.index(d.source_id)] and d.facts["variant"] == 0
    expected = pool.take([pool.ids.index(d.facts["pool_id"]) for d in draws]).images
    assert (render(strategy, None).numpy() == expected).all() and not strategy.renderer().uses_model


def test_retrieval_refuses_and_counts_near_duplicates_of_training_images(tmp_path, real, capsys):
    pool = tmp_path / "pool"
    shutil.copytree("pool", pool)
    Image.fromarray(real.take([2]).images[0]).save(pool / "same.png")
    Image.fromarray(methods.resized(real.take([4]).images, 48)[0]).save(pool / "larger.jpg", quality=90)
    strategy = make("retrieval", real, None, pool, num_images_per_source=9)
    said = "".join(capsys.readouterr())
    assert "retrieval: 1 of 12 pool images are near-duplicates of test or validation images" in said
    assert "retrieval: 2 of 12 pool images are near-duplicates of training images" in said
    taken = {d.facts["pool_id"] for d in plan(strategy)}
    assert taken == {f"{i}.png" for i in range(9)}
    assert {d.facts["num_refused"] for d in plan(strategy)} == {3}


def test_a_pool_of_parquet_files_is_read_like_one_of_pictures(tmp_path, real):
    pool = Pool(Path("pool"), (20, 20, 3), "squash")
    rows = [i for i, name in enumerate(pool.ids) if name.endswith(".png")]
    save_image_set(pool.take(rows), tmp_path / "pool")
    stored = Pool(tmp_path / "pool", (16, 16, 3), "squash")
    assert (
        stored.take([3, 0]).images
        == Pool(Path("pool"), (16, 16, 3), "squash").take([rows[3], rows[0]]).images
    ).all()
    assert len(make("retrieval", real, None, tmp_path / "pool")) == 14


def test_a_pool_of_idx_files_is_their_images_in_order():
    """The bundled clothes, of all files."""
    folder = tiny.ROOT / "data/bundled/fashion-mnist"
    train, test = (read_idx(folder / f"{name}-images-idx3-ubyte.gz") for name in ("train", "t10k"))
    pool = Pool(folder, (28, 28, 1), "squash")
    assert len(pool) == len(train) + len(test) and len(set(pool.ids)) == len(pool)
    rows = [pool.ids.index(name) for name in ("train/17", "t10k/0", "t10k/9")]
    assert (pool.take(rows).images[..., 0] == np.stack([train[17], test[0], test[9]])).all()


def test_labels_of_idx_files_stand_for_the_classes_of_the_task(tmp_path):
    folder, names = tmp_path / "pool", [f"class {k}" for k in range(10)]
    shutil.copytree(tiny.ROOT / "data/bundled/fashion-mnist", folder)
    pool = Pool(folder, (28, 28, 1), "squash")
    labels = read_idx(folder / "t10k-labels-idx1-ubyte.gz")
    rows = [pool.ids.index(f"t10k/{i}") for i in (0, 1, 7)]
    assert pool.classes(rows, names) == [names[labels[i]] for i in (0, 1, 7)]
    with pytest.raises(UserError, match=r"t10k-labels.*label 9, but the task has 9 classes"):
        pool.classes(rows, names[:9])
    tiny.write_idx(folder / "t10k-labels-idx1-ubyte.gz", labels[:-1])
    with pytest.raises(UserError, match="not one label for each image of t10k-images"):
        pool.classes(rows, names)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"t10k-labels.*no such file"):
        pool.classes(rows, names)


def test_a_pool_that_cannot_be_used_is_refused(tmp_path, real):
    for folder, message in (
        (Path("nothing"), "no such folder"),
        (Path("data/real/test"), "pipeline's own images"),
        (tmp_path, "no pictures"),
    ):
        Path("data/real/test").mkdir(parents=True, exist_ok=True)
        with pytest.raises(UserError, match=message):
            make("retrieval", real, None, folder)
    with pytest.raises(
        UserError, match="9 of 10 images of pool can be used, fewer than num_images_per_source = 10"
    ):
        make("retrieval", real, None, num_images_per_source=10)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"bad\.parquet: damaged"):
        make("retrieval", real, None, tmp_path)


def test_fingerprints_know_copies_and_tell_others_apart(tmp_path):
    images = methods.clothes(40)
    known = fingerprints(images)
    assert known.shape == (40, 32) and (nearest_distance(known, known) == 0).all()
    larger, brighter = methods.resized(images, 56), np.clip(images * 0.9, 0, 255).astype(np.uint8)
    for copies in (larger, brighter, images.repeat(3, axis=3)):
        assert (nearest_distance(fingerprints(copies), known) <= 24).all()
    others = fingerprints(methods.clothes(200, skip=40))
    assert (nearest_distance(others, known) > 24).all()
    write_fingerprints([images[:15], images[15:]], tmp_path / "f.txt")
    assert set(map(bytes, read_fingerprints(tmp_path / "f.txt"))) == set(map(bytes, known))
    (tmp_path / "f.txt").write_text("abc\n")
    for path in (tmp_path / "f.txt", tmp_path / "g.txt"):
        with pytest.raises(UserError, match="missing or damaged; run dvc repro download"):
            read_fingerprints(path)


# GeNIe-Ada.


def test_the_strength_after_the_largest_jump_is_chosen():
    source, target = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    # Only the way to the target counts, which is the first axis.
    edits = torch.tensor([[[0.1, 9.0], [0.2, -9.0], [0.9, 0.0], [1.0, 5.0]]])
    assert after_largest_jump(edits, source, target).tolist() == [2]
    back = torch.tensor([[[1.0, 0.0], [0.8, 0.0], [0.2, 0.0], [0.15, 0.0]]])  # a jump back is none
    assert after_largest_jump(back, source, target).tolist() == [3]


def test_genie_ada_takes_one_of_the_edits_of_genie(model, real):
    """The same edits, compared by hand in float64."""
    strategy = make("genie_ada", real, model, num_images_per_source=1)
    draws = plan(strategy)
    fixed = []
    for r in (0.25, 0.5, 1.0):
        genie = make("genie", real, model, num_images_per_source=1, strengths=[r])
        assert [(d.id, d.label) for d in plan(genie)] == [(d.id, d.label) for d in draws]
        fixed.append(render(genie, model))
    extract = load_extractor("convnet", tiny.ROOT / "models/fashion-features", torch.device("cpu"))
    f = lambda x: torch.nn.functional.normalize(extract(np.asarray(x)).double(), dim=1)  # noqa: E731
    of_real = f(real.take(range(7)).images)
    chosen = render(strategy, model)
    for i, d in enumerate(draws):
        v = of_real[torch.tensor(real.labels == d.label)].mean(0) - of_real[real.ids.index(d.source_id)]
        projections = torch.stack([f(x[i : i + 1])[0] @ v for x in fixed])
        best = int((projections[1:] - projections[:-1]).argmax()) + 1
        assert (chosen[i].int() - fixed[best][i].int()).abs().max() <= 1
    assert draws[0].facts["unet_passes"] == 2 * (1 + 2 + 4)


def test_networks_must_lie_where_dvc_sees_them(real, model):
    for path in ("models/other", "../models/pretrained/x", "/models/pretrained/x", "models/pretrained/../x"):
        with pytest.raises(ValidationError, match="DVC would not see when it changes"):
            make("genie_ada", real, model, features={"network": "clip", "path": path})


def test_a_network_is_known_by_its_files_not_by_its_place(tmp_path):
    params = FeatureNetwork(network="convnet", path="models/fashion-features")
    shutil.copytree("models/fashion-features", tmp_path / "copy")
    a, b = (
        FrozenNetwork.of(params),
        FrozenNetwork.of(params.model_copy(update={"path": str(tmp_path / "copy")})),
    )
    assert asdict(a) == asdict(b) and a == b and a.place != b.place
    assert pickle.loads(pickle.dumps(b)).place == b.place


# LECF.


def test_zero_shot_probabilities_are_clips_own():
    prompts, images = ["a photo of a cat", "a dog", "an eel that is long"], tiny.random_images(4, side=40)
    clip = ZeroShot(Path("models/pretrained/clip"), prompts, torch.device("cpu"))
    model = CLIPModel.from_pretrained("models/pretrained/clip")
    tokens = CLIPTokenizer.from_pretrained("models/pretrained/clip")(
        prompts, padding=True, return_tensors="pt"
    )
    pixels = CLIPImageProcessor.from_pretrained("models/pretrained/clip")(list(images), return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, **pixels).logits_per_image.softmax(1)
    torch.testing.assert_close(clip.probabilities(images), expected)
    assert clip.probabilities(images[:2, ..., :1]).shape == (2, 3)
    with pytest.raises(UserError, match="not a CLIP model"):
        ZeroShot(Path("models/fashion-features"), prompts, torch.device("cpu"))


class Judge:
    """Gives the given probabilities, in the order of the calls and rows, and remembers how many it saw."""

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []

    def probabilities(self, images):
        self.seen.append(len(images))
        return torch.tensor([[p, 1 - p, 0.0] for p in self.answers.pop(0)])


@pytest.mark.parametrize(
    ("rule", "answers", "seen", "kept"),
    [
        ("rank", ([0.2, 0.9], [0.3, 0.1], [0.25, 0.95]), [2, 2, 2], [1, 2]),
        ("probability", ([0.2, 0.9], [0.4], []), [2, 1], [1, 0]),  # above 1/3: accepted, not tried again
        ("probability", ([0.2, 0.3], [0.1, 0.4], [0.3]), [2, 2, 1], [2, 1]),
        ("probability", ([0.3, 0.2], [0.2, 0.1], [0.1, 0.3]), [2, 2, 2], [0, 2]),  # none above: the likeliest
    ],
)
def test_the_filter_keeps_the_right_candidate(model, real, rule, answers, seen, kept):
    clip = {**methods.BLOCKS["lecf"]["clip"], "rule": rule, "num_candidates": 3}
    strategy = make("lecf", real, model, clip=clip)
    draws = [d for d in plan(strategy) if d.label == 0][:2]
    inputs, renderer, judge = strategy.inputs(draws), strategy.renderer(), Judge(*answers)
    images = renderer.choose(model, judge, inputs).int()
    assert judge.seen == seen
    for i, candidate in enumerate(kept):
        one = {k: v[i : i + 1] for k, v in inputs.items() if k != "label"}
        expected = renderer.render(model, {**one, "noise_seed": one["noise_seed"][:, candidate]}).int()
        assert (images[i] - expected[0]).abs().max() <= 1


def test_lecf_uses_every_prompt_in_turn_and_without_filter_is_plain_sampling(model, real):
    strategy = make("lecf", real, model, clip=None)
    cats = [d for d in plan(strategy) if d.label == 0]
    assert [d.facts["prompt"] for d in cats] == ["cat 0", "cat 1", "cat 0"]
    assert type(strategy.renderer()).__name__ == "FromNoise" and cats[0].facts["unet_passes"] == 8
    assert plan(make("lecf", real, model))[0].facts["unet_passes"] == 16


def bank_params(**update):
    block = {"method": "prompt_bank", "prefix": "a photo of", "num_prompts": 20, "language_model": None}
    return PromptBankParams.model_validate({**block, "num_samples": 25, "seed": 0, **update})


def test_a_bank_of_templates_may_be_edited_and_damage_is_named(real, tmp_path):
    assert PromptBank.learn(bank_params(), real, None, tmp_path) == []
    path = tmp_path / "prompts.json"
    bank = json.loads(path.read_text())
    assert list(bank) == methods.CLASS_NAMES and all(len(set(v)) == 20 for v in bank.values())
    assert all("dog house" in text and "a photo of" in text for text in bank["dog_house"])
    path.write_text(json.dumps({**bank, "eel": ["my own eel"]}))
    assert read_prompts(tmp_path, methods.CLASS_NAMES)[2] == ["my own eel"]
    for text, message in (
        ("{", "not JSON"),
        (json.dumps({"cat": ["x"]}), "no prompts for class 'dog_house'; add them"),
        (json.dumps({**bank, "eel": []}), "'eel' needs a list of prompts"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_prompts(tmp_path, methods.CLASS_NAMES)
    with pytest.raises(UserError, match=r"there are \d+ templates; lower it, or set language_model"):
        PromptBank.learn(bank_params(num_prompts=9999), real, None, tmp_path)


def save_sentence_model(folder):
    words = ["<pad>", "</s>", "<unk>", "cat", "eel", "dog", "house", "runs", "sleeps", "in", "snow"]
    tokens = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokens, **special).save_pretrained(folder)
    small = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(vocab_size=len(words), **small, **ids)).save_pretrained(folder)
    return folder


def test_a_language_model_writes_the_same_sentences_for_a_seed_without_repetitions(real, workplace, tmp_path):
    save_sentence_model(workplace / "models/pretrained/t5")
    banks = []
    for i, seed in enumerate((0, 0, 1)):
        torch.manual_seed(i)
        params = bank_params(language_model="models/pretrained/t5", num_prompts=5, seed=seed)
        PromptBank.learn(params, real, None, tmp_path)
        banks.append(json.loads((tmp_path / "prompts.json").read_text()))
    assert banks[0] == banks[1] != banks[2]
    texts = banks[0]["cat"]
    assert len(set(texts)) == len(texts) == 5 and all(text.startswith("a photo of ") for text in texts)
    with pytest.raises(UserError, match="not a text-to-text model"):
        SentenceModel(Path("models/fashion-features"))


def latents(n, seed=0):
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
