"""The learner `amst`: which generated images get a label, what each head learns from, and that it learns."""

import numpy as np
import pytest
import tiny
import torch
from pydantic import ValidationError
from test_classify import easy_images, labels_of

from dinv.classify.amst import Amst, AmstParams, by_head, for_heads, heads_loss, pseudo_labels, relabelled
from dinv.classify.base import LabelledImages, TrainingSet
from dinv.classify.store import StoredClassifier, load_classifier, save_classifier
from dinv.errors import UserError

CPU = torch.device("cpu")


def params(**update):
    cnn = tiny.train_params(seeds=[0]).model_dump(exclude={"learner", "pretrained"})
    own = {"learner": "amst", "num_auxiliary_heads": 2, "min_pseudo_confidence": 0.5}
    return AmstParams(**{**cnn, **own, **update})


def generated(n=60, shift=0, seed=2):
    """Images of nine real ones, all of whose own labels are `shift` classes off."""
    images = easy_images(n, seed=seed)
    return LabelledImages(images.images, images.targets.roll(shift, 1), torch.arange(n) % 9)


def fit(*sources, seed=0, **update):
    data = TrainingSet(sources, sources[0])
    fitted = Amst.fit(data, params(**update), seed, CPU, lambda n: None)
    return StoredClassifier("amst", fitted, seed, sum(map(len, sources)))


def test_a_pseudo_label_needs_agreement_and_confidence():
    p = torch.tensor(
        [
            [[0.8, 0.2, 0.0], [0.6, 0.4, 0.0]],  # agree, mean 0.7
            [[0.9, 0.1, 0.0], [0.4, 0.6, 0.0]],  # mean 0.65 of class 0, which one does not name
            [[0.4, 0.3, 0.3], [0.5, 0.3, 0.2]],  # agree, mean 0.45
        ]
    )
    assert pseudo_labels(p, 0.5).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert pseudo_labels(p, 0.45).tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert pseudo_labels(p, 0.71).sum() == 0


def test_the_loss_is_that_of_torch_for_each_head():
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 3, 4, generator=g), torch.randint(4, (6,), generator=g)
    y = torch.nn.functional.one_hot(labels, 4).float()
    real = torch.tensor([1.0, 1, 1, 0, 0, 0])
    weight = torch.tensor([1.0, 1, 1, 0.5, 0, 0.5])
    each = [torch.nn.functional.cross_entropy(logits[:, h], labels, reduction="none") for h in range(3)]
    expected = (weight * each[0]).sum() / 4 + ((real * each[1]).sum() / 3 + (real * each[2]).sum() / 3) / 2
    torch.testing.assert_close(heads_loss(logits, weight[:, None] * y, real[:, None] * y), expected)
    none = torch.zeros(6, 4)
    assert heads_loss(logits, none, none) == 0


def test_auxiliary_heads_learn_from_real_images_and_the_main_one_from_pseudo_labels():
    logits = torch.randn(4, 3, 5, requires_grad=True, generator=torch.Generator().manual_seed(1))
    y = torch.eye(5)[:4]
    is_real = torch.tensor([True, True, False, False])
    heads_loss(logits, y, y * is_real[:, None]).backward()
    moved = logits.grad.abs().sum(2) > 0
    assert moved.tolist() == [[True, True, True]] * 2 + [[True, False, False]] * 2


def test_generated_images_are_relabelled_by_the_auxiliary_heads_and_real_ones_are_not():
    class Knows(torch.nn.Module):
        """Auxiliary heads name the class of an image's brightness; the main one is sure of class 0."""

        def forward(self, images):
            sure = 20 * torch.nn.functional.one_hot((images.float().mean((1, 2, 3)) // 90).long(), 3).float()
            main = torch.tensor([20.0, 0, 0]).expand(len(images), 3)
            return torch.stack([main, sure, sure], 1).flatten(1)

    real, made = for_heads(easy_images(6)), for_heads(generated(6, shift=1))
    images = torch.cat([real.images, made.images])
    main, auxiliary = relabelled(Knows(), images, torch.cat([real.targets, 0.5 * made.targets]), params())
    y = easy_images(6).targets
    assert torch.equal(main, torch.cat([y, 0.5 * y])) and torch.equal(auxiliary, torch.cat([y, 0 * y]))


@pytest.mark.parametrize(
    ("update", "accuracy"),
    [
        ({}, 0.9),
        ({"mixing": "replace"}, 0.9),
        ({"mixup_alpha": 1.0, "mix_partners": "other_kind"}, 0.6),  # a mixture of two classes looks like one
    ],
)
def test_it_learns_from_generated_images_whose_labels_are_wrong(update, accuracy, tmp_path):
    real, made, test = easy_images(9), generated(shift=1), easy_images(seed=1)
    result = fit(real, made, num_steps=60, **update)
    save_classifier(result, tmp_path / "c.safetensors")
    found = load_classifier(tmp_path / "c.safetensors").predict_proba(test.images, CPU)
    assert found.shape == (60, 3) and np.allclose(found.sum(1), 1, atol=1e-5)
    assert (found.argmax(1) == labels_of(test).numpy()).mean() > accuracy
    right = fit(real, generated(shift=0), num_steps=60, **update)
    assert np.array_equal(right.predict_proba(test.images, CPU), found), "their own labels are not looked at"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_weights_learn_in_every_type(dtype, monkeypatch):
    monkeypatch.setattr("dinv.classify.training.computes_bfloat16", lambda device: True)
    few = {"num_steps": 2, "warmup_steps": 0, "weight_decay": 0.0, "dtype": dtype}
    moved, still = (fit(easy_images(9), generated(), **few, lr=lr).fitted.tensors for lr in (0.1, 1e-12))
    weights = [name for name in moved if name.endswith("weight")]
    assert len(weights) >= 4
    assert all((moved[name] - still[name]).abs().max() > 1e-6 for name in weights)


def test_the_main_head_is_the_first_of_equal_parts_of_the_last_layer():
    outputs = torch.arange(12.0).view(1, 12)
    assert by_head(outputs, 3)[0, 0].tolist() == [0, 1, 2, 3] and by_head(outputs, 3).shape == (1, 3, 4)


def test_what_has_no_effect_is_refused_or_no_part_of_the_key():
    with pytest.raises(ValidationError, match="set soft_labels to none"):
        params(soft_labels="teacher")
    with pytest.raises(UserError, match="set real: true in its arm"):
        fit(generated())
    one, other = params(), params(min_pseudo_confidence=0.9)
    assert Amst.settings(one, False, CPU) == Amst.settings(other, False, CPU)
    assert Amst.settings(one, True, CPU) != Amst.settings(other, True, CPU)
