"""Image sets without labels: samples of one density over all embeddings, and random images of a pool."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_methods as methods
import torch
from PIL import Image
from pydantic import ValidationError
from sklearn.covariance import LedoitWolf
from tiny_methods import CLASS_NAMES, make, plan, render

from dinv.errors import UserError
from dinv.execution.params import ExecutionParams
from dinv.images.fingerprint import write_fingerprints
from dinv.images.image_set import load_image_set, save_image_set
from dinv.inversion.bank import bank_statistics, load_bank, save_statistics
from dinv.strategies.pool import Pool
from dinv.strategies.worker import Form, RenderWorker, generation_plan, image_digests

IDS = [f"image-{i}" for i in range(7)]
DOMAIN = {
    **methods.SAMPLER,
    "num_images_per_source": 2,
    "center": "mean",
    "spread": 1.0,
    "unconditional": "mean",
}
POOL = {
    "labels": "none",
    "num_images_per_source": 2,
    "resize": "squash",
    "max_duplicate_bits": 8,
    "seed": 0,
}


@pytest.fixture(scope="module")
def model(grey_model_folder):
    return tiny.load_tiny(grey_model_folder)


@pytest.fixture
def real(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "scratch"))
    return methods.save_real(tmp_path / "data/real/train_model")


def saved(folder, c, order=None, labels=None):
    order = order or list(range(len(c)))
    folder.mkdir(parents=True, exist_ok=True)
    labels = labels or methods.LABELS
    methods.save_embeddings(folder, c[order], [labels[i] for i in order], [IDS[i] for i in order])
    save_statistics(bank_statistics([load_bank(folder)], 3), folder)
    return folder


def embeddings(width=16):
    """Spread much more along some directions than along others."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(7, 3, width, generator=g) * torch.linspace(0.1, 2, 3 * width).view(3, width) + 1


@pytest.fixture
def bank(real, tmp_path):
    return saved(tmp_path / "data/learned/embeddings", embeddings())


# The density of the whole domain.


def test_conditions_have_the_mean_and_the_shrunk_covariance_of_all_embeddings(real, bank, model):
    many = make(
        "domain", real, model, bank, **{**DOMAIN, "num_images_per_source": 800, "guidance_scale": 1.0}
    )
    c = many.conditions(plan(many)).flatten(1)
    theirs = LedoitWolf().fit(embeddings().flatten(1).numpy())
    assert torch.allclose(c.mean(0), embeddings().flatten(1).mean(0), atol=0.1)
    assert np.abs(np.cov(c.numpy().T) - theirs.covariance_).max() < 0.1 * theirs.covariance_.max()
    one, twice = (make("domain", real, model, bank, **{**DOMAIN, "spread": s}) for s in (1.0, 2.0))
    m = embeddings().mean(0)
    torch.testing.assert_close(twice.conditions(plan(twice)) - m, 2 * (one.conditions(plan(one)) - m))


def test_labels_play_no_part(real, bank, model, tmp_path):
    wrong = saved(tmp_path / "wrong", embeddings(), labels=[0] * 6 + [1])
    a, b = (make("domain", real, model, folder, **DOMAIN) for folder in (bank, wrong))
    assert torch.equal(a.conditions(plan(a)), b.conditions(plan(b)))
    assert all(d.probabilities == (1 / 3,) * 3 and d.source_id is None for d in plan(a))
    assert len({d.id for d in plan(a)}) == len(a) == 14


def test_images_depend_on_neither_micro_batch_nor_order_and_more_only_append(real, bank, model, tmp_path):
    strategy = make("domain", real, model, bank, **DOMAIN)
    draws = plan(strategy)
    whole = render(strategy, model).int()
    backwards = render(strategy, model, draws[::-1], micro_batch=5).int().flip(0)
    assert (whole - backwards).abs().max() <= 1 and len(whole.flatten(1).unique(dim=0)) == len(draws)
    turned = make(
        "domain", real, model, saved(tmp_path / "turned", embeddings(), [6, 2, 0, 5, 1, 4, 3]), **DOMAIN
    )
    torch.testing.assert_close(turned.conditions(draws), strategy.conditions(draws))
    more = make("domain", real, model, bank, **{**DOMAIN, "num_images_per_source": 3})
    assert plan(more)[:14] == draws
    assert image_digests(more, plan(more)[:14], []) == image_digests(strategy, draws, [])
    other = make("domain", real, model, bank, **{**DOMAIN, "seed": 1})
    assert not set(image_digests(other, plan(other), [])) & set(image_digests(strategy, draws, []))


def test_the_empty_prompt_and_what_guidance_leads_away_from(real, bank, model):
    empty = model.empty_prompt_embeds(3).float()
    alone = {"center": "empty", "spread": 0.0, "guidance_scale": 1.0}
    strategy = make("domain", real, model, bank, **{**DOMAIN, **alone})
    inputs = strategy.inputs(plan(strategy))
    assert (
        torch.equal(inputs["prompt_embeds"], empty.expand(14, -1, -1))
        and "negative_prompt_embeds" not in inputs
    )
    assert len(inputs["noise_seed"].unique()) == 14
    around = make("domain", real, model, bank, **{**DOMAIN, "unconditional": "empty"})
    inputs = around.inputs(plan(around))
    assert torch.equal(inputs["negative_prompt_embeds"], empty.expand(14, -1, -1))
    mean = make("domain", real, model, bank, **DOMAIN)
    expected = embeddings().mean(0).expand(14, -1, -1)
    torch.testing.assert_close(mean.inputs(plan(mean))["negative_prompt_embeds"], expected)


def test_guidance_without_effect_and_embeddings_without_spread_are_refused(real, bank, model, tmp_path):
    with pytest.raises(ValidationError, match="guidance would lead away from the condition itself"):
        make("domain", real, model, bank, **{**DOMAIN, "spread": 0.0})
    same = saved(tmp_path / "same", torch.ones(7, 3, 16))
    with pytest.raises(UserError, match=r"^domain: spread = 1\.0: embeddings do not differ .* set it to 0"):
        make("domain", real, model, same, **DOMAIN)


# Images of a pool.


def picture(path, image):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def pool(real):
    """Ten pictures of each class, one of them a test image and one a training image."""
    held_out, images = tiny.random_images(1, 16, seed=8), tiny.random_images(30, 16, seed=9)
    write_fingerprints([held_out], Path("data/fingerprints.txt"))
    for i, image in enumerate(images):
        picture(f"pool/{CLASS_NAMES[i % 3]}/{i}.png", image)
    picture("pool/cat/test.png", held_out[0])
    picture("pool/eel/train.png", real.take([2]).images[0])
    return Path("pool")


def test_a_pool_gives_distinct_images_that_are_none_of_the_tasks(real, pool, capsys):
    strategy = make("pool_sample", real, None, pool, **POOL)
    said = "".join(capsys.readouterr())
    assert "pool_sample: 1 of 32 pool images are near-duplicates of test or validation" in said
    assert "pool_sample: 1 of 32 pool images are near-duplicates of training images" in said
    everything = make("pool_sample", real, None, pool, **{**POOL, "num_images_per_source": 4})
    found = [d.facts["pool_id"] for d in plan(everything)]
    assert len(set(found)) == 28 and not {"cat/test.png", "eel/train.png"} & set(found)
    draws = plan(strategy)
    assert plan(everything)[:14] == draws and all(d.probabilities == (1 / 3,) * 3 for d in draws)
    whole = Pool(pool, (16, 16, 3), "squash")
    expected = whole.take([whole.ids.index(d.facts["pool_id"]) for d in draws]).images
    assert (render(strategy, None).numpy() == expected).all() and not strategy.renderer().uses_model
    other = make("pool_sample", real, None, pool, **{**POOL, "seed": 1})
    assert [d.facts["pool_id"] for d in plan(other)] != [d.facts["pool_id"] for d in draws]


@pytest.mark.parametrize("parquet", [False, True])
def test_own_labels_are_the_pools_and_classes_are_equal(real, pool, parquet, tmp_path):
    if parquet:
        images = Pool(pool, (16, 16, 3), "squash")
        as_set = images.take(range(32))
        import pyarrow.parquet as pq

        save_image_set(as_set, tmp_path / "stored")
        (file,) = (tmp_path / "stored").glob("*.parquet")
        table = pq.read_table(file)
        at = table.column_names.index("label")
        names = [i.partition("/")[0] for i in images.ids]
        pq.write_table(table.set_column(at, "label", [names]), file)
        pool = tmp_path / "stored"
    strategy = make("pool_sample", real, None, pool, **{**POOL, "labels": "own", "num_images_per_source": 3})
    draws = plan(strategy)
    assert [d.label for d in draws[:6]] == [0, 1, 2] * 2 and len({d.facts["pool_id"] for d in draws}) == 21
    assert all(f"{CLASS_NAMES[d.label]}/" in d.facts["pool_id"] and d.probabilities is None for d in draws)


def test_what_a_pool_cannot_give_is_one_line(real, pool):
    with pytest.raises(
        UserError, match=r"30 images of pool can be used, 35 are asked for by num_images_per_source = 5"
    ):
        make("pool_sample", real, None, pool, **{**POOL, "num_images_per_source": 5})
    for path in list(Path("pool/dog_house").iterdir())[1:]:
        path.unlink()
    own = {**POOL, "labels": "own"}
    with pytest.raises(
        UserError, match=r"1 images of class 'dog_house' of pool can be used, 5 are asked for"
    ):
        make("pool_sample", real, None, pool, **own)
    picture("pool/a.png", tiny.random_images(1, 16, seed=3)[0])
    with pytest.raises(
        UserError, match=r"pool/a\.png: lies in no class's folder; move it, or set labels to none"
    ):
        make("pool_sample", real, None, pool, **own)
    save_image_set(Pool(pool, (16, 16, 3), "squash").take(range(5)), Path("stored"))
    with pytest.raises(
        UserError, match=r"has no column label or class with names of classes; write one, or set"
    ):
        make("pool_sample", real, None, Path("stored"), **own)
    with pytest.raises(UserError, match=r"pool_sample: input = 'data/real': the pipeline's own"):
        make("pool_sample", real, None, Path("data/real"), **POOL)


def test_the_image_set_says_that_no_class_is_surer_than_another(real, pool, tmp_path):
    strategy = make("pool_sample", real, None, pool, **POOL)
    form = Form((16, 16, 3), CLASS_NAMES)
    task = generation_plan(strategy, form, []).task(range(14))
    (tmp_path / "made").mkdir()
    content = RenderWorker(lambda: None, ExecutionParams.here("cpu").micro_batch).compute(
        task, lambda n: None
    )
    (tmp_path / "made/part-00000.parquet").write_bytes(content)
    stored = load_image_set(tmp_path / "made")
    assert np.allclose(stored.probabilities, 1 / 3) and stored.provenance["pool_id"][0] in "".join(
        Pool(pool, (16, 16, 3), "squash").ids
    )
