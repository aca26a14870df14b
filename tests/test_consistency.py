"""FixMatch on generated images: the equation, what it does not look at, and that it is off by default."""

import copy

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_classify import CPU, accuracy, easy_images, fit, labels_of, one_hot, weights
from test_config import RAW
from torchvision.transforms import v2

from dinv.classify.amst import Amst
from dinv.classify.augment import weak_views
from dinv.classify.base import LabelledImages
from dinv.classify.cnn import Cnn
from dinv.classify.consistency import UnlabelledViews, consistency_loss, strong_views, unlabelled_views
from dinv.classify.training import train_network
from dinv.errors import UserError
from dinv.params import parse_params
from dinv.rng import derive_seed, generator

ON = {
    "num_steps": 5,
    "real_fraction": 1.0,
    "unlabelled_weight": 1.0,
    "unlabelled_ratio": 2,
    "unlabelled_threshold": 0.4,
}
KEY = "body.0.weight"


def generated(n=60, seed=1):
    images = easy_images(n, seed=seed)
    return LabelledImages(images.images, images.targets, torch.arange(n) % 60)


@given(st.integers(0, 99), st.floats(0, 1))
def test_the_loss_is_the_papers_equation_image_by_image(seed, threshold):
    g = torch.Generator().manual_seed(seed)
    strong, weak = (3 * torch.randn(9, 4, generator=g, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for p, q in zip(strong.softmax(1).tolist(), weak.softmax(1).tolist(), strict=True):
        if max(q) >= threshold:
            total -= float(torch.tensor(p[q.index(max(q))], dtype=torch.float64).log())
    assert consistency_loss(strong, weak, threshold).item() == pytest.approx(total / 9, abs=1e-9)


def test_known_answer_two_sure_images_of_which_one_view_is_right():
    """q = (0.9, 0.1) and (0.4, 0.6) at tau = 0.8: only the first counts, -ln 0.25, and half of it is the mean."""
    weak, strong = (
        torch.tensor([[0.9, 0.1], [0.4, 0.6]]).log(),
        torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log(),
    )
    assert consistency_loss(strong, weak, 0.8).item() == pytest.approx(torch.tensor(4.0).log().item() / 2)
    assert consistency_loss(strong, weak, 0.95).item() == 0


def test_no_gradient_goes_to_the_weak_views():
    strong, weak = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    consistency_loss(strong, weak, 0.0).backward()
    assert weak.grad is None and strong.grad.abs().sum() > 0


class Line(torch.nn.Module):
    """softmax(W x) of the pixels' mean over the image."""

    def __init__(self, w):
        super().__init__()
        self.w = torch.nn.Parameter(w.clone())

    def forward(self, images):
        return images.float().mean((2, 3)) / 255 @ self.w.T


def test_two_steps_on_a_small_network_are_those_of_gradient_descent_by_hand():
    """l_s + lambda_u l_u with the gradients of softmax regression, (p - y) x^T, and without autograd."""
    update = {"random_crop": False, "horizontal_flip": False, "warmup_steps": 0, "dtype": "float32"}
    update |= {"num_steps": 2, "batch_size": 6, "lr": 0.5, "strong_ops": 0, "strong_erasing": 0.5}
    params = tiny.train_params(**{**ON, **update, "unlabelled_weight": 0.7, "unlabelled_threshold": 0.4})
    real, made, w = easy_images(6), generated(12), torch.randn(3, 1, generator=generator(0, "w"))
    network = Line(w)
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    train_network(network, optimizer, [real, made], params, generator(0, "train"), CPU, lambda n: None)

    views = unlabelled_views([real, made], params, 6, generator(0, "train").initial_seed())
    seen = []
    rates = [0.5, 0.5 * (0.001 + 0.999 * 0.5)]
    for rate in rates:  # a batch is all six real images, so their order is nothing
        weak, strong = (v.float().mean((2, 3)) / 255 for v in views.take(CPU))
        x = real.images.float().mean((2, 3)) / 255
        gradient = ((x @ w.T).softmax(1) - real.targets).T @ x / 6
        q, p = (weak @ w.T).softmax(1), (strong @ w.T).softmax(1)
        counts = (q.max(1).values >= 0.4).float()
        seen.append(int(counts.sum()))
        error = (p - F.one_hot(q.argmax(1), 3)) * counts[:, None]
        w = w - rate * (gradient + 0.7 * error.T @ strong / 12)
    assert all(0 < count < 12 for count in seen), "the threshold tells images apart"
    torch.testing.assert_close(network.w.detach(), w, rtol=1e-4, atol=1e-6)


def test_labels_of_generated_images_are_not_looked_at():
    real, made = easy_images(), generated()
    wrong = LabelledImages(made.images, one_hot(torch.zeros(60).long()), torch.full((60,), -1))
    a, b = fit([real, made], **ON), fit([real, wrong], **ON)
    assert all(torch.equal(v, weights(b)[name]) for name, v in weights(a).items())


def test_the_batches_are_those_of_the_real_arm_and_the_rest_is_its_own():
    """With a threshold that none reaches the real images' gradients are left, in batches of both kinds."""
    real, made = easy_images(), generated()
    update = {
        **ON,
        "unlabelled_threshold": 1.0,
        "num_steps": 4,
        "warmup_steps": 1,
        "architecture": "convnet3",
    }
    seen = []

    class Sees(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(3))

        def forward(self, images):
            seen.append(images)
            return images.float().mean((1, 2, 3), keepdim=False)[:, None] * self.w

    def batches(sources, **more):
        seen.clear()
        params = tiny.train_params(**{**update, **more})
        network = Sees()
        g, sgd = generator(5, "train"), torch.optim.SGD(network.parameters(), 0.1)
        torch.manual_seed(0)
        train_network(network, sgd, sources, params, g, CPU, lambda n: None)
        return [images[:8].float() for images in seen]

    with_random = {"rand_augment_ops": 2, "cutmix_alpha": 1.0}
    alone = batches([real], **with_random)
    together = batches([real, made], **with_random)[::2]  # each is followed by a pass of weak views
    assert len(alone) == len(together) == 4
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_views_are_keyed_by_seed_and_step_and_leave_the_global_generator_alone():
    params = tiny.train_params(**ON)
    images = easy_images().images
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (UnlabelledViews(images, params, 4, seed) for seed in (1, 1, 2))
    a = [first.take(CPU) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    b = [again.take(CPU) for _ in range(3)]
    assert all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))
    assert not torch.equal(a[0][0], other.take(CPU)[0]) and a[0][0].shape == (8, 1, 16, 16)


def test_an_epoch_of_unlabelled_images_is_each_of_them_once():
    images = torch.arange(16).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).to(torch.uint8).contiguous()
    off = {"random_crop": False, "horizontal_flip": False, "strong_ops": 0, "strong_erasing": 0.0}
    views = UnlabelledViews(images, tiny.train_params(**ON, **off), 4, 0)
    for _ in range(2):
        pairs = [views.take(CPU) for _ in range(2)]
        weak, strong = (torch.cat([p[i] for p in pairs])[:, 0, 0, 0] for i in (0, 1))
        assert torch.equal(weak, strong) and sorted(weak.tolist()) == list(range(16))


def test_views_are_the_learners_flips_and_torchvisions_augmentation():
    params = tiny.train_params(**ON, vertical_flip=True, quarter_turns=True)
    images = torch.from_numpy(tiny.random_images(5, 16)).permute(0, 3, 1, 2)
    views = UnlabelledViews(images, params, 5, 3)
    weak, strong = views.take(CPU)
    of_rows = generator(3, "rows")
    rows = torch.cat([torch.randperm(5, generator=of_rows) for _ in range(2)])
    g = generator(3, "views", 0)
    assert torch.equal(weak, weak_views(images[rows], params, g))
    expected = weak_views(images[rows], params, g)
    torch.manual_seed(derive_seed(3, "strong", 0))
    for step in (v2.RandAugment(2, 9), v2.RandomErasing(1.0)):
        expected = torch.stack([step(image) for image in expected])
    assert torch.equal(strong, expected) and not torch.equal(strong, weak)
    nothing = tiny.train_params(strong_ops=0, strong_erasing=0.0)
    assert strong_views(images, nothing) is images


def test_it_is_off_by_default_and_on_real_images_alone():
    real, made = easy_images(), generated()
    assert unlabelled_views([real, made], tiny.train_params(), 8, 0) is None
    a, b = fit([real], **ON), fit([real], num_steps=5)
    assert all(torch.equal(v, weights(b)[name]) for name, v in weights(a).items())
    plain, on = (Cnn.settings(tiny.train_params(**u), False, CPU) for u in ({"num_steps": 5}, ON))
    assert plain == on, "an arm of real images is not trained again"
    assert not tiny.train_params(**ON).only_real and tiny.train_params(real_fraction=1.0).only_real


@pytest.mark.parametrize(
    "update",
    [
        {"unlabelled_weight": 0.5},
        {"unlabelled_ratio": 1},
        {"unlabelled_threshold": 0.6},
        {"strong_ops": 1},
        {"strong_magnitude": 20},
        {"strong_erasing": 0.0},
        {"real_fraction": 0.5},
    ],
)
def test_each_parameter_trains_reproducibly_and_is_not_ignored(update):
    sources = [easy_images(), generated()]
    first, again, without = (fit(sources, **{**ON, **u}) for u in (update, update, {}))
    assert torch.equal(weights(first)[KEY], weights(again)[KEY])
    assert not torch.equal(weights(first)[KEY], weights(without)[KEY])


def test_a_seed_does_not_depend_on_those_trained_before():
    sources = [easy_images(), generated()]
    second = [fit(sources, seed=seed, **ON) for seed in (0, 1)][1]
    assert torch.equal(weights(second)[KEY], weights(fit(sources, seed=1, **ON))[KEY])


def test_it_learns_from_images_without_labels_what_few_labels_do_not_say():
    """Three labelled images; the unlabelled ones are brighter, and so are those that it is asked about."""
    few, test = easy_images(3), easy_images(60, seed=7)
    made = LabelledImages(easy_images(60, seed=3).images + 50, one_hot(torch.zeros(60).long()))
    update = {"num_steps": 60, "lr": 0.02, "random_crop": False, "unlabelled_threshold": 0.6}
    update |= {"batch_size": 3, "strong_ops": 0}
    found, without = (fit(s, **{**ON, **update}) for s in ([few, made], [few]))
    scores = [accuracy(f, test.images + 50, labels_of(test)) for f in (found, without)]
    assert scores[0] > 0.9 and scores[1] < 0.8


def test_in_bfloat16_all_weights_learn_about_the_same(monkeypatch):
    sources = [easy_images(), generated()]
    found = []
    for able in (False, True):
        monkeypatch.setattr("dinv.classify.training.computes_bfloat16", lambda device, able=able: able)
        found.append(weights(fit(sources, **{**ON, "dtype": "bfloat16", "num_steps": 3})))
    exact, rounded = found
    for name, value in exact.items():
        if name.startswith("body") and value.ndim > 1:
            assert not torch.equal(value, rounded[name])
            assert torch.corrcoef(torch.stack([value.flatten(), rounded[name].flatten()]))[0, 1] > 0.98


BAD = [
    ("unlabelled_weight", -1.0, r"unlabelled_weight = -1\.0: .*greater than or equal to 0"),
    ("unlabelled_ratio", 0, r"unlabelled_ratio = 0: .*greater than 0"),
    ("unlabelled_threshold", 1.5, r"unlabelled_threshold = 1\.5: .*less than or equal to 1"),
    ("strong_magnitude", 31, r"strong_magnitude = 31: .*less than or equal to 30"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_values(name, value, message):
    raw = copy.deepcopy(RAW)
    raw["train"]["cnn"][name] = value
    with pytest.raises(UserError, match=r"^params\.yaml: train\.cnn\." + message):
        parse_params(raw)


def test_what_has_no_meaning_together_is_refused():
    raw = copy.deepcopy(RAW)
    raw["train"]["cnn"]["unlabelled_weight"] = 1.0
    with pytest.raises(
        UserError,
        match=r"arms\.reconstruction\.real = False: train\.cnn takes generated images without labels",
    ):
        parse_params(raw)
    raw["arms"] = {name: arm for name, arm in raw["arms"].items() if name in ("real", "mixed")}
    del raw["generate"]["reconstruction"]
    assert parse_params(raw).train["cnn"].needs_real_labels
    raw["train"]["cnn"]["choose_real"] = "cross_validation"
    with pytest.raises(
        UserError, match=r"train\.cnn: choose_real leaves generated images out; set it to none"
    ):
        parse_params(raw)


def test_another_learner_that_labels_images_itself_refuses_it():
    plain = tiny.train_params().model_dump(exclude={"pretrained"})
    block = {**plain, "learner": "amst", "num_auxiliary_heads": 2, "min_pseudo_confidence": 0.5}
    assert Amst.Params.model_validate(block).num_auxiliary_heads == 2
    with pytest.raises(
        ValidationError, match="amst labels generated images itself; set unlabelled_weight to 0"
    ):
        Amst.Params.model_validate({**block, "unlabelled_weight": 1.0})
