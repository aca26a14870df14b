"""The GAN: its losses, networks and augmentation, resuming, latents, and the strategies that use it."""

import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import tiny_methods as methods
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_methods import make, plan, render

from dinv.errors import UserError
from dinv.estimate.stages import gan_cost
from dinv.execution.params import ExecutionParams
from dinv.gan import checkpoint as checkpoints
from dinv.gan import training
from dinv.gan.augment import AUGMENTATIONS, diff_augment
from dinv.gan.checkpoint import Checkpoint
from dinv.gan.latents import LatentSettings, inversion_error, invert_latents, starts
from dinv.gan.networks import Discriminator, Generator
from dinv.gan.store import load_gan, to_floats, to_levels
from dinv.gan.training import Trainer, Training, discriminator_loss, generator_loss
from dinv.inversion.base import Place
from dinv.inversion.gan import GanMethod, GanParams
from dinv.strategies.worker import image_digests

BLOCK = {
    "method": "gan",
    "resolution": 16,
    "latent_size": 6,
    "generator_width": 4,
    "discriminator_width": 4,
    "augmentations": ["color", "translation", "cutout"],
    "num_steps": 12,
    "num_discriminator_steps": 2,
    "batch_size": 4,
    "lr_generator": 0.002,
    "lr_discriminator": 0.002,
    "adam_beta1": 0.0,
    "adam_beta2": 0.9,
    "ema_decay": 0.9,
    "seed": 0,
}
BLOCKS = {
    "gan": {"num_images_per_class": 2, "latent_std": 1.0, "seed": 0},
    "gan_inversion": {
        "num_inversion_steps": 5,
        "inversion_lr": 0.1,
        "num_starts": 3,
        "num_images_per_embedding": 2,
        "balance_classes": False,
        "noise_std": 0.5,
        "noise_unit": "absolute",
        "interpolation": 0.3,
        "interpolation_distribution": "uniform",
        "seed": 0,
    },
}
NUMBER = {"gan": "num_images_per_class", "gan_inversion": "num_images_per_embedding"}
EACH = pytest.mark.parametrize("name", sorted(BLOCKS))


def settings(**update):
    return GanParams.model_validate({**BLOCK, **update})


def learn(real, output, key="code", **update):
    place = Place(lambda: None, [key, "model"], ExecutionParams.here("cpu"))
    return GanMethod.learn(settings(**update), real, place, output)


def images(n, channels=3, side=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand((n, channels, side, side), generator=g) * 2 - 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return methods.save_real(tmp_path_factory.mktemp("real") / "train")


@pytest.fixture(scope="module")
def learned(real, tmp_path_factory):
    """A folder with a GAN, and a workplace with a scratch folder of its own."""
    root = tmp_path_factory.mktemp("gan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINV_SCRATCH", str(root / "scratch"))
        learn(real, root / "learned")
    return root / "learned"


@pytest.fixture(autouse=True)
def _own_scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "scratch"))


# Losses.


def test_hinge_losses_are_those_of_the_equation():
    real, made = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert discriminator_loss(real, made).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    assert generator_loss(made).item() == pytest.approx(2 / 3)


def test_a_step_is_that_of_the_equations_written_again(monkeypatch):
    """One step of SGD-like Adam on both networks, with the losses written out and the same lots."""
    data = Training(images(5), torch.tensor([0, 1, 2, 0, 1]), 3)
    one = settings(augmentations=[], num_discriminator_steps=1)
    trainer, other = Trainer(data, one), Trainer(data, one)
    trainer.take_step()
    g = training.generator(0, "gan", 0)
    rows, z = torch.randint(5, (4,), generator=g), torch.randn((4, 6), generator=g)
    x, y = data.images[rows], data.labels[rows]
    made = other.G(z, y).detach()
    loss = (1 - other.D(x, y)).clamp_min(0).mean() + (1 + other.D(made, y)).clamp_min(0).mean()
    other.optimizer_d.zero_grad()
    loss.backward()
    other.optimizer_d.step()
    rows, z = torch.randint(5, (4,), generator=g), torch.randn((4, 6), generator=g)
    loss_g = -other.D(other.G(z, data.labels[rows]), data.labels[rows]).mean()
    other.optimizer_g.zero_grad()
    loss_g.backward()
    other.optimizer_g.step()
    torch.testing.assert_close(trainer.losses[0], torch.stack([loss_g, loss]).detach())
    for ours, theirs in ((trainer.G, other.G), (trainer.D, other.D)):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b)
    start = Trainer(data, one).G
    for mean, first, last in zip(
        trainer.average.parameters(), start.parameters(), trainer.G.parameters(), strict=True
    ):
        torch.testing.assert_close(mean, 0.1 * first + 0.9 * last)  # d = min(0.9, 1 / 10)


# Networks.


@pytest.mark.parametrize(("side", "channels"), [(16, 1), (32, 3), (64, 3)])
def test_shapes_ranges_and_classes(side, channels):
    G, D = Generator(6, 4, 3, side, channels), Discriminator(4, 3, side, channels)
    z, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    made = G(z, y)
    assert made.shape == (5, channels, side, side) and made.abs().max() <= 1
    assert D(made, y).shape == (5,)
    block = G.blocks[0].norms[0]
    torch.nn.init.normal_(block.scale.weight)
    assert (G(z, y) != G(z, (y + 1) % 3)).flatten(1).any(1).all()
    G.eval()
    torch.testing.assert_close(G(z, y)[:2], G(z[:2], y[:2]), rtol=1e-4, atol=1e-5)


def test_the_discriminator_projects_on_the_class():
    D = Discriminator(4, 3, 16, 3).eval()
    x, y, other = images(4), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    vectors, phi = D.vectors.weight, D.features(x)
    torch.testing.assert_close(D(x, y) - D(x, other), ((vectors[y] - vectors[other]) * phi).sum(1))
    assert torch.linalg.matrix_norm(D.linear.weight, 2) <= 1.01


# DiffAugment.


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_are_differentiable_and_keep_shapes(name):
    x = images(2, side=8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: AUGMENTATIONS[name](x, seeded(1)), x, fast_mode=True)
    out = AUGMENTATIONS[name](images(64), seeded())
    assert out.shape == (64, 3, 16, 16) and (out != images(64)).flatten(1).any(1).float().mean() > 0.9


def test_the_same_lots_give_the_same_transformation_whatever_the_images():
    policy = ["color", "translation", "cutout"]
    x = images(3)
    assert torch.equal(diff_augment(x, policy, seeded()), diff_augment(x, policy, seeded()))
    assert not torch.equal(diff_augment(x, policy, seeded()), diff_augment(x, policy, seeded(1)))
    assert torch.equal(diff_augment(x, [], seeded()), x)
    # All three are affine in the image, so that equal lots cancel what they add.
    zero = diff_augment(torch.zeros_like(x), policy, seeded())
    twice = diff_augment(2 * x, policy, seeded())
    torch.testing.assert_close(
        twice - zero, 2 * (diff_augment(x, policy, seeded()) - zero), rtol=1e-4, atol=1e-5
    )


def test_color_is_brightness_saturation_contrast():
    x = images(500)
    brightness, saturation, contrast = torch.rand((3, 500, 1, 1, 1), generator=seeded())
    y = x + brightness - 0.5
    grey = y.mean(1, keepdim=True)
    y = grey + 2 * saturation * (y - grey)
    y = y.mean((1, 2, 3), keepdim=True) + (0.5 + contrast) * (y - y.mean((1, 2, 3), keepdim=True))
    torch.testing.assert_close(AUGMENTATIONS["color"](x, seeded()), y)


def test_translation_shifts_by_whole_pixels_up_to_an_eighth():
    x = images(120, channels=1) + 2  # nothing is 0
    found = set()
    for before, after in zip(x, AUGMENTATIONS["translation"](x, seeded()), strict=True):
        shifts = [
            (dx, dy) for dx in range(-2, 3) for dy in range(-2, 3)
            if torch.equal(shifted(before, dx, dy), after)
        ]  # fmt: skip
        assert len(shifts) == 1
        found.add(shifts[0])
    assert len(found) == 25


def shifted(image, dx, dy):
    """Pixel (i, j) of the result is (i + dy, j + dx) of the image, 0 outside."""
    out = torch.zeros_like(image)
    i, j = range(max(0, -dy), min(16, 16 - dy)), range(max(0, -dx), min(16, 16 - dx))
    out[:, i.start : i.stop, j.start : j.stop] = image[
        :, i.start + dy : i.stop + dy, j.start + dx : j.stop + dx
    ]
    return out


def test_cutout_is_a_square_of_half_the_side():
    out = AUGMENTATIONS["cutout"](torch.ones(400, 3, 16, 16), seeded())
    assert set(out.unique().tolist()) == {0.0, 1.0}
    holes = (out[:, 0] == 0).flatten(1).sum(1)
    assert holes.max() == 64 and holes.min() >= 16  # whole, or a quarter at a corner
    rows = (out[:, 0] == 0).any(2).sum(1)
    assert rows.min() >= 4 and rows.max() == 8 and (out[:, 0] == out[:, 1]).all()


# Training.


def test_classes_are_learned(tmp_path):
    """Dark and bright pictures: after a few steps the label decides on the brightness."""
    bright = torch.tensor([0, 1] * 8)
    data = Training(0.1 * images(16) + (bright * 1.4 - 0.7).view(-1, 1, 1, 1), bright, 2)
    long = settings(
        num_steps=60,
        batch_size=8,
        discriminator_width=8,
        augmentations=["translation"],
        num_discriminator_steps=1,
    )
    trainer = training.train(data, long, Checkpoint(tmp_path / "c"), lambda n: None)
    made = trainer.average.eval()(torch.randn((40, 6), generator=seeded()), torch.tensor([0, 1] * 20))
    dark, light = made[0::2].mean(), made[1::2].mean()
    assert light - dark > 0.25, (dark, light)


def test_resumes_from_a_checkpoint_to_the_same_bytes(real, learned, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    steps, whole = [], (learned / "part-00000.safetensors").read_bytes()
    original = Trainer.take_step

    def dies_at_seven(self):
        steps.append(self.step)
        if len(steps) == 7:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(Trainer, "take_step", dies_at_seven)
    with pytest.raises(KeyboardInterrupt):
        learn(real, tmp_path / "out")
    assert len(list((tmp_path / "scratch/gan").glob("*.checkpoint"))) == 1
    learn(real, tmp_path / "out")
    assert steps == [*range(7), *range(6, 12)]
    assert (tmp_path / "out/part-00000.safetensors").read_bytes() == whole
    assert not list((tmp_path / "scratch/gan").glob("*.checkpoint"))
    learn(real, tmp_path / "again")
    assert len(steps) == 13 and (tmp_path / "again/part-00000.safetensors").read_bytes() == whole


def test_killed_it_goes_on_to_the_same_bytes(real, learned, tmp_path, monkeypatch):
    """kill -9 in the middle of a step, after some checkpoint."""
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        original = Trainer.take_step

        def hangs_at_five(self):
            original(self)
            while self.step == 5:
                (tmp_path / "there").touch()
                time.sleep(0.01)

        Trainer.take_step = hangs_at_five
        learn(real, tmp_path / "out")
        os._exit(0)
    while not (tmp_path / "there").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not (tmp_path / "out").exists()
    learn(real, tmp_path / "out")
    assert (tmp_path / "out/part-00000.safetensors").read_bytes() == (
        learned / "part-00000.safetensors"
    ).read_bytes()


def test_a_damaged_checkpoint_is_named_and_training_starts_anew(tmp_path, capsys):
    path = tmp_path / "c"
    path.write_bytes(b"nonsense")
    assert Checkpoint(path).read() is None
    assert "damaged checkpoint" in "".join(capsys.readouterr())


def test_what_decides_on_the_result_and_what_does_not(real, learned, tmp_path):
    """Not the order of the images nor the diffusion model; the seed does."""
    whole = (learned / "part-00000.safetensors").read_bytes()
    shuffled = methods.save_real(tmp_path / "order", order=[6, 2, 0, 5, 1, 4, 3])
    learn(shuffled, tmp_path / "a")
    assert (tmp_path / "a/part-00000.safetensors").read_bytes() == whole
    learn(real, tmp_path / "b", seed=1)
    assert (tmp_path / "b/part-00000.safetensors").read_bytes() != whole


def test_the_curve_has_both_losses_and_numbers_are_finite(real, tmp_path):
    curve = learn(real, tmp_path / "out")
    assert {loss.kind for loss in curve} == {"generator", "discriminator"} and len(curve) == 24
    tensors = load_file(tmp_path / "out/part-00000.safetensors")
    assert all(torch.isfinite(t).all() for t in tensors.values())
    assert tensors["losses"][3, 0].item() == pytest.approx(curve[3].loss, abs=1e-5)


def test_a_loss_that_is_not_finite_is_one_line(tmp_path):
    data = Training(torch.full((4, 3, 16, 16), torch.nan), torch.zeros(4, dtype=torch.int64), 1)
    with pytest.raises(UserError, match=r"^gan: the losses of step 1 are not finite; lower"):
        training.train(data, settings(), Checkpoint(tmp_path / "c"), lambda n: None)


@pytest.mark.parametrize(
    "update",
    [{"resolution": 20}, {"augmentations": ["blur"]}, {"augmentations": ["color", "color"]}, {"batch_size": 1}, {"ema_decay": 1.0}],
)  # fmt: skip
def test_wrong_settings_are_refused(update):
    with pytest.raises(ValidationError, match=next(iter(update))):
        settings(**update)


def test_estimate_counts_a_gans_steps_and_bytes(real, learned):
    sample = SimpleNamespace(
        device=torch.device("cpu"),
        for_model=real,
        params=SimpleNamespace(execution=ExecutionParams.here("cpu")),
    )
    cost = gan_cost(settings(num_steps=1000), sample)
    assert cost.work == {"steps": 1000} and cost.seconds.median > 0 and not cost.note
    size = (learned / "part-00000.safetensors").stat().st_size
    assert cost.disk == pytest.approx(size, rel=0.05)


# Latents.


def latent_settings(**update):
    return LatentSettings(
        **{"num_inversion_steps": 60, "inversion_lr": 0.1, "num_starts": 4, "seed": 0, **update}
    )


def test_inversion_reduces_the_error_and_finds_what_the_gan_made(learned):
    G, y, ids = load_gan(learned, torch.device("cpu")).generator, torch.tensor([0, 1, 2]), ["a", "b", "c"]
    x = G(torch.randn((3, 6), generator=seeded(3)), y)
    begin = starts(G, x, y, ids, latent_settings())
    z, error = invert_latents(G, x, y, ids, latent_settings())
    before = inversion_error(G, begin, y, x)
    assert (error < 0.1 * before).all(), (before, error)
    torch.testing.assert_close(error, (G(z, y) - x).square().mean((1, 2, 3)))
    first = starts(G, x, y, ids, latent_settings(num_starts=1))
    assert (before <= inversion_error(G, first, y, x)).all()


def test_a_latent_does_not_depend_on_its_batch(learned):
    G, y, ids = load_gan(learned, torch.device("cpu")).generator, torch.tensor([0, 1, 2]), ["a", "b", "c"]
    x, few = images(3), latent_settings(num_inversion_steps=5)
    whole, _ = invert_latents(G, x, y, ids, few)
    alone, _ = invert_latents(G, x[1:2], y[1:2], ids[1:2], few)
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-3, atol=1e-3)


# Strategies.


def strategy_of(name, real, learned, **update):
    return make(name, real, None, learned, **{**BLOCKS[name], **update})


@EACH
def test_images_do_not_depend_on_micro_batch_order_or_other_images(real, learned, tmp_path, name):
    strategy = strategy_of(name, real, learned)
    draws, whole = plan(strategy), render(strategy, None).int()
    backwards = render(strategy, None, draws[::-1], micro_batch=2).int().flip(0)
    assert (whole - backwards).abs().max() <= 1 and whole.shape[1:] == (16, 16, 3)
    others = strategy_of(name, methods.save_real(tmp_path / "order", order=[6, 2, 0, 5, 1, 4, 3]), learned)
    again = {d.id: (d, x) for d, x in zip(plan(others), render(others, None).int(), strict=True)}
    facts = [asdict(again[d.id][0]) for d in draws]
    assert [{**f, "facts": {**f["facts"], "inversion_error": 0}} for f in facts] == [
        {**asdict(d), "facts": {**d.facts, "inversion_error": 0}} for d in draws
    ]
    assert (torch.stack([again[d.id][1] for d in draws]) - whole).abs().max() <= 1


@EACH
def test_more_images_only_append_and_the_seed_changes_all(real, learned, name):
    few, many, other = (
        strategy_of(name, real, learned, **update) for update in ({NUMBER[name]: 1}, {NUMBER[name]: 3}, {NUMBER[name]: 1, "seed": 1})
    )  # fmt: skip
    digests = image_digests(few, plan(few), [])
    assert len(many) == 3 * len(few) and image_digests(many, plan(many)[: len(few)], []) == digests
    assert not set(digests) & set(image_digests(other, plan(other), []))
    assert all(len(shown) and label for label, shown in few.previews()) and not few.renderer().uses_model


def test_gan_makes_as_many_of_each_class_and_only_of_those_with_images(real, learned, tmp_path):
    draws = plan(strategy_of("gan", real, learned))
    assert [(d.id, d.label, d.source_id) for d in draws[:4]] == [
        ("cat#0", 0, None), ("dog_house#0", 1, None), ("eel#0", 2, None), ("cat#1", 0, None)
    ]  # fmt: skip
    no_dogs = methods.save_real(tmp_path / "few", labels=[0, 0, 2])
    assert {d.label for d in plan(strategy_of("gan", no_dogs, learned))} == {0, 2}


def test_gan_images_are_those_of_the_generator(real, learned):
    strategy = strategy_of("gan", real, learned, latent_std=0.5)
    inputs = strategy.inputs(plan(strategy))
    assert 0.3 < inputs["latents"].std() < 0.7
    G = load_gan(learned, torch.device("cpu")).generator
    assert torch.equal(render(strategy, None), to_levels(G(inputs["latents"], inputs["label"])))


def test_gan_inversion_perturbs_latents_by_the_equation(real, learned):
    plain = strategy_of("gan_inversion", real, learned, noise_std=0.0, interpolation=0.0)
    z = plain.inputs(plan(plain)[:7])["latents"]
    row = {image_id: i for i, image_id in enumerate(real.ids)}
    strategy = strategy_of("gan_inversion", real, learned, noise_std=0.0)
    draws = plan(strategy)[:7]
    a = torch.tensor([d.facts["interpolation"] for d in draws])[:, None]
    partners = z[[row[d.facts["partner_id"]] for d in draws]]
    torch.testing.assert_close(strategy.inputs(draws)["latents"], (1 - a) * z + a * partners)
    assert all(
        real.labels[row[d.facts["partner_id"]]] == d.label and d.facts["partner_id"] != d.source_id
        for d in draws
    )
    noisy = strategy_of("gan_inversion", real, learned, interpolation=0.0, num_images_per_embedding=60)
    xi = (noisy.inputs(plan(noisy))["latents"] - z.repeat(60, 1)) / 0.5
    assert abs(xi.std() - 1) < 0.05 and abs(xi.mean()) < 0.05
    shaped = strategy_of("gan_inversion", real, learned, interpolation=0.0, noise_covariance="pooled")
    assert not torch.equal(shaped.inputs(plan(shaped))["latents"], noisy.inputs(plan(noisy)[:14])["latents"])


def test_gan_inversion_tells_how_well_it_inverted_and_computes_latents_once(real, learned, monkeypatch):
    strategy = strategy_of("gan_inversion", real, learned, noise_std=0.0, interpolation=0.0)
    draws, gan = plan(strategy)[:7], load_gan(learned, torch.device("cpu"))
    z, x = strategy.inputs(draws)["latents"], to_floats(real.take(range(7)).images)
    error = inversion_error(gan.generator, z, torch.from_numpy(real.labels), x)
    assert [d.facts["inversion_error"] for d in draws] == pytest.approx(error.tolist(), abs=1e-5)
    from dinv.strategies import gan_inversion

    monkeypatch.setattr(gan_inversion, "invert_latents", None)
    assert len(strategy_of("gan_inversion", real, learned, num_images_per_embedding=5)) == 35


@EACH
def test_a_folder_without_such_a_gan_is_refused_in_one_line(real, learned, tmp_path, name):
    with pytest.raises(UserError, match="no GAN there; run dvc repro"):
        strategy_of(name, real, tmp_path)
    methods.save_class_bank(tmp_path / "tokens")
    with pytest.raises(UserError, match=r"not a GAN of dinv .*; name what method gan learned"):
        strategy_of(name, real, tmp_path / "tokens")
    two = tiny.random_images(4)
    from dinv.images.image_set import ImageSet, ImageSetReader, save_image_set

    save_image_set(ImageSet(two, np.array([0, 1, 0, 1]), list("abcd"), ["cat", "dog"]), tmp_path / "two")
    with pytest.raises(
        UserError,
        match=rf"^{name}: .* was trained for the classes cat, dog_house, eel, the task has cat, dog; run",
    ):
        strategy_of(name, ImageSetReader(tmp_path / "two"), learned)


def test_latents_are_found_at_the_gans_resolution(real, tmp_path):
    """Model images of 16 pixels, a GAN of 32: no error, and images of 32."""
    learn(real, tmp_path / "learned", resolution=32, num_steps=1)
    strategy = strategy_of("gan_inversion", real, tmp_path / "learned", num_inversion_steps=1)
    assert render(strategy, None, plan(strategy)[:2]).shape == (2, 32, 32, 3)
    assert Path(tmp_path / "learned/part-00000.safetensors").stat().st_size > 0
