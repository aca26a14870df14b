"""Learners on a frozen CLIP, against transformers' own CLIP and plain numpy; the CLIP is random and tiny."""

import csv
import json
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from pydantic import ValidationError
from ruamel.yaml import YAML
from test_classify import easy_images, labels_of, one_hot
from test_features import save_clip as save_image_encoder
from tiny_methods import save_byte_tokenizer, save_clip
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from dinv.classify.base import LabelledImages, TrainingSet
from dinv.classify.clip_based import ClipNetwork, image_features
from dinv.classify.coop import context_prompts, first_context, learning_rate
from dinv.classify.cross_validation import kept_images, splits
from dinv.classify.registry import LEARNERS
from dinv.classify.store import StoredClassifier, load_classifier, save_classifier
from dinv.classify.tip_adapter import ALPHAS, BETAS, Cache, HeldOut, cache_from, searched
from dinv.classify.views import ViewParams, view_features, view_of
from dinv.errors import UserError
from dinv.execution.params import ExecutionParams
from dinv.features.clip_text import ClipText
from dinv.features.worker import FeatureWorker

CPU = torch.device("cpu")
PATH = "models/pretrained/clip"
NAMES = ["cat", "dog_house", "eel"]
COMMON = {"path": PATH, "class_names": None, "min_confidence": 0.0, "seeds": [0]}
VIEWS = {"num_views": 2, "min_crop_scale": 0.5, "horizontal_flip": True}
STEPS = {
    "num_steps": 6,
    "batch_size": 6,
    "real_fraction": 0.5,
    "mixing": "batch",
    "synthetic_loss_weight": 1.0,
    "weight_decay": 0.0,
}
PROMPTS = {"templates": ["a {class}.", "no {class}"]}
TIP = {**PROMPTS, **VIEWS, "alpha": 1.0, "beta": 5.5, "search": True}
TIP |= {"real_fraction": 0.5, "synthetic_loss_weight": 1.0}
BLOCKS = {
    "zero_shot_clip": PROMPTS,
    "coop": {
        **VIEWS,
        **STEPS,
        "num_context_tokens": 4,
        "context_init": None,
        "class_position": "end",
        "class_specific": False,
        "lr": 0.002,
        "warmup_steps": 1,
        "warmup_lr": 1e-5,
        "momentum": 0.9,
    },
    "tip_adapter": TIP,
    "tip_adapter_f": {**TIP, **STEPS, "lr": 0.001, "adam_eps": 1e-4},
}
EACH = pytest.mark.parametrize("name", sorted(BLOCKS))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a CLIP where DVC watches."""
    root = tmp_path_factory.mktemp("workplace")
    save_clip(root / PATH)
    return root


@pytest.fixture(autouse=True)
def _here(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("DINV_SCRATCH", str(workplace / "scratch"))


def params(name, **update):
    return LEARNERS[name].Params(**{"learner": name, **COMMON, **BLOCKS[name], **update})


def shots(k, seed=0):
    return easy_images(n=3 * k, seed=seed)


def made_from(real, per_image=2):
    """Generated images: noisy copies that know their source."""
    rows = torch.arange(len(real)).repeat(per_image)
    noise = torch.randint(0, 9, real.images[rows].shape, generator=torch.Generator().manual_seed(5))
    return LabelledImages((real.images[rows] + noise).to(torch.uint8), real.targets[rows], rows)


def fit(name, *sources, seed=0, names=NAMES, real=None, **update):
    data = TrainingSet(sources, real or sources[0], names)
    learner = LEARNERS[name]
    fitted = learner.fit(data, params(name, **update), seed, CPU, lambda n: None)
    return StoredClassifier(name, fitted, seed, sum(map(len, sources)))


def probabilities(classifier, images):
    return classifier.predict_proba(images, CPU)


def shuffled(images):
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    return LabelledImages(images.images[rows], images.targets[rows])


def theirs(texts, images):
    """transformers' own CLIP: logits float [N, M]."""
    tokens = CLIPTokenizer.from_pretrained(PATH)(texts, padding=True, return_tensors="pt")
    rgb = list(images.expand(-1, 3, -1, -1))
    pixels = CLIPImageProcessor.from_pretrained(PATH)(rgb, return_tensors="pt")
    with torch.no_grad():
        return CLIPModel.from_pretrained(PATH)(**tokens, **pixels)


def test_zero_shot_probabilities_are_clips_own():
    test = shots(3)
    found = probabilities(fit("zero_shot_clip", shots(1), templates=["a photo of a {class}."]), test.images)
    texts = ["a photo of a cat.", "a photo of a dog house.", "a photo of a eel."]
    assert np.allclose(found, theirs(texts, test.images).logits_per_image.softmax(1), atol=1e-5)


def test_several_templates_are_the_mean_of_features_of_length_one():
    first, second = (theirs([t.format(n) for n in ("cat", "dog house", "eel")], shots(1).images).text_embeds
                     for t in ("a {}.", "no {}"))  # fmt: skip
    mean = (first + second).numpy() / 2
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    found = fit("zero_shot_clip", shots(1)).fitted.tensors["weights"]
    assert np.allclose(found, expected, atol=1e-5)


def test_classes_may_have_other_names_in_texts():
    plain = fit("zero_shot_clip", shots(1), names=["cat", "ox", "eel"]).fitted.tensors["weights"]
    renamed = fit("zero_shot_clip", shots(1), class_names={"dog_house": "ox"}).fitted.tensors["weights"]
    assert torch.allclose(plain, renamed, atol=1e-6)
    assert not torch.allclose(plain, fit("zero_shot_clip", shots(1)).fitted.tensors["weights"], atol=1e-3)
    with pytest.raises(UserError, match=r"class_names: 'dog house' is no class \(did you mean dog_house\?\)"):
        fit("zero_shot_clip", shots(1), class_names={"dog house": "ox"})


@EACH
@pytest.mark.parametrize("k", [1, 4])
def test_every_arm_trains_every_learner_and_files_keep_it(name, k, tmp_path):
    """On real images, generated ones and both; predictions are probabilities and depend on no batch."""
    real = shots(k)
    made, test = made_from(real), shots(2, seed=9)
    for sources in ([real], [made], [real, made]) if k == 1 else ([real, made],):
        classifier = fit(name, *sources, real=real)
        found = probabilities(classifier, test.images)
        assert found.shape == (6, 3) and np.allclose(found.sum(1), 1, atol=1e-5)
        save_classifier(classifier, tmp_path / "c.safetensors")
        loaded = load_classifier(tmp_path / "c.safetensors")
        assert np.array_equal(probabilities(loaded, test.images), found)
        alone = np.concatenate([probabilities(loaded, image[None]) for image in test.images[:2]])
        assert np.allclose(alone, found[:2], atol=1e-5)


@EACH
def test_a_seed_decides_and_the_order_of_images_does_not(name):
    """Trained ones draw batches by row, so for them only the seed is looked at."""
    train, test = shots(3), shots(2, seed=9).images
    first = fit(name, train)
    again = fit(name, train)
    assert all(torch.equal(t, again.fitted.tensors[k]) for k, t in first.fitted.tensors.items())
    if name in ("zero_shot_clip", "tip_adapter"):
        other = fit(name, shuffled(train))
        assert np.allclose(probabilities(other, test), probabilities(first, test), atol=1e-5)
    if name != "zero_shot_clip":
        assert not np.array_equal(probabilities(fit(name, train, seed=1), test), probabilities(first, test))


@EACH
def test_features_are_computed_once_and_another_clip_is_noticed(name, monkeypatch, tmp_path):
    test = shots(2, seed=9).images
    classifier = fit(name, shots(2))
    before = probabilities(classifier, test)
    monkeypatch.setattr(FeatureWorker, "compute", mock.Mock(side_effect=AssertionError("computed again")))
    assert np.array_equal(probabilities(fit(name, shots(2)), test), before)
    (tmp_path / "models/pretrained").mkdir(parents=True)
    clip = save_clip(tmp_path / PATH)
    (clip / "merges.txt").write_text("#version: 0.2\na b\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"path = 'models/pretrained/clip': not the CLIP of this classifier"):
        probabilities(classifier, test)


def numpy_tip(f, keys, values, text, scale, alpha, beta):
    """The equation of the paper, entry by entry."""
    logits = np.zeros((len(f), text.shape[0]))
    for i, query in enumerate(f):
        for c in range(text.shape[0]):
            logits[i, c] = scale * np.dot(query, text[c])
            for key, value in zip(keys, values, strict=True):
                logits[i, c] += alpha * math.exp(-beta * (1 - np.dot(query, key))) * value[c]
    return logits


def test_tip_adapter_is_the_papers_equation():
    train, test = shots(2), shots(3, seed=9)
    classifier = fit("tip_adapter", train, search=False, alpha=2.5, beta=3.0)
    network = ClipNetwork.of(PATH)
    views = view_features(train.images, network, params("tip_adapter"), 0, CPU).double().numpy()
    keys = views.mean(1) / np.linalg.norm(views.mean(1), axis=1, keepdims=True)
    zero_shot = fit("zero_shot_clip", train).fitted.tensors
    f = theirs(["a"], test.images).image_embeds.double().numpy()
    logits = numpy_tip(f, keys, train.targets.numpy(), zero_shot["weights"].numpy(),
                       zero_shot["scale"].item(), 2.5, 3.0)  # fmt: skip
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.allclose(probabilities(classifier, test.images), expected, atol=1e-5)


def test_without_a_cache_tip_adapter_is_zero_shot():
    test = shots(3).images
    without = fit("tip_adapter", shots(2), search=False, alpha=0.0)
    assert np.allclose(
        probabilities(without, test), probabilities(fit("zero_shot_clip", shots(1)), test), atol=1e-6
    )


def test_weights_of_mixed_images_are_in_the_values():
    real = shots(2)
    made = made_from(real)
    values = fit("tip_adapter", real, made, real_fraction=0.75, search=False).fitted.tensors["values"]
    assert values.sum().item() == pytest.approx(18) and values[:6].sum().item() == pytest.approx(0.75 * 18)


def random_held_out(seed, n=7, num_keys=5):
    g = torch.Generator().manual_seed(seed)
    f, keys, text = (torch.nn.functional.normalize(torch.randn(m, 4, generator=g)) for m in (n, num_keys, 3))
    values = one_hot(torch.arange(num_keys) % 3)
    return HeldOut(Cache(text, 3.0, keys, values, 1.0, 1.0), f, torch.randint(3, (n,), generator=g))


def test_alpha_and_beta_are_those_of_a_plain_search():
    held_out = [random_held_out(0), random_held_out(1, n=4)]
    best = None
    for alpha in ALPHAS:
        for beta in BETAS[::40]:
            right, likelihood = 0, 0.0
            for one in held_out:
                c = one.cache
                votes = np.exp(-beta * (1 - one.features.numpy() @ c.keys.numpy().T)) @ c.values.numpy()
                logits = c.scale * one.features.numpy() @ c.weights.numpy().T + alpha * votes
                right += (logits.argmax(1) == one.labels.numpy()).sum()
                p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                likelihood += np.log(p[np.arange(len(p)), one.labels.numpy()]).sum()
            if best is None or (right, likelihood) > best[0]:
                best = (right, likelihood), (alpha, beta)
    with mock.patch("dinv.classify.tip_adapter.BETAS", BETAS[::40]):
        assert searched(held_out) == pytest.approx(best[1])


def test_the_search_trusts_a_cache_that_knows_better():
    """Text that is always wrong, keys that are the images themselves: a large alpha."""
    f = torch.eye(3)
    wrong = torch.roll(f, 1, 0)
    cache = Cache(wrong, 2.0, f, one_hot(torch.arange(3)), 1.0, 1.0)
    alpha, _ = searched([HeldOut(cache, f, torch.arange(3))])
    assert alpha > 2
    right = Cache(f, 2.0, wrong, one_hot(torch.arange(3)), 1.0, 1.0)
    assert searched([HeldOut(right, f, torch.arange(3))])[0] == ALPHAS[0]


def test_one_image_of_each_class_leaves_alpha_and_beta(capsys):
    tensors = fit("tip_adapter", shots(1), alpha=2.0, beta=3.0).fitted.tensors
    assert (tensors["alpha"], tensors["beta"]) == (2, 3)
    assert "alpha = 2.0 and beta = 3.0 are not searched for" in capsys.readouterr().out


def test_tip_adapter_f_trains_keys_and_nothing_else():
    train = shots(4)
    plain = fit("tip_adapter", train, search=False).fitted.tensors
    stored = fit("tip_adapter_f", train, search=False, num_steps=40, lr=0.01)
    trained = stored.fitted.tensors
    assert not torch.equal(plain["keys"], trained["keys"])
    for name in ("weights", "values", "scale", "alpha", "beta"):
        assert torch.equal(plain[name], trained[name])
    assert stored.curve[-1][1] < stored.curve[0][1]
    f = image_features(train.images, ClipNetwork.of(PATH), CPU)
    loss = [
        torch.nn.functional.cross_entropy(cache_from(t).logits(f), labels_of(train)) for t in (plain, trained)
    ]
    assert loss[1] < loss[0]


def test_held_out_images_take_their_generated_ones_along():
    real = shots(3)
    made = made_from(real)
    data = TrainingSet([real, made], real)
    found = splits(data)
    assert sorted(torch.cat([s.scored for s in found]).tolist()) == list(range(9)), "each once"
    for split in found:
        assert set(split.kept[0].tolist()) | set(split.scored.tolist()) == set(range(9))
        sources = set(made.origins[split.kept[1]].tolist())
        assert sources == set(split.kept[0].tolist())
        assert len(labels_of(real)[split.kept[0]].unique()) == 3, "no class is without images"
        kept = kept_images(data, split)
        assert torch.equal(
            kept.sources[0].images[kept.sources[1].origins], real.images[made.origins[split.kept[1]]]
        )
    alone = splits(TrainingSet([made], real))
    for split in alone:
        assert not set(made.origins[split.kept[0]].tolist()) & set(made.origins[split.scored].tolist())
    assert splits(TrainingSet([shots(1)], shots(1))) == []


def test_nothing_is_learned_from_images_that_a_held_out_one_was_mixed_into():
    real = shots(4)
    made = made_from(real)
    labels = labels_of(real)
    same = [torch.nonzero(labels == labels[row]).flatten().tolist() for row in made.origins.tolist()]
    others = [
        [m for m in members if m != row] for members, row in zip(same, made.origins.tolist(), strict=True)
    ]
    partners = torch.tensor([members[i % 3] for i, members in enumerate(others)])
    partners[0] = -1
    data = TrainingSet([real, replace(made, partners=partners)], real)
    for split in splits(data):
        held_out = set(split.scored.tolist())
        touched = [{o, p} & held_out for o, p in zip(made.origins.tolist(), partners.tolist(), strict=True)]
        assert split.kept[1].tolist() == [row for row, found in enumerate(touched) if not found]
        kept = kept_images(data, split)
        mixed = kept.sources[1].partners >= 0
        assert torch.equal(
            kept.sources[0].images[kept.sources[1].partners[mixed]],
            real.images[partners[split.kept[1]][mixed]],
        )


def test_of_pairs_that_were_mixed_with_each_other_none_is_held_out():
    """Else nothing generated would be left to learn from."""
    real = shots(2)
    made = made_from(real)
    labels, rows = labels_of(real), made.origins.tolist()
    other = [next(i for i in range(6) if labels[i] == labels[row] and i != row) for row in rows]
    data = TrainingSet([real, replace(made, partners=torch.tensor(other))], real)
    assert splits(data) == [] and len(splits(TrainingSet([real], real))) == 2


def test_divisions_are_those_of_images_in_any_order():
    real = shots(4)
    other = shuffled(real)
    sets = [
        sorted(
            sorted(images.images[s.scored].double().mean((1, 2, 3)).tolist())
            for s in splits(TrainingSet([images], images))
        )
        for images in (real, other)
    ]
    assert sets[0] == sets[1]


def text():
    return ClipText(ClipNetwork.of(PATH).location, CPU)


@pytest.mark.parametrize(("position", "words"), [("end", "ab{}."), ("middle", "a{}b."), ("front", "{}ab.")])
@pytest.mark.parametrize("class_specific", [False, True])
def test_a_context_of_words_is_a_prompt_with_these_words(position, words, class_specific):
    """So before any step CoOp is zero-shot; transformers' own embeddings of ids say where each token stands."""
    clip = text()
    made = context_prompts(clip, ["cat", "dog_house"], 2, position)
    tokens = [clip.tokens("a"), clip.tokens("b")]
    context = clip.vectors_of(torch.tensor([t[0] for t in tokens]))
    if class_specific:
        context = context.expand(2, -1, -1)
    pieces = {"a": tokens[0], "b": tokens[1], ".": clip.tokens(".")}
    ids = []
    for name in ("cat", "dog house"):
        before, after = words.split("{}")
        row = (
            [t for c in before for t in pieces[c]] + clip.tokens(name) + [t for c in after for t in pieces[c]]
        )
        ids.append([clip._tokenizer.bos_token_id, *row, clip._tokenizer.eos_token_id])
    model = CLIPModel.from_pretrained(PATH)
    expected = [model.get_text_features(torch.tensor([row])).pooler_output[0] for row in ids]
    found = made.features(context)
    assert torch.allclose(found, torch.nn.functional.normalize(torch.stack(expected)), atol=1e-5)


def test_coop_that_does_not_move_is_zero_shot():
    test = shots(3).images
    still = fit(
        "coop", shots(2), context_init="a photo of a", num_context_tokens=9, lr=1e-12, warmup_lr=1e-12
    )
    expected = fit("zero_shot_clip", shots(1), templates=["a photo of a {class}."])
    assert len(text().tokens("a photo of a")) == 9
    assert np.allclose(probabilities(still, test), probabilities(expected, test), atol=1e-4)


def test_coops_gradient_touches_the_context_only():
    clip = text()
    before = {k: v.clone() for k, v in clip._model.state_dict().items()}
    prompts = context_prompts(clip, NAMES, 3, "middle")
    context = first_context(clip, params("coop", num_context_tokens=3, class_specific=True), 3, 0)
    context.requires_grad_()
    prompts.features(context)[0, 0].backward()
    assert (context.grad[0] != 0).any(1).all() and (context.grad[1:] == 0).all()
    assert all(p.grad is None for p in clip._model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in clip._model.state_dict().items())


def test_coop_learns():
    """Its loss falls, and its context moves away from where it began."""
    stored = fit("coop", shots(4), num_steps=60, lr=0.5, warmup_steps=0)
    assert stored.curve[-1][1] < stored.curve[0][1]
    start = first_context(text(), params("coop"), 3, 0)
    assert start.std().item() == pytest.approx(0.02, rel=0.3)
    assert not torch.allclose(stored.fitted.tensors["context"], start, atol=1e-3)


def test_the_learning_rate_warms_up_at_a_constant():
    p = params("coop", num_steps=100, warmup_steps=10)
    assert learning_rate(p, 9) == 1e-5
    assert learning_rate(p, 50) == pytest.approx(0.001) and learning_rate(p, 99) < 1e-5


def test_views_follow_from_pixels_and_seed():
    images = shots(2).images
    settings = ViewParams(**VIEWS)
    found = view_of(images, settings, 0, 0)
    assert torch.equal(view_of(images.flip(0), settings, 0, 0), found.flip(0))
    for other in (view_of(images, settings, 1, 0), view_of(images, settings, 0, 1)):
        assert not torch.equal(other, found) and other.shape == images.shape
    whole = ViewParams(num_views=1, min_crop_scale=1.0, horizontal_flip=False)
    assert (view_of(images, whole, 0, 0).float() - images).abs().mean() < 3 * images.float().std()


@EACH
@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"path": "models/pretrained/gone"}, r"path = 'models/pretrained/gone': no such CLIP"),
        ({"path": "models/pretrained/eyes"}, r"not a CLIP model with both encoders"),
        (
            {"class_names": {"cat": "c" * 50}},
            r"tokens .*this CLIP reads 40.* shorter",
        ),
    ],
)
def test_a_clip_that_does_not_fit_is_refused_in_one_line(name, update, message, workplace):
    if not (workplace / "models/pretrained/eyes").exists():
        save_image_encoder(workplace / "models/pretrained/eyes")
        save_byte_tokenizer(workplace / "models/pretrained/eyes/more")
        for file in (workplace / "models/pretrained/eyes/more").iterdir():
            file.rename(workplace / "models/pretrained/eyes" / file.name)
    with pytest.raises(UserError, match=message) as error:
        fit(name, shots(1), **update)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "update", "message"),
    [
        ("zero_shot_clip", {"templates": ["a photo"]}, "has no {class}"),
        ("zero_shot_clip", {"templates": []}, "at least 1"),
        ("zero_shot_clip", {"path": "elsewhere/clip"}, "DVC would not see when it changes"),
        ("coop", {"warmup_steps": 6}, r"warmup_steps must be below num_steps \(6\)"),
        ("coop", {"class_position": "last"}, "'end', 'middle' or 'front'"),
        ("coop", {"num_context_tokens": 0}, "greater than 0"),
        ("tip_adapter", {"alpha": -1.0}, "greater than or equal to 0"),
        ("tip_adapter", {"min_crop_scale": 0.0}, "greater than 0"),
        ("tip_adapter_f", {"adam_eps": 0.0}, "greater than 0"),
    ],
)
def test_parameters_are_checked(name, update, message):
    with pytest.raises(ValidationError, match=message):
        params(name, **update)


def test_a_context_that_is_too_long_is_refused_with_the_number_that_fits(workplace):
    path = "models/pretrained/short/clip"
    save_clip(workplace / path, length=16)
    short = {"dog_house": "dog"}  # a token per letter: 16 less start, end, three letters and a full stop
    with pytest.raises(UserError, match=r"num_context_tokens = 16: this CLIP reads 16 .* set it to 10 or"):
        fit("coop", shots(1), path=path, class_names=short, num_context_tokens=16)
    with pytest.raises(UserError, match="set it to 10 or"):
        fit("coop", shots(1), path=path, class_names=short, num_context_tokens=11)
    assert fit("coop", shots(1), path=path, class_names=short, num_context_tokens=10)
    with pytest.raises(UserError, match=r"class 'dog_house', start and end leave room for 5; set it to 5"):
        fit("coop", shots(1), path=path, num_context_tokens=16)
    with pytest.raises(UserError, match=r"'abcdefghijklm': 14 tokens leave no room .* class_names"):
        fit("coop", shots(1), path=path, class_names={"dog_house": "abcdefghijklm"})


def test_a_context_of_other_length_than_its_words_is_refused():
    with pytest.raises(
        UserError, match=r"context_init = 'a photo': 6 tokens; set num_context_tokens to that"
    ):
        fit("coop", shots(1), context_init="a photo")


def test_what_decides_the_result_is_in_the_settings():
    def of(name, mixes=False, **update):
        return LEARNERS[name].settings(params(name, **update), mixes, CPU)

    for name in BLOCKS:
        assert of(name) == of(name, seeds=[7]) != of(name, class_names={"cat": "ox"})
    for name in ("coop", "tip_adapter", "tip_adapter_f"):
        assert of(name) == of(name, real_fraction=0.25) and of(name, num_views=3) != of(name)
        assert of(name, mixes=True) != of(name, mixes=True, real_fraction=0.25)


def test_classes_names_are_part_of_a_classifiers_key(tmp_path, monkeypatch):
    """Of learners that read them: others keep what they have when a class is renamed."""
    from dinv.classify import run
    from dinv.classify.arms import Arm
    from dinv.images.image_set import ImageSet, ImageSetReader, save_image_set

    keys = {}

    def planned(name, seeds, key, num_units):
        keys[name] = json.dumps(key)
        return seed_plan(name, seeds, key, num_units)

    seed_plan = run.seed_plan
    monkeypatch.setattr(run, "seed_plan", planned)
    monkeypatch.setattr(run, "run_parts", lambda *a: None)
    arm = Arm(images="data/real/train", real=False, learner="x")
    for names in (NAMES, ["cat", "ox", "eel"]):
        folder = tmp_path / names[1]
        save_image_set(ImageSet(tiny.random_images(3), np.arange(3), list("abc"), names), folder)
        for block in (params("zero_shot_clip"), tiny.train_params()):
            trainer = run.Trainer(block, ExecutionParams.here(), CPU, "code")
            vars(trainer)["real"] = ImageSetReader(folder).mapped()
            trainer.train(f"{block.learner} {names[1]}", arm, tmp_path / "out")
    assert keys["zero_shot_clip dog_house, classifier"] != keys["zero_shot_clip ox, classifier"]
    assert keys["cnn dog_house, classifier"] == keys["cnn ox, classifier"]


@pytest.mark.slow
def test_the_pipeline_trains_and_evaluates_them(finished, tmp_path):
    """On real images, on generated ones and on both, at three images of each class, from files that DVC watches."""
    project = finished.copy(tmp_path / "copy")
    save_clip(project.root / PATH)
    yaml, path = YAML(), project.root / "params.yaml"
    document = yaml.load(path.read_text())
    del document["arms"]["reconstruction"], document["generate"]["reconstruction"]
    for name, block in BLOCKS.items():
        document["train"][name] = {"learner": name, **COMMON, **block}
        for arm, (images, real) in {
            "real": ("data/real/train", False),
            "both": ("data/generated/inversion", True),
        }.items():
            document["arms"][f"{name}_{arm}"] = {"images": images, "real": real, "learner": name}
    with path.open("w") as file:
        yaml.dump(document, file)
    for name in BLOCKS:
        for arm in ("real", "both"):
            project.stage("train", f"{name}_{arm}", ok=True)
    again = project.stage("train", "coop_both", ok=True)
    assert "1 of 1 parts are already finished" in again.stdout + again.stderr
    project.stage("evaluate", ok=True)
    rows = list(csv.DictReader((project.root / "metrics/accuracy.csv").open()))
    assert {f"{name}_{arm}" for name in BLOCKS for arm in ("real", "both")} <= {row["arm"] for row in rows}
