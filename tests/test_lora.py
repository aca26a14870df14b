"""Low-rank adapters: the equation, learning and resuming, strategies that sample with one, and nobody else."""

import copy
import pickle
import shutil

import pytest
import tiny
import tiny_methods as methods
import torch
from tiny_methods import make, plan, render

pytest.importorskip("peft")

from diffusers import UNet2DConditionModel

from dinv.diffusion import lora
from dinv.errors import UserError
from dinv.files import digest_of
from dinv.gan import checkpoint
from dinv.inversion.bank import load_bank
from dinv.inversion.base import Place
from dinv.inversion.class_lora import ClassLora
from dinv.inversion.invert import ImageStream
from dinv.inversion.joint_training import Classes, ClassLoraParams, Trainer
from dinv.params import parse_params, read_yaml
from dinv.publish.embeddings import EmbeddingsExport
from dinv.rng import generator
from dinv.strategies.worker import image_digests

BLOCK = {
    **tiny.invert_params().model_dump(),
    "method": "class_lora",
    "batch_size": 2,
    "num_visits": 6,
    "rank": 2,
    "alpha": 4.0,
    "adapter_lr": 0.03,
}
OF_CLASSES = {
    "image_to_image": {},
    "genie": {},
    "diff_mix": {},
    "genie_ada": {},
    "diff_ii": {"suffixes": [], "suffix_fraction": 0.0},
    "dreamda": {},
}


def lora_params(**update):
    return ClassLoraParams.model_validate({**BLOCK, **update})


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return methods.save_real(tmp_path_factory.mktemp("real") / "train")


@pytest.fixture(autouse=True)
def _scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.chdir(tiny.ROOT)


def learn(model, real, folder, **update):
    place = Place(lambda: model, ["key"], tiny.PARAMS.execution)
    curve = ClassLora.learn(lora_params(**update), real, place, folder)
    return curve, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def learned(model, real, tmp_path_factory):
    root = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINV_SCRATCH", str(root / "scratch"))
        learn(model, real, root / "lora")
    return root / "lora"


@pytest.fixture(scope="module")
def bare(learned, tmp_path_factory):
    """The same embeddings without the adapter."""
    folder = tmp_path_factory.mktemp("bare") / "lora"
    shutil.copytree(learned, folder, ignore=shutil.ignore_patterns(lora.FILE))
    return folder


def somewhere(model):
    g = torch.Generator().manual_seed(1)
    z, c = torch.randn(2, *model.latent_shape, generator=g), torch.randn(2, 3, model.width, generator=g)
    return z, torch.tensor([3, 700]), c


@torch.no_grad()
def output(model):
    return model.predict(*somewhere(model))


def random_adapter(model, rank=2, alpha=3.0):
    adapted, g = lora.with_new_adapter(model, rank, alpha, 0), torch.Generator().manual_seed(2)
    for weight in lora.adapter_weights(adapted).values():
        weight.data = torch.randn(weight.shape, generator=g) / 4
    return adapted


# The adapter itself.


def test_a_new_adapter_changes_nothing_and_shares_the_frozen_weights(model):
    before, state = output(model), torch.get_rng_state()
    adapted = lora.with_new_adapter(model, 4, 8.0, 0)
    assert torch.equal(output(adapted), before) and torch.equal(torch.get_rng_state(), state)
    weights = lora.adapter_weights(adapted)
    trained = {id(p) for p in adapted.unet.parameters() if p.requires_grad}
    assert trained == {id(w) for w in weights.values()}
    ours = {p.data_ptr() for p in adapted.unet.parameters()} - {w.data_ptr() for w in weights.values()}
    assert ours == {p.data_ptr() for p in model.unet.parameters()}
    projections = [n for n, m in model.unet.named_modules() if n.endswith(lora.TARGETS)]
    assert {n.removeprefix(lora.PREFIX).partition(".lora_")[0] for n in weights} == set(projections)
    a = torch.cat([w.flatten() for n, w in weights.items() if "lora_A" in n]).detach()
    assert a.std() == pytest.approx(1 / 4, rel=0.1)


def test_an_adapter_is_alpha_over_r_times_b_a(model):
    adapted, merged = random_adapter(model), copy.copy(model)
    merged.unet = copy.deepcopy(model.unet)
    weights = lora.adapter_weights(adapted)
    for name, a in weights.items():
        head, _, rest = name.removeprefix(lora.PREFIX).partition(".lora_A.")
        if rest:
            product = weights[name.replace("lora_A", "lora_B")] @ a
            merged.unet.get_submodule(head).weight.data += (3.0 / 2 * product).detach()
    torch.testing.assert_close(output(adapted), output(merged), rtol=1e-4, atol=1e-5)
    assert (output(adapted) - output(model)).abs().max() > 0.01


def test_diffusers_reads_what_is_written(model, tmp_path):
    adapted, before = random_adapter(model), output(model)
    lora.save_adapter(lora.adapter_weights(adapted), 2, 3.0, tmp_path / lora.FILE)
    assert torch.equal(output(lora.with_adapter(model, tmp_path / lora.FILE)), output(adapted))
    theirs = copy.copy(model)
    theirs.unet = UNet2DConditionModel.from_pretrained(model.params.path, subfolder="unet")
    theirs.unet.load_lora_adapter(tmp_path, prefix="unet", use_safetensors=True)
    torch.testing.assert_close(output(theirs), output(adapted))
    assert torch.equal(output(model), before)
    assert not any(".lora_" in name for name, _ in model.unet.named_modules())


def test_an_adapter_that_cannot_be_used_is_named_in_one_line(model, tmp_path, monkeypatch):
    path = tmp_path / lora.FILE
    lora.save_adapter(lora.adapter_weights(random_adapter(model)), 2, 3.0, path)
    other = tiny.load_tiny(tiny.save_tiny_model(tmp_path / "wider", width=24))
    with pytest.raises(UserError, match=r"does not fit model.path = .*; run dvc repro"):
        lora.with_adapter(other, path)
    path.write_bytes(path.read_bytes()[:-9])
    for place in (path, tmp_path / "none"):
        with pytest.raises(UserError, match="missing, damaged or not an adapter"):
            lora.with_adapter(model, place)
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^class_lora: .*peft is not installed; pip install -e '.\[lora\]'$"):
        lora.require_peft("class_lora")


# Learning.


def test_with_a_still_adapter_learning_is_plain_textual_inversion(model, real):
    params = lora_params(adapter_lr=1e-12, weight_decay=0.0, init="normal", init_std=0.5)
    images, labels = torch.from_numpy(real.take(range(7)).images), torch.from_numpy(real.labels)
    trainer = Trainer(model, Classes.of(model, images, labels, methods.CLASS_NAMES, 2), params)
    streams = [ImageStream(params, f"class {name}") for name in methods.CLASS_NAMES]
    c = torch.stack([s.init((3, model.width)) for s in streams]).requires_grad_()
    optimizer = torch.optim.AdamW([c], lr=params.lr, weight_decay=0.0)
    keys = [generator(params.seed, "lora-order", i) for i in range(2)]
    rows = torch.cat([torch.randperm(7, generator=g) for g in keys])
    posterior = model.encode(images)
    for step in range(params.num_visits):
        chosen, stream = rows[2 * step : 2 * step + 2], ImageStream(params, f"step {step}")
        xi, eps = (torch.stack([stream.noise(model.latent_shape) for _ in range(2)]) for _ in range(2))
        t = torch.tensor([stream.timestep(i, 1000) for i in range(2)])
        z = model.scheduler.add_noise(posterior.mean[chosen] + posterior.std[chosen] * xi, eps, t)
        found = model.unet(z, t, encoder_hidden_states=c[labels[chosen]]).sample
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(found, eps).backward()
        optimizer.step()
        trainer.take_step()
    torch.testing.assert_close(trainer.c.detach(), c.detach(), rtol=1e-3, atol=2e-3)


def test_learning_lowers_the_heldout_loss_below_that_of_embeddings_alone(model, real, tmp_path):
    lasts = []
    for adapter_lr in (0.03, 1e-12):
        curve, _ = learn(model, real, tmp_path / "lora", num_visits=24, adapter_lr=adapter_lr)
        heldout = [point.loss for point in curve if point.kind == "heldout"]
        assert heldout[-1] < heldout[0]
        lasts.append(heldout[-1])
    assert lasts[0] < lasts[1]
    assert load_bank(tmp_path / "lora").ids == methods.CLASS_NAMES


def test_an_interrupted_run_gives_the_same_bytes_whatever_the_order_of_images(
    model, real, learned, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    take_step, taken, deaths = Trainer.take_step, [], [KeyboardInterrupt]

    def interrupted(trainer):
        if trainer.step == 4 and deaths:
            raise deaths.pop()
        taken.append(trainer.step)
        take_step(trainer)

    monkeypatch.setattr(Trainer, "take_step", interrupted)
    others = methods.save_real(tmp_path / "order", order=[6, 2, 0, 5, 1, 4, 3])
    with pytest.raises(KeyboardInterrupt):
        learn(model, others, tmp_path / "lora")
    _, files = learn(model, others, tmp_path / "lora")
    assert taken == [0, 1, 2, 3, 4, 5]
    assert files == {path.name: path.read_bytes() for path in learned.iterdir()}
    assert set(files) == {"part-00000.safetensors", "statistics.safetensors", lora.FILE}
    assert not list((tmp_path / "scratch/class_lora").glob("*.checkpoint"))
    _, again = learn(model, real, tmp_path / "again")  # a finished part, no step
    assert again == files and len(taken) == 6


def test_classes_without_images_and_small_storage_are_allowed(model, tmp_path):
    few = methods.save_real(tmp_path / "few", labels=[0, 2, 2])
    learn(model, few, tmp_path / "lora", num_visits=1, storage_dtype="float16")
    bank = load_bank(tmp_path / "lora")
    assert bank.labels.tolist() == [0, 2] and bank.prompt_embeds.dtype == torch.float16
    assert output(lora.with_adapter(model, tmp_path / "lora" / lora.FILE)).isfinite().all()


def test_a_loss_that_is_not_finite_ends_in_one_line(model, real, tmp_path):
    with pytest.raises(UserError, match=r"class_lora: the loss of step \d+ is not finite; lower lr"):
        learn(model, real, tmp_path / "lora", lr=1e30, adapter_lr=1e30)


# Strategies.


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_strategy_samples_with_the_adapter_and_leaves_the_model_alone(model, real, learned, bare, name):
    with_it, without = (
        make(name, real, model, folder, prompt=None, **OF_CLASSES[name]) for folder in (learned, bare)
    )
    draws = plan(with_it)[:4]
    before = output(model)
    whole = render(with_it, model, draws)
    assert (whole.int() - render(with_it, model, draws[::-1], micro_batch=1).flip(0).int()).abs().max() <= 1
    assert (whole != render(without, model, draws)).any()
    assert torch.equal(output(model), before)
    sent = pickle.loads(pickle.dumps(with_it.renderer()))
    assert torch.equal(sent.open(lambda: model)(with_it.inputs(draws)), whole)
    digests = [image_digests(strategy, draws, ["key"]) for strategy in (with_it, without)]
    assert not set(digests[0]) & set(digests[1])
    assert [label for label, _ in with_it.previews()] == [label for label, _ in without.previews()]
    assert with_it.previews()[0][1].renderer().adapter == with_it.adapter


def test_an_adapter_is_known_by_its_content_not_by_its_place(model, real, learned, tmp_path):
    shutil.copytree(learned, tmp_path / "moved")
    learn(model, real, tmp_path / "other", seed=1)
    folders = (learned, tmp_path / "moved", tmp_path / "other")
    strategies = [make("image_to_image", real, model, folder, prompt=None) for folder in folders]
    digests = [digest_of(image_digests(s, plan(s)[:1], [])) for s in strategies]
    assert digests[0] == digests[1] != digests[2]


def test_the_adapter_is_published_with_its_embeddings(learned, tmp_path):
    (tmp_path / "out").mkdir()
    EmbeddingsExport.of(learned, "mit").write(tmp_path / "out")
    assert (tmp_path / "out" / lora.FILE).read_bytes() == (learned / lora.FILE).read_bytes()
    assert "load_lora_weights" in (tmp_path / "out/README.md").read_text()


# Parameters.


def whole_params(learned, made):
    raw = read_yaml(tiny.ROOT / "params.yaml")
    arm = {"images": "data/generated/made", "real": True, "learner": "cnn"}
    raw["invert"], raw["generate"] = {"lora": learned}, {"made": {**made, "input": "data/learned/lora"}}
    raw["arms"] = {"real": {**arm, "images": "data/real/train", "real": False}, "made": arm}
    raw["train"] = {"cnn": raw["train"]["cnn"]}
    return raw


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"rank": 0}, r"invert.lora.rank = 0: .*greater than 0"),
        ({"alpha": float("inf")}, r"invert.lora.alpha = inf: .*finite"),
        ({"adapter_lr": None}, r"invert.lora.adapter_lr = None: .*number"),
        ({"ranks": 3}, r"invert.lora.ranks: unknown parameter \(did you mean rank\?\)"),
    ],
)
def test_wrong_parameters_are_named_in_one_line(update, message):
    made = {**methods.EDIT, "strategy": "image_to_image", "prompt": None}
    parse_params(whole_params(BLOCK, made))
    with pytest.raises(UserError, match=message):
        parse_params(whole_params({**BLOCK, **update}, made))


def test_a_strategy_that_would_ignore_the_adapter_is_refused():
    made = tiny.PARAMS.generate["inversion"].model_dump()
    with pytest.raises(
        UserError, match=r"strategy diffusion_inversion samples without the adapter.*class_emb"
    ):
        parse_params(whole_params(BLOCK, made))
