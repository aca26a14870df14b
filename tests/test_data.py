"""Image sets, sources, splits and resizing."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dinv.errors import UserError
from dinv.images.grid import labelled_grid
from dinv.images.image_set import ImageSet, ImageSetReader, load_image_set, save_image_set
from dinv.images.resize import convert_batch, to_square
from dinv.images.split import keyed_order, split_off_test, split_train_val
from dinv.sources.idx import read_idx
from dinv.sources.params import DataParams
from dinv.sources.task import load_task

CLASSES = ["cat", "dog"]


def make_set(n=5, side=8, channels=3, ids=None):
    labels = np.arange(n, dtype=np.int64) % 2
    provenance = {"source_id": [f"s{i}" for i in range(n)], "noise_std": [0.5] * n}
    return ImageSet(
        tiny.random_images(n, side, channels), labels, ids or [f"i{i}" for i in range(n)], CLASSES, provenance
    )


def folder_params(root, **update):
    values = {
        "source": "image_folder",
        "root": str(root),
        "resolution": 16,
        "resize": "center_crop",
        "mode": "RGB",
        "num_per_class": None,
        "num_val_per_class": 0,
        "num_test": None,
        "seed": 0,
    }
    return DataParams(**{**values, **update})


def fill_folder(root, per_class=6, classes=CLASSES):
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(tiny.random_images(1, 20, seed=100 * k + i)[0]).save(root / name / f"{i}.png")
    return root


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 7), st.sampled_from([1, 3]), st.data())
def test_image_set_round_trip(tmp_path_factory, n, channels, data):
    ids = data.draw(st.lists(st.text(), min_size=n, max_size=n, unique=True))
    folder = tmp_path_factory.mktemp("set")
    images = make_set(n, 8, channels, ids)
    save_image_set(images, folder)
    back = load_image_set(folder)
    assert np.array_equal(back.images, images.images) and np.array_equal(back.labels, images.labels)
    assert back.ids == ids and back.class_names == CLASSES
    assert n == 0 or back.provenance == images.provenance


def test_large_sets_are_split_into_files_of_a_thousand(tmp_path):
    save_image_set(make_set(2300, 8, 1), tmp_path)
    assert [pq.read_table(p).num_rows for p in sorted(tmp_path.iterdir())] == [1000, 1000, 300]
    assert load_image_set(tmp_path).ids == [f"i{i}" for i in range(2300)]


def test_equal_sets_have_equal_bytes(tmp_path):
    for name in ("a", "b"):
        save_image_set(make_set(), tmp_path / name)
    assert (tmp_path / "a/part-00000.parquet").read_bytes() == (
        tmp_path / "b/part-00000.parquet"
    ).read_bytes()


def test_pyarrow_and_pillow_read_it_without_dinv(tmp_path):
    images = make_set()
    save_image_set(images, tmp_path)
    table = pq.read_table(tmp_path / "part-00000.parquet")
    picture = Image.open(io.BytesIO(table["image"][2].as_py()["bytes"]))
    assert np.array_equal(np.asarray(picture), images.images[2])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"] == {"names": CLASSES, "_type": "ClassLabel"}
    assert features["image"] == {"_type": "Image"}


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b"", lambda b: b[:200] + b"\0\0\0\0" * 20 + b[280:]]
)
def test_damaged_image_set_is_named(tmp_path, damage):
    save_image_set(make_set(), tmp_path)
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"part-00000\.parquet: .*dvc checkout"):
        load_image_set(tmp_path)


def test_missing_part_is_noticed(tmp_path):
    save_image_set(make_set(2300, 8, 1), tmp_path)
    (tmp_path / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match="not numbered"):
        load_image_set(tmp_path)
    with pytest.raises(UserError, match="no image set there"):
        load_image_set(tmp_path / "absent")


@pytest.mark.parametrize("policy", ["center_crop", "squash", "pad"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_policy_gives_the_asked_square(policy, mode):
    picture = Image.fromarray(tiny.random_images(1, 12)[0][:, :10])
    out = to_square(picture, 16, policy, mode)
    assert out.shape == (16, 16, 1 if mode == "L" else 3) and out.dtype == np.uint8


def test_pad_copies_pixels_and_refuses_larger_images():
    pixels = tiny.random_images(1, 12, 1)[0]
    out = to_square(Image.fromarray(pixels[..., 0]), 16, "pad", "L")
    assert np.array_equal(out[2:14, 2:14], pixels) and out.sum() == pixels.sum()
    with pytest.raises(UserError, match=r"12x12 is larger than data\.resolution 8"):
        to_square(Image.fromarray(pixels[..., 0]), 8, "pad", "L")


def test_exif_rotation_is_applied():
    picture = Image.fromarray(np.vstack([np.full((4, 8, 3), 255, np.uint8), np.zeros((4, 8, 3), np.uint8)]))
    exif = picture.getexif()
    exif[0x0112] = 3  # rotated by 180 degrees
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    out = to_square(Image.open(buffer), 8, "center_crop", "RGB")
    assert out[:4].max() == 0 and out[4:].min() == 255


def test_convert_batch_scales_and_changes_channels():
    images = tiny.random_images(2, 16, 1)
    assert convert_batch(images, 16, 1) is images
    colour = convert_batch(images, 16, 3)
    assert np.array_equal(colour[..., 1], images[..., 0])
    assert convert_batch(images, 32, 1).shape == (2, 32, 32, 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 9))
def test_splits_are_stratified_disjoint_and_nested(k, v, seed):
    labels, ids = np.repeat(np.arange(2), [9, 12]), [f"i{i}" for i in range(21)]
    train, val = split_train_val(labels, ids, CLASSES, k, v, seed)
    more, val_of_more = split_train_val(labels, ids, CLASSES, k + 1, v, seed)
    assert np.bincount(labels[train], minlength=2).tolist() == [k, k]
    assert np.bincount(labels[val], minlength=2).tolist() == [v, v]
    assert not set(train) & set(val) and more[: len(train)] == train and val == val_of_more


def test_all_remaining_images_are_taken_for_null():
    labels, ids = np.repeat(np.arange(2), [9, 12]), [f"i{i}" for i in range(21)]
    train, val = split_train_val(labels, ids, CLASSES, None, 2, 0)
    assert len(train) == 7 + 10 and len(val) == 4


def test_a_fifth_of_every_class_is_set_aside_for_test():
    labels, ids = np.repeat(np.arange(2), [10, 3]), [f"i{i}" for i in range(13)]
    rest, test = split_off_test(labels, ids, CLASSES, 0)
    assert sorted(rest + test) == list(range(13))
    assert np.bincount(labels[test]).tolist() == [2, 1]


@given(st.sets(st.text(min_size=1), min_size=2, max_size=12), st.integers(0, 5))
def test_adding_images_moves_no_other(ids, seed):
    ids = sorted(ids)
    every = [ids[i] for i in keyed_order(ids, seed, "split")]
    fewer = [ids[1:][i] for i in keyed_order(ids[1:], seed, "split")]
    assert fewer == [i for i in every if i != ids[0]]


def test_flat_folder_becomes_a_task(tmp_path):
    task = load_task(folder_params(fill_folder(tmp_path / "mine", 10), num_val_per_class=2))
    assert (len(task.train), len(task.val), len(task.test)) == (12, 4, 4)
    assert task.train.class_names == CLASSES
    assert len({*task.train.raw.ids, *task.val.raw.ids, *task.test.raw.ids}) == 20
    assert task.train.raw.ids[0].startswith("cat/")


def test_split_folder_keeps_its_splits(tmp_path):
    for split in ("train", "val", "test"):
        fill_folder(tmp_path / split, 3)
    task = load_task(folder_params(tmp_path, num_per_class=2, num_test=4))
    assert (len(task.train), len(task.val), len(task.test)) == (4, 6, 4)
    assert all(i.startswith("test/") for i in task.test.raw.ids)


def test_bundled_sample_is_the_published_data():
    images = read_idx(tiny.ROOT / "data/bundled/fashion-mnist/train-images-idx3-ubyte.gz")
    labels = read_idx(tiny.ROOT / "data/bundled/fashion-mnist/train-labels-idx1-ubyte.gz")
    assert images.shape == (5000, 28, 28) and labels[:5].tolist() == [9, 0, 0, 3, 0]


def test_default_task_is_balanced_and_keeps_test_apart():
    task = load_task(tiny.PARAMS.data.model_copy(update={"num_test": 50, "num_per_class": 3}))
    assert np.bincount(task.train.raw.labels).tolist() == [3] * 10
    assert task.train.load().images.shape == (30, 32, 32, 1) and len(task.test) == 50
    assert all(i.startswith("t10k/") for i in task.test.raw.ids)
    assert all(i.startswith("train/") for i in (*task.train.raw.ids, *task.val.raw.ids))


def broken(kind):
    def write(root):
        path = root / "cat" / "bad.png"
        if kind == "zero bytes":
            path.write_bytes(b"")
        elif kind == "truncated":
            whole = (root / "cat" / "0.png").read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
        elif kind == "text":
            path.write_text("not an image")
        elif kind == "16 bit":
            Image.fromarray(np.full((20, 20), 9000, np.uint16)).save(path)
        elif kind == "animated":
            frames = [Image.fromarray(f) for f in tiny.random_images(2, 20)]
            frames[0].save(path, save_all=True, append_images=frames[1:])
        else:
            (root / "cat" / "notes.txt").write_text("hello")

    return write


@pytest.mark.parametrize("n", [1, 99, 101, 1001, 2100])
def test_reader_gives_any_rows_of_any_file_and_row_group(tmp_path, n):
    images = make_set(n, channels=1)
    save_image_set(images, tmp_path)
    reader = ImageSetReader(tmp_path)
    assert len(reader) == n and reader.ids == images.ids and reader.shape == (8, 8, 1)
    assert reader.class_names == CLASSES and np.array_equal(reader.labels, images.labels)
    for rows in ([n - 1, 0], range(n // 2, n), [n // 2] * 2):
        taken, expected = reader.take(rows), images.take(rows)
        assert np.array_equal(taken.images, expected.images) and taken.ids == expected.ids
        assert taken.provenance == expected.provenance


@pytest.mark.parametrize("kind", ["zero bytes", "truncated", "text", "16 bit", "animated", "other file"])
def test_bad_files_are_named_never_skipped(tmp_path, kind):
    broken(kind)(fill_folder(tmp_path / "mine"))
    with pytest.raises(UserError, match=r"cat/(bad\.png|notes\.txt): ") as error:
        for split in vars(load_task(folder_params(tmp_path / "mine"))).values():
            split.load()
    assert "\n" not in str(error.value)


def test_empty_class_and_single_class_are_refused(tmp_path):
    root = fill_folder(tmp_path / "mine")
    (root / "emu").mkdir()
    with pytest.raises(UserError, match="emu: no images"):
        load_task(folder_params(root))
    with pytest.raises(UserError, match="found 1 class folders"):
        load_task(folder_params(fill_folder(tmp_path / "one", classes=["cat"])))


def test_too_few_images_names_the_class(tmp_path):
    with pytest.raises(UserError, match=r"class 'cat' has 4 images for data\.num_per_class = 9"):
        load_task(folder_params(fill_folder(tmp_path / "mine", 5), num_per_class=9))


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b"junk", lambda b: b""])
def test_damaged_idx_is_named(tmp_path, damage):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    tiny.write_idx(path, tiny.random_images(2)[..., 0])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="train-images-idx3-ubyte"):
        read_idx(path)


def test_grid_has_a_labelled_row_per_set():
    rows = [("real", tiny.random_images(3)), ("grey", tiny.random_images(2, channels=1))]
    picture = labelled_grid(rows)
    assert picture.mode == "RGB" and picture.height > 2 * 56 and picture.width > 3 * 56
