"""Images made when they are asked for are those that stage generate stores."""

import multiprocessing
import os
import pickle
import shutil
import signal

import numpy as np
import pytest
import random_project
import torch
from torch.utils.data import DataLoader

from dinv.errors import UserError
from dinv.images.image_set import load_image_set
from dinv.on_demand import GeneratedImages
from dinv.on_demand.groups import group_of
from dinv.on_demand.store import PixelStore
from dinv.params import load_params
from dinv.strategies.worker import PART_SIZE


@pytest.fixture
def here(tmp_path, monkeypatch, grey_model_folder):
    """12 images of two classes to be made, in groups of 5."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DINV_SCRATCH", raising=False)
    return random_project.create(tmp_path, grey_model_folder, execution__micro_batch=5)


@pytest.fixture
def stored(here):
    """What stage generate makes of the same."""
    from stages.generate import main

    params = load_params()
    main("inversion", params.model, params.generate, params.execution)
    return load_image_set(here / "data/generated/inversion")


@pytest.fixture
def made(monkeypatch):
    """The groups that are made in this process."""
    groups, make = [], GeneratedImages._make

    def remembered(self, group):
        groups.append(group)
        return make(self, group)

    monkeypatch.setattr(GeneratedImages, "_make", remembered)
    return groups


def assert_same(items, stored, indices):
    assert torch.equal(torch.stack([image for image, _ in items]), stored.take(indices).tensor())
    assert [label for _, label in items] == stored.take(indices).labels.tolist()


@pytest.mark.parametrize(
    ("index", "size", "total", "expected"),
    [
        (0, 5, 12, range(5)),
        (11, 5, 12, range(10, 12)),
        (PART_SIZE - 1, 64, 1000, range(192, 200)),
        (PART_SIZE, 64, 1000, range(200, 264)),
        (3, 1000, 12, range(12)),
        (7, 1, 12, range(7, 8)),
    ],
)
def test_groups_are_the_stage_s_micro_batches(index, size, total, expected):
    assert group_of(index, size, total) == expected


def test_every_image_is_the_stored_one_whatever_is_asked_for_first(stored, made):
    images = GeneratedImages("inversion")
    assert len(images) == 12 == len(stored) and images.class_names == stored.class_names
    assert made == [] and images.labels.tolist() == stored.labels.tolist()
    order = [7, 11, 0, 7, 3, 4, 1]
    assert_same(images.__getitems__(order), stored, order)
    assert made == [range(5, 10), range(10, 12), range(5)]
    assert_same([images[i] for i in range(12)], stored, range(12))
    assert_same([images[-1]], stored, [11])
    assert len(made) == 3, "the rest is read from disk"


def test_another_process_reads_what_one_has_made(stored, made):
    GeneratedImages("inversion").__getitems__(range(12))
    images = GeneratedImages("inversion")
    assert_same(images.__getitems__([2, 9]), stored, [2, 9])
    assert len(made) == 3 and images.model._loaded is None, "the model is not even loaded"


def test_other_parameters_and_other_embeddings_are_other_images(here, made):
    first = GeneratedImages("inversion")[0][0]
    other = GeneratedImages("inversion", noise_std=0.1)[0][0]
    assert not torch.equal(first, other) and len(made) == 2
    assert len(GeneratedImages("inversion", num_images_per_embedding=1000)) == 6000
    assert torch.equal(GeneratedImages("inversion", num_images_per_embedding=1000)[0][0], first)
    assert len(made) == 2, "more variants only append: the group is the same"
    ids = [f"image {i}" for i in range(6)]
    random_project.save_embeddings(here / "data/learned/embeddings", np.arange(6) % 2, ids, seed=1)
    assert not torch.equal(GeneratedImages("inversion")[0][0], first)


def test_a_group_of_one_makes_one(stored, made):
    images = GeneratedImages("inversion", group=1)
    image, label = images[4]
    assert made == [range(4, 5)] and label == stored.labels[4]
    assert np.abs(image.numpy().astype(int) - stored.take([4]).tensor()[0].numpy()).max() <= 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_dataloader_workers_share_the_work(stored, method):
    images = GeneratedImages("inversion", transform=tiny_transform)
    loader = DataLoader(
        images, batch_size=4, num_workers=2, multiprocessing_context=multiprocessing.get_context(method)
    )
    batches = list(loader)
    expected = stored.tensor().float() / 255
    assert torch.allclose(torch.cat([x for x, _ in batches]), expected, atol=1.01 / 255)
    assert torch.cat([y for _, y in batches]).tolist() == stored.labels.tolist()


def tiny_transform(image):
    return image.float() / 255


def test_a_copy_by_pickle_makes_the_same_images(stored):
    images = GeneratedImages("inversion")
    images[0]
    copy = pickle.loads(pickle.dumps(images))
    assert_same([copy[i] for i in range(12)], stored, range(12))


def test_the_cache_stays_within_its_size(tmp_path):
    limit, rng = 2**20, np.random.default_rng(0)
    store = PixelStore(tmp_path, limit)
    for i in range(60):
        store.put({f"{i}/{j}": rng.bytes(3072) for j in range(20)})  # 3.7 MB in all
    assert limit / 4 < store.volume < 1.3 * limit
    assert store.get("0/0") is None and store.get("59/19") is not None


def die_while_writing(folder):
    store = PixelStore(folder, 2**20)
    with store.lock("a"), store._cache.transact():
        store._cache.set("a/0", b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)


def test_whoever_is_killed_while_writing_leaves_no_lock_and_no_half(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    store = PixelStore(tmp_path, 2**20)
    with store.lock("a"):
        assert store.get("a/0") is None
        store.put({"a/0": b"all"})
    assert store.get("a/0") == b"all"


def test_a_cache_that_holds_nothing_changes_no_image(stored, made):
    images = GeneratedImages("inversion", size_limit=1)
    assert_same([images[i] for i in range(6)], stored, range(6))


def test_a_damaged_cache_is_named(here, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/cache.db").write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="broken: no cache can be kept there"):
        GeneratedImages("inversion", cache=tmp_path / "broken")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"block": "inversoin"},
            r"generate\.inversoin: no such block in params\.yaml \(did you mean inversion",
        ),
        ({"noise_sdt": 1.0}, r"generate\.inversion\.noise_sdt: unknown parameter \(did you mean noise_std"),
        ({"noise_std": -1.0}, r"generate\.inversion\.noise_std = -1\.0: "),
        ({"group": 0}, r"group = 0: .* must be >= 1"),
        ({"size_limit": 0}, r"size_limit = 0: "),
        ({"device": "cuda:99"}, r"execution\.device = 'cuda:99': this machine has no such device"),
    ],
)
def test_wrong_arguments_are_one_line(here, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        GeneratedImages(**{"block": "inversion", **arguments})[0]
    assert "\n" not in str(error.value)


def test_an_index_outside_is_an_index_error(here):
    images = GeneratedImages("inversion")
    for index in (12, -13):
        with pytest.raises(IndexError, match="inversion has 12 images"):
            images[index]


def test_without_embeddings_the_remedy_is_named(here):
    shutil.rmtree(here / "data/learned")
    with pytest.raises(UserError, match="no embeddings there; run dvc repro"):
        GeneratedImages("inversion")


def test_a_strategy_without_embeddings_works_too(here):
    images = GeneratedImages("reconstruction")
    assert len(images) == 6 and images[0][0].shape == (1, 16, 16)
