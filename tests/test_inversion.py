"""The inversion loop against a plain re-implementation, and its invariants."""

from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from dinv.errors import UserError
from dinv.inversion.bank import (
    BankReader,
    EmbeddingBank,
    bank_statistics,
    load_bank,
    load_part,
    load_statistics,
    loss_curves,
    save_bank,
    save_statistics,
    take,
)
from dinv.inversion.invert import ImageStream, denoising_loss, interval_means, invert, learning_rate

IDS = ["a", "b", "c", "d"]
LABELS = torch.tensor([0, 0, 1, 1])


def images(n=4):
    return torch.from_numpy(tiny.random_images(n))


def learn(model, params=None, n=4, micro_batch=4, order=None):
    rows = order or list(range(n))
    params = params or tiny.invert_params()
    return invert(model, images()[rows], LABELS[rows], [IDS[i] for i in rows], params, micro_batch)


def reference_inversion(model, params, row):
    """One image alone, written from the paper with diffusers and torch.optim only."""
    scheduler = DDPMScheduler.from_config(model.schedule)
    stream = ImageStream(params, IDS[row])
    pixels = images()[row : row + 1].permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        posterior = model.vae.encode(pixels).latent_dist
    c = model.empty_prompt_embeds(params.num_tokens)[None].clone().requires_grad_()
    optimizer = torch.optim.AdamW([c], lr=params.lr, weight_decay=params.weight_decay)
    for visit in range(params.num_visits):
        t = torch.tensor([stream.timestep(visit, 1000)])
        eps, xi = stream.noise((4, 8, 8))[None], stream.noise((4, 8, 8))[None]
        z0 = (posterior.mean + posterior.std * xi) * model.vae.config.scaling_factor
        z_t = scheduler.add_noise(z0, eps, t)
        output = model.unet(z_t, t, encoder_hidden_states=c).sample
        is_v = model.schedule["prediction_type"] == "v_prediction"
        target = scheduler.get_velocity(z0, eps, t) if is_v else eps
        loss = F.mse_loss(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return c.detach()[0]


@pytest.mark.parametrize("kind", ["model", "v_model"])
def test_equals_a_plain_implementation_of_the_paper(kind, request):
    model = request.getfixturevalue(kind)
    params = tiny.invert_params(num_visits=6, weight_decay=0.01)
    bank = learn(model, params)
    for row in range(4):
        expected = reference_inversion(model, params, row)
        torch.testing.assert_close(bank.prompt_embeds[row], expected, rtol=1e-3, atol=2e-3)


def test_embedding_does_not_depend_on_batch_mates_their_number_or_order(model):
    together = learn(model)
    for order, micro_batch in (([3, 1, 0, 2], 4), ([0, 1, 2, 3], 1), ([2, 0], 2)):
        other = learn(model, micro_batch=micro_batch, order=order)
        torch.testing.assert_close(other.prompt_embeds, together.prompt_embeds[order], rtol=1e-3, atol=2e-3)


def test_same_run_twice_gives_the_same_bits(model):
    a, b = learn(model), learn(model)
    assert torch.equal(a.prompt_embeds, b.prompt_embeds)


def test_weights_are_bit_identical_afterwards_and_take_no_gradient(text_model_folder):
    model = tiny.load_tiny(text_model_folder)
    tensors = {**model.unet.state_dict(), **{f"vae.{k}": v for k, v in model.vae.state_dict().items()}}
    before = {k: v.clone() for k, v in tensors.items()}
    learn(model)
    assert all(torch.equal(v, before[k]) for k, v in tensors.items())
    parameters = [*model.unet.parameters(), *model.vae.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in parameters)
    assert not model.unet.training and not model.vae.training


def test_learning_lowers_the_heldout_loss_of_every_image(model):
    bank = learn(model, tiny.invert_params(num_visits=40))
    assert (bank.heldout_loss[-1] < bank.heldout_loss[0]).all()
    assert bank.heldout_visits.tolist() == [0, 20, 40]
    assert bank.train_loss.shape == (40, 4) and bank.train_visits.tolist() == list(range(1, 41))


def test_own_embedding_beats_the_others_mean_on_heldout_noise(model):
    bank = learn(model, tiny.invert_params(num_visits=60))
    z0 = model.encode(images()).mean
    g = torch.Generator().manual_seed(123)
    own = other = 0.0
    for _ in range(8):
        t, eps = torch.randint(0, 1000, (4,), generator=g), torch.randn(z0.shape, generator=g)
        with torch.no_grad():
            own += denoising_loss(model, z0, bank.prompt_embeds, eps, t).mean()
            mean = bank_statistics([bank], 2).mean.expand_as(bank.prompt_embeds)
            other += denoising_loss(model, z0, mean + torch.randn(mean.shape, generator=g), eps, t).mean()
    assert own < other


def test_denoising_loss_is_zero_for_a_perfect_prediction(model, monkeypatch):
    eps = torch.randn(2, 4, 8, 8)
    monkeypatch.setattr(model, "predict", lambda z, t, c: eps)
    loss = denoising_loss(model, torch.zeros_like(eps), torch.zeros(2, 3, 16), eps, torch.tensor([1, 2]))
    assert torch.equal(loss, torch.zeros(2))


def test_normal_init_has_the_asked_spread_and_differs_per_image(model):
    params = tiny.invert_params(init="normal", init_std=0.5, num_tokens=200)
    draws = torch.stack([ImageStream(params, i).init((200, 16)) for i in IDS])
    assert abs(draws.std() - 0.5) < 0.02 and not torch.equal(draws[0], draws[1])


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1, max_size=4), st.sampled_from(["uniform", "stratified"]))
def test_timesteps_cover_the_range_evenly(image_id, sampling):
    stream = ImageStream(tiny.invert_params(timestep_sampling=sampling), image_id)
    t = torch.tensor([stream.timestep(v, 1000) for v in range(400)])
    assert t.min() >= 0 and t.max() <= 999
    counts = torch.histc(t.float(), 10, 0, 1000)
    assert (counts - 40).abs().max() <= (4 if sampling == "stratified" else 35)


def test_learning_rate_schedules():
    constant, cosine = tiny.invert_params(), tiny.invert_params(lr_schedule="cosine")
    assert learning_rate(constant, 3) == constant.lr
    assert learning_rate(cosine, 0) == cosine.lr
    assert learning_rate(cosine, 2) == pytest.approx(cosine.lr / 2)


def test_a_curve_has_about_forty_points_however_many_visits():
    for num_visits in (1, 39, 80, 3000, 3001):
        losses = torch.arange(num_visits).float().view(-1, 1).expand(-1, 2)
        ends, means = interval_means(losses)
        interval = num_visits // 40 or 1
        assert len(ends) == num_visits // interval and means.shape == (len(ends), 2)
        assert means[0, 0] == (interval - 1) / 2 and ends[0] == interval


def test_divergence_is_an_error(model):
    with pytest.raises(UserError, match=r"diverged.*lower invert\.lr"):
        learn(model, tiny.invert_params(lr=1e30, num_visits=6))


def test_statistics_over_data_set_and_class_do_not_depend_on_the_parts(model, tmp_path):
    bank = learn(model)
    c = bank.prompt_embeds
    for parts in ([bank], [take(bank, [0]), take(bank, [1, 2, 3])]):
        found = bank_statistics(parts, num_classes=3)
        torch.testing.assert_close(found.mean, c.mean(0))
        torch.testing.assert_close(found.std, c.std(0), rtol=1e-4, atol=1e-6)
        expected = torch.stack([c[:2].mean(0), c[2:].mean(0), torch.zeros_like(c[0])])
        torch.testing.assert_close(found.class_means, expected)
        for kind, visits, loss in (
            ("training", bank.train_visits, bank.train_loss),
            ("heldout", bank.heldout_visits, bank.heldout_loss),
        ):
            curve = [p for p in loss_curves(parts) if p.kind == kind]
            assert [p.step for p in curve] == visits.tolist()
            assert [p.loss for p in curve] == pytest.approx(loss.mean(1).tolist(), abs=1e-6)
    save_statistics(found, tmp_path)
    assert torch.equal(load_statistics(tmp_path).std, found.std)
    assert torch.equal(bank_statistics([take(bank, [0])], 2).std, torch.zeros_like(c[0]))


def test_reader_gives_any_rows_of_any_part(model, tmp_path):
    bank = learn(model)
    save_bank(take(bank, [0, 1, 2]), tmp_path / "part-00000.safetensors")
    save_bank(take(bank, [3]), tmp_path / "part-00001.safetensors")
    reader = BankReader(tmp_path)
    assert reader.ids == bank.ids and torch.equal(reader.labels, bank.labels) and reader.shape == bank.shape
    for rows in ([3, 0, 3, 2], [1], range(4)):
        assert torch.equal(reader.embeds(rows), bank.embeds(rows))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.text(max_size=8), min_size=1, max_size=5, unique=True),
    st.integers(1, 3),
    st.integers(1, 6),
)
def test_bank_round_trip(tmp_path_factory, ids, tokens, width):
    n, folder = len(ids), tmp_path_factory.mktemp("bank")
    bank = EmbeddingBank(
        torch.randn(n, tokens, width),
        torch.arange(n),
        ids,
        torch.arange(3),
        torch.rand(3, n),
        torch.arange(2),
        torch.rand(2, n),
    )
    save_bank(bank, folder / "part-00000.safetensors")
    back = load_bank(folder)
    assert back.ids == ids
    assert torch.equal(back.prompt_embeds, bank.prompt_embeds)
    assert torch.equal(back.heldout_loss, bank.heldout_loss)


def test_float16_storage_takes_half_the_space_and_reads_as_float32(model, tmp_path):
    bank = learn(model, tiny.invert_params(num_tokens=3, num_visits=4))
    wide = torch.randn(4, 3, 500)
    bank = replace(bank, prompt_embeds=wide)
    for name in ("float32", "float16"):
        save_bank(bank.to(getattr(torch, name)), tmp_path / name)
    assert (tmp_path / "float16").stat().st_size < 0.55 * (tmp_path / "float32").stat().st_size
    (tmp_path / "float16").rename(tmp_path / "part-00000.safetensors")
    for read in (load_bank(tmp_path), BankReader(tmp_path)):
        embeds = read.embeds([2, 0])
        assert embeds.dtype == torch.float32
        torch.testing.assert_close(embeds, wide[[2, 0]], rtol=1e-3, atol=1e-6)
    found = bank_statistics([load_bank(tmp_path)], 2)
    assert found.mean.dtype == torch.float32
    torch.testing.assert_close(found.mean, wide.mean(0), rtol=1e-3, atol=1e-3)


def test_equal_banks_have_equal_bytes(model, tmp_path):
    for name in ("a", "b"):
        save_bank(learn(model), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:5], lambda b: b"", lambda b: b"x" * 99])
def test_damaged_part_is_named(model, tmp_path, damage):
    path = tmp_path / "part-00000.safetensors"
    save_bank(learn(model), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"part-00000\.safetensors: .*dvc checkout"):
        load_part(path)
