"""Image sets on disk: soft labels, sets whose pixels stay there, writes that are killed."""

import itertools
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny

from dinv.errors import UserError
from dinv.images.image_set import (
    ImageSet,
    ImageSetReader,
    ImageSetWriter,
    concatenate,
    load_image_set,
    save_chunks,
    save_image_set,
    write_parquet,
)

CLASSES = ["cat", "dog", "emu"]


def make_set(n=5, side=8, channels=3, soft=False, start=0):
    rng = np.random.default_rng(start)
    labels, provenance = np.arange(n, dtype=np.int64) % 3, {"source_id": [f"s{i}" for i in range(n)]}
    probabilities = rng.dirichlet(np.ones(3), n).astype(np.float32) if soft else None
    ids = [f"i{i}" for i in range(start, start + n)]
    return ImageSet(
        tiny.random_images(n, side, channels, start), labels, ids, CLASSES, provenance, probabilities
    )


def assert_equal(found, expected):
    assert np.array_equal(found.images, expected.images) and np.array_equal(found.labels, expected.labels)
    assert (found.ids, found.class_names) == (expected.ids, expected.class_names)
    assert found.provenance == expected.provenance
    assert (found.probabilities is None) == (expected.probabilities is None)
    assert found.probabilities is None or np.array_equal(found.probabilities, expected.probabilities)


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.mark.parametrize("n", [0, 3, 1100])
def test_soft_labels_survive_files_slices_and_joins(tmp_path, n):
    images = make_set(n, soft=True)
    save_image_set(images, tmp_path / "set")
    reader = ImageSetReader(tmp_path / "set")
    back = load_image_set(tmp_path / "set")
    assert back.probabilities.dtype == np.float32 and back.probabilities.shape == (n, 3)
    assert np.array_equal(reader.probabilities, images.probabilities)
    if n:
        assert_equal(back, images)
        rows = [n - 1, 0, n // 2]
        assert_equal(reader.take(rows), images.take(rows))
        assert np.array_equal(images.take(rows).probabilities, images.probabilities[rows])


def test_hard_labels_are_one_hot_beside_soft_ones():
    soft, hard = make_set(2, soft=True), make_set(3, start=2)
    joined = concatenate([hard, soft]).probabilities
    assert joined[:3].tolist() == np.eye(3).tolist() and np.array_equal(joined[3:], soft.probabilities)
    assert concatenate([hard, hard]).probabilities is None


def test_a_digest_sees_soft_labels_and_is_the_old_one_without():
    images, soft = make_set(2), make_set(2, soft=True)
    plain = images.digests("key")
    assert plain == ImageSet(images.images, images.labels, images.ids, CLASSES).digests("key")
    mirrored = ImageSet(soft.images, soft.labels, soft.ids, CLASSES, {}, soft.probabilities[:, ::-1].copy())
    assert len({*plain, *soft.digests("key"), *mirrored.digests("key")}) == 6


@pytest.mark.parametrize("bad", [np.ones((2, 3)), np.full((2, 2), 0.5), [[2, -1, 0], [0, 0, 1]]])
def test_what_is_no_distribution_over_the_classes_is_refused(bad):
    images = make_set(2)
    with pytest.raises(AssertionError):
        ImageSet(images.images, images.labels, images.ids, CLASSES, probabilities=np.asarray(bad, np.float32))


def test_a_file_with_soft_labels_of_other_classes_is_named(tmp_path):
    path = tmp_path / "part-00000.parquet"
    write_parquet(make_set(3, soft=True), path)
    table = pq.read_table(path)
    meta = {**table.schema.metadata, b"dinv": json.dumps({"class_names": ["cat"], "shape": [8, 8, 3]})}
    pq.write_table(table.replace_schema_metadata(meta), path)
    with pytest.raises(UserError, match=r"part-00000\.parquet: .*probabilities are not of 1 classes"):
        load_image_set(tmp_path)


def test_hugging_face_reads_soft_labels(tmp_path):
    import datasets

    images = make_set(3, soft=True)
    save_image_set(images, tmp_path / "set")
    files = str(tmp_path / "set/*.parquet")
    found = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "hub"))
    assert found.features["label"].names == CLASSES
    assert np.array_equal(np.asarray(found["probabilities"], np.float32), images.probabilities)
    assert np.array_equal(np.asarray(found[1]["image"]), images.images[1])


@pytest.mark.parametrize("piece", [100, 300, 1000, 2000])
def test_files_are_those_of_one_write_whatever_the_pieces(tmp_path, piece):
    images = make_set(1250, 8, 1)
    with ImageSetWriter(tmp_path / "set") as writer:
        for start in range(0, 1250, piece):
            writer.add(images.take(range(start, min(start + piece, 1250))))
    for i, rows in enumerate((range(1000), range(1000, 1250))):
        write_parquet(images.take(rows), tmp_path / "whole")
        assert (tmp_path / f"set/part-{i:05d}.parquet").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_smaller_set_leaves_no_part_of_a_larger_one(tmp_path):
    save_image_set(make_set(1200, 8, 1), tmp_path / "set")
    save_image_set(make_set(7, 8, 1, start=5000), tmp_path / "set")
    assert load_image_set(tmp_path / "set").ids == [f"i{i}" for i in range(5000, 5007)]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_an_error_in_the_middle_leaves_the_old_set(tmp_path):
    old = make_set(4)
    save_image_set(old, tmp_path / "set")

    def chunks():
        yield make_set(1000, start=9)
        raise UserError("broken image")

    with pytest.raises(UserError, match="broken image"):
        save_chunks(chunks(), tmp_path / "set")
    assert_equal(load_image_set(tmp_path / "set"), old)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


STEPS = [(os, "fsync"), (Path, "mkdir"), (Path, "rename"), (shutil, "rmtree")]


def write_and_die(images, folder, moment):
    """In a fork: write, and end as by kill -9 just before that many steps; whether it was killed."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    count = itertools.count()

    def dying(step):
        return lambda *args, **kw: os._exit(9) if next(count) == moment else step(*args, **kw)

    for owner, name in STEPS:
        setattr(owner, name, dying(getattr(owner, name)))
    try:
        save_image_set(images, folder)
    finally:
        os._exit(0)


def test_killed_before_any_step_the_folder_holds_the_old_set_the_new_or_none(tmp_path):
    old, new, folder = make_set(1200, 8, 1), make_set(1100, 8, 1, start=5000), tmp_path / "set"
    found = set()
    for moment in itertools.count():
        save_image_set(old, folder)
        killed = write_and_die(new, folder, moment)
        found.add(tuple(ImageSetReader(folder).ids[::1199]) if folder.exists() else None)
        if not killed:
            break
    assert found == {None, ("i0", "i1199"), ("i5000",)} and moment >= 6
    save_image_set(new, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("n", [0, 1, 250, 1100])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_mapped_set_is_the_set_without_its_pixels_in_memory(tmp_path, scratch, n, channels):
    images = make_set(n, channels=channels, soft=n == 250)
    save_image_set(images, tmp_path / "set")
    mapped = ImageSetReader(tmp_path / "set").mapped()
    assert mapped.tensor().shape == (n, channels, 8, 8) and mapped.tensor().equal(images.tensor())
    assert len(mapped) == n and mapped.tensor().is_contiguous()
    if n:
        back = ImageSet(images.images, *(getattr(mapped, k) for k in list(vars(images))[1:]))
        assert_equal(back, images)
        assert mapped.tensor().data_ptr() == mapped.pixels.ctypes.data
    assert list(scratch.rglob("*")) == []


def test_chosen_rows_are_mapped_in_their_order(tmp_path):
    images = make_set(250, soft=True)
    save_image_set(images, tmp_path / "set")
    rows = [249, 3, 4, 100, 3]
    mapped = ImageSetReader(tmp_path / "set").mapped(rows)
    expected = images.take(rows)
    assert mapped.tensor().equal(expected.tensor()) and mapped.ids == expected.ids
    assert mapped.provenance == expected.provenance
    assert np.array_equal(mapped.probabilities, expected.probabilities)


def test_mapping_holds_one_row_group_in_memory(tmp_path):
    images = make_set(1000, 64)
    save_image_set(images, tmp_path / "set")
    reader = ImageSetReader(tmp_path / "set")
    tracemalloc.start()
    mapped = reader.mapped()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * images.images.nbytes < mapped.pixels.nbytes


def test_a_part_with_pictures_of_another_size_is_named(tmp_path):
    save_image_set(make_set(1000), tmp_path)
    write_parquet(make_set(3, side=9), tmp_path / "part-00001.parquet")
    with pytest.raises(UserError, match=r"part-00001\.parquet: images of \(9, 9, 3\)"):
        ImageSetReader(tmp_path).mapped()
