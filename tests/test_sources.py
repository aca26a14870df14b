"""Data sets that are fetched: the real loaders against a server on loopback, with small archives in the real formats."""

import hashlib
import http.server
import io
import json
import pickle
import tarfile
import threading
import zipfile

import medmnist
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torchvision.datasets as tv
from PIL import Image

from dinv.errors import UserError
from dinv.sources import eurosat, image_csv, imagenette
from dinv.sources.task import load_task

PER_CLASS = 3


def md5(content):
    return hashlib.md5(content).hexdigest()


def pixels(n, side, seed=0):
    return tiny.random_images(n, side, 3, seed)


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def jpeg(seed):
    buffer = io.BytesIO()
    Image.fromarray(pixels(1, 64, seed)[0]).save(buffer, "JPEG")
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path. `cut` answers end after half their bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cut, self.requests = {}, 0, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def publish(self, name, content):
        self.files[f"/{name}"] = content
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        content = self.server.files[self.path.split("?")[0]]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.cut > 0:
            self.server.cut -= 1
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    running = Server()
    yield running
    running.shutdown()


def prepare_cifar(server, patch, cls, fine):
    """Python batches of 3,072 numbers per image, red plane first, as the authors publish them."""
    names = [f"class {k}" for k in range(4)]
    key, names_key = ("fine_labels", "fine_label_names") if fine else ("labels", "label_names")
    labels = [k for k in range(4) for _ in range(PER_CLASS)]

    def batch(seed):
        images = pixels(len(labels), 32, seed).transpose(0, 3, 1, 2).reshape(len(labels), 3072)
        return pickle.dumps({"data": images, key: labels})

    train_names = ["train"] if fine else [f"data_batch_{i}" for i in range(1, 6)]
    test_name, meta_name = ("test", "meta") if fine else ("test_batch", "batches.meta")
    files = {name: batch(i) for i, name in enumerate(train_names)}
    files |= {test_name: batch(9), meta_name: pickle.dumps({names_key: names})}
    content = tar_of({f"{cls.base_folder}/{name}": body for name, body in files.items()})
    patch.setattr(cls, "url", server.publish(cls.filename, content))
    patch.setattr(cls, "tgz_md5", md5(content))
    patch.setattr(cls, "train_list", [[name, md5(files[name])] for name in train_names])
    patch.setattr(cls, "test_list", [[test_name, md5(files[test_name])]])
    patch.setattr(cls, "meta", {**cls.meta, "md5": md5(files[meta_name])})
    return {"names": names, "train": 4 * PER_CLASS * len(train_names), "test": 12, "file": cls.filename}


def prepare_stl10(server, patch):
    """Column-major planes and labels from 1, as the authors publish them."""
    names = ["airplane", "bird"]
    labels = np.repeat(np.arange(1, 3, dtype=np.uint8), PER_CLASS)
    files = {"class_names.txt": "\n".join(names).encode(), "unlabeled_X.bin": b""}
    for split, seed in (("train", 0), ("test", 1)):
        images = pixels(len(labels), 96, seed)
        files[f"{split}_X.bin"] = np.ascontiguousarray(images.transpose(0, 3, 2, 1)).tobytes()
        files[f"{split}_y.bin"] = labels.tobytes()
    content = tar_of({f"stl10_binary/{name}": body for name, body in files.items()})
    patch.setattr(tv.STL10, "url", server.publish("stl10_binary.tar.gz", content))
    patch.setattr(tv.STL10, "tgz_md5", md5(content))
    for attribute in ("train_list", "test_list"):
        sums = [[name, md5(files[name])] for name, _ in getattr(tv.STL10, attribute)]
        patch.setattr(tv.STL10, attribute, sums)
    return {"names": names, "train": 6, "test": 6, "file": "stl10_binary.tar.gz"}


def prepare_imagenette(server, patch):
    ids = {"n01440764": "tench", "n03888257": "parachute"}
    files = {
        f"imagenette2/{split}/{wnid}/{wnid}_{i}.JPEG": jpeg(i)
        for split in ("train", "val")
        for wnid in ids
        for i in range(PER_CLASS)
    }
    content = tar_of(files)
    archives = {"full": (server.publish("imagenette2.tgz", content), md5(content))}
    patch.setattr(tv.Imagenette, "_ARCHIVES", archives)
    patch.setattr(imagenette, "NUM_FILES", len(files))
    return {"names": list(ids.values()), "train": 6, "test": 6, "file": "imagenette2.tgz"}


def prepare_eurosat(server, patch, root):
    names = ["Forest", "River"]
    files = {f"2750/{name}/{name}_{i}.jpg": jpeg(i) for name in names for i in range(7)}
    content = zip_of(files)
    url = server.publish("EuroSAT.zip", content)
    real = tv.eurosat.download_and_extract_archive
    patch.setattr(
        tv.eurosat,
        "download_and_extract_archive",
        lambda _, download_root, md5: real(url, download_root, md5=globals()["md5"](content)),
    )
    patch.setattr(eurosat, "NUM_FILES", len(files))
    rows = {"train": range(3), "val": range(3, 5), "test": range(5, 7)}
    split = {s: [[f"{n}/{n}_{i}.jpg", 9, n] for n in names for i in which] for s, which in rows.items()}
    (root).mkdir(parents=True, exist_ok=True)
    (root / "split_zhou_EuroSAT.json").write_text(json.dumps(split))
    return {"names": names, "train": 6, "val": 4, "test": 4, "file": "eurosat/EuroSAT.zip"}


def prepare_medmnist(server, patch, name):
    labels = np.arange(14, dtype=np.uint8)[:, None] % 2
    arrays = {}
    for i, split in enumerate(("train", "val", "test")):
        arrays |= {f"{split}_images": pixels(14, 28, i), f"{split}_labels": labels}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    url = server.publish(f"{name}.npz", content) + "?download=1"
    changed = {"url": url, "MD5": md5(content), "label": {"0": "healthy", "1": "sick"}}
    patch.setitem(medmnist.INFO, name, medmnist.INFO[name] | changed)
    return {"names": ["healthy", "sick"], "train": 14, "val": 14, "test": 14, "file": f"{name}.npz"}


PREPARE = {
    "cifar10": lambda server, patch, root: prepare_cifar(server, patch, tv.CIFAR10, False),
    "cifar100": lambda server, patch, root: prepare_cifar(server, patch, tv.CIFAR100, True),
    "stl10": lambda server, patch, root: prepare_stl10(server, patch),
    "imagenette": lambda server, patch, root: prepare_imagenette(server, patch),
    "eurosat": prepare_eurosat,
    "pathmnist": lambda server, patch, root: prepare_medmnist(server, patch, "pathmnist"),
    "dermamnist": lambda server, patch, root: prepare_medmnist(server, patch, "dermamnist"),
    "bloodmnist": lambda server, patch, root: prepare_medmnist(server, patch, "bloodmnist"),
}


def params(source, root, resolution=32, **update):
    settings = {"mode": "RGB", "resize": "squash", "num_per_class": None, "num_val_per_class": 0, **update}
    place = {"source": source, "root": str(root), "resolution": resolution}
    return tiny.PARAMS.data.model_copy(update=place | settings)


@pytest.fixture(params=sorted(PREPARE))
def source(request, server, monkeypatch, tmp_path):
    return request.param, PREPARE[request.param](server, monkeypatch, tmp_path / "downloads")


def test_a_data_set_is_fetched_once_and_has_its_splits(source, server, tmp_path):
    name, expected = source
    task = load_task(params(name, tmp_path / "downloads"))
    assert task.train.class_names == expected["names"]
    sizes = {split: len(getattr(task, split)) for split in ("train", "val", "test")}
    assert sizes == {"train": expected["train"], "val": expected.get("val", 0), "test": expected["test"]}
    train = task.train.load()
    assert train.images.shape == (expected["train"], 32, 32, 3)
    assert set(train.labels) == set(range(len(expected["names"])))
    before = server.requests
    again = load_task(params(name, tmp_path / "downloads")).train.load()
    assert server.requests == before and np.array_equal(again.images, train.images)


def test_an_interrupted_download_is_repeated(source, server, tmp_path):
    name, expected = source
    server.cut = 1
    assert len(load_task(params(name, tmp_path / "downloads")).train) == expected["train"]


def test_a_damaged_archive_on_disk_is_replaced(source, tmp_path):
    name, expected = source
    archive = tmp_path / "downloads" / expected["file"]
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(b"half of it")
    assert len(load_task(params(name, tmp_path / "downloads")).test) == expected["test"]


def test_without_a_network_the_error_says_which_file_to_put_where(source, server, tmp_path):
    name, expected = source
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as error:
        load_task(params(name, tmp_path / "downloads"))
    message = str(error.value)
    assert "\n" not in message and f"put {expected['file']} into {tmp_path / 'downloads'}" in message


def test_pixels_and_labels_are_those_of_the_files(server, monkeypatch, tmp_path):
    prepare_stl10(server, monkeypatch)
    prepare_cifar(server, monkeypatch, tv.CIFAR10, False)
    stl = load_task(params("stl10", tmp_path / "downloads", 96)).train.load()
    cifar = load_task(params("cifar10", tmp_path / "downloads")).test.load()
    for found, raw, ids in ((stl, pixels(6, 96, 0), stl.ids), (cifar, pixels(12, 32, 9), cifar.ids)):
        rows = [int(i.split("/")[1]) for i in ids]
        assert np.array_equal(found.images, raw[rows])
        assert found.labels.tolist() == [row // PER_CLASS for row in rows]


@pytest.mark.parametrize(
    ("name", "folder"), [("imagenette", "imagenette2/train/n01440764"), ("eurosat", "eurosat/2750/Forest")]
)
def test_an_interrupted_unpacking_is_repeated(name, folder, server, monkeypatch, tmp_path):
    root = tmp_path / "downloads"
    expected = PREPARE[name](server, monkeypatch, root)
    load_task(params(name, root))
    next((root / folder).iterdir()).unlink()
    assert len(load_task(params(name, root)).train.load()) == expected["train"]


def test_eurosat_without_its_split_says_where_it_comes_from(server, monkeypatch, tmp_path):
    prepare_eurosat(server, monkeypatch, tmp_path / "downloads")
    path = tmp_path / "downloads/split_zhou_EuroSAT.json"
    for content in ("[]", '{"train": [["Sea/x.jpg"]], "val": [], "test": []}', None):
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(UserError, match=r"fetch it again|none of EuroSAT|CoOp"):
            load_task(params("eurosat", tmp_path / "downloads"))


def test_a_run_in_a_copy_uses_the_archives_of_the_project(server, monkeypatch, tmp_path):
    """dvc exp run --queue works in a copy without ignored files; DVC_ROOT names the project."""
    prepare_cifar(server, monkeypatch, tv.CIFAR10, False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    load_task(params("cifar10", "data/downloads"))
    assert (tmp_path / "data/downloads/cifar-10-python.tar.gz").is_file()


def table(root, rows, header="path,label"):
    for row in rows:
        path = root / row.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(1, 24)[0]).save(path)
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")


def test_a_csv_with_and_without_splits(tmp_path):
    rows = [f"a/{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(20)]
    table(tmp_path / "pool", rows)
    task = load_task(params("image_csv", tmp_path / "pool"))
    assert task.train.class_names == ["cat", "dog"]
    assert (len(task.train), len(task.val), len(task.test)) == (16, 0, 4)
    given = [f"{row},{s}" for row, s in zip(rows, ["train"] * 10 + ["val"] * 4 + ["test"] * 6, strict=True)]
    table(tmp_path / "given", given, "path,label,split")
    task = load_task(params("image_csv", tmp_path / "given"))
    assert (len(task.train), len(task.val), len(task.test)) == (10, 4, 6)
    assert set(task.test.load().ids) == {f"a/{i}.png" for i in range(14, 20)}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "labels.csv: no such file"),
        (["file,label", "a.png,x"], "no column 'path'"),
        (["path,label"], "no column 'path' or no rows"),
        (["path,label", "a.png,x", "a.png,y"], "'a.png' is listed twice"),
        (["path,label", "a.png,x", "./a.png,y"], "'a.png' is listed twice"),
        (["path,label", "a.png,x", "c/../a.png,y"], "'a.png' is listed twice"),
        (["path,label", "a.png,x", "same.png,y"], "'same.png' is listed twice, as 'a.png' too"),
        (["path,label", "a.png,x", "deep/a.png,y"], "'deep/a.png' is listed twice, as 'a.png' too"),
        (["path,label", "a.png,x", "../out.png,y"], "labels.csv:3: '../out.png' is not below"),
        (
            ["path,label", "a.png,x", "deep/../../out.png,y"],
            "labels.csv:3: 'deep/../../out.png' is not below",
        ),
        (["path,label", "{root}/a.png,x", "b.png,y"], "a.png' is not below the table's folder"),
        (["path,label", "a.png,x", "gone.png,y"], "'gone.png': no such file"),
        (["path,label", "a.png,"], "labels.csv:2: label is empty"),
        (["path,label", "a.png"], "labels.csv:2: label is empty"),
        (["path,label,split", "a.png,x,dev"], "labels.csv:2: split = 'dev'"),
        (["path,label,split", "a.png,x,train", "b.png,y,train"], "needs rows of train and of test"),
        (["path,label", "a.png,x", "b.png,x"], "found 1 classes"),
        (["path,label", "a.png,x", "b.png,\udcff"], "not a CSV file in UTF-8"),
    ],
)
def test_a_bad_csv_is_one_line(tmp_path, lines, message):
    root = tmp_path / "mine"
    root.mkdir()
    for path in (root / "a.png", root / "b.png", tmp_path / "out.png"):
        Image.fromarray(pixels(1, 24)[0]).save(path)
    (root / "same.png").symlink_to("a.png")
    (root / "deep").symlink_to(".")
    if lines is not None:
        text = "\n".join(lines).replace("{root}", str(root))
        (root / image_csv.TABLE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError) as error:
        load_task(params("image_csv", root))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_csvs_ids_are_paths_in_their_shortest_form(tmp_path):
    table(tmp_path, ["./a/0.png,cat", "a/b/../1.png,dog", "a//2.png,cat", "3.png,dog"])
    task = load_task(params("image_csv", tmp_path))
    assert {*task.train.raw.ids, *task.test.raw.ids} == {"a/0.png", "a/1.png", "a/2.png", "3.png"}
    assert len(task.train.load()) == 2


def test_equal_pictures_that_dvc_links_to_one_file_of_its_cache_are_two_images(tmp_path):
    rows = [f"{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(4)]
    table(tmp_path / "mine", rows)
    cached = tmp_path / ".dvc/cache/files/md5/d4/1d8cd98f00b204e9800998ecf8427e"
    cached.parent.mkdir(parents=True)
    (tmp_path / "mine/0.png").rename(cached)
    for name in ("0.png", "1.png"):
        (tmp_path / "mine" / name).unlink(missing_ok=True)
        (tmp_path / "mine" / name).symlink_to(cached)
    task = load_task(params("image_csv", tmp_path / "mine"))
    assert len(task.train) + len(task.test) == 4


def parquet_file(path, labels, column="label", names=None, images=None, paths=None):
    """One split as Hugging Face `datasets` writes it."""
    n = len(labels)
    cells = [
        {"bytes": jpeg(i) if images is None else images[i], "path": paths[i] if paths else None}
        for i in range(n)
    ]
    rows = pa.table({"image": cells, column: labels})
    if names:
        feature = {"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}
        rows = rows.replace_schema_metadata({"huggingface": json.dumps(feature)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path)


def test_parquet_files_of_names_or_numbers(tmp_path):
    parquet_file(
        tmp_path / "a/train.parquet", ["cat", "dog", "cat"], "class", paths=["x.jpg", "y.jpg", "z.jpg"]
    )
    parquet_file(tmp_path / "a/test.parquet", ["dog"], "class", paths=["x.jpg"])
    task = load_task(params("parquet", tmp_path / "a"))
    assert task.train.class_names == ["cat", "dog"] and len(task.val) == 0
    assert {*task.train.load().ids, *task.test.load().ids} == {
        "train/x.jpg",
        "train/y.jpg",
        "train/z.jpg",
        "test/x.jpg",
    }
    for part in (0, 1):
        parquet_file(tmp_path / f"b/data/train-0000{part}-of-00002.parquet", [1, 0], names=["ox", "ape"])
    parquet_file(tmp_path / "b/data/validation-00000-of-00001.parquet", [1], names=["ox", "ape"])
    parquet_file(tmp_path / "b/data/test-00000-of-00001.parquet", [0, 1], names=["ox", "ape"])
    task = load_task(params("parquet", tmp_path / "b"))
    assert (len(task.train), len(task.val), len(task.test)) == (4, 1, 2)
    test = task.test.load()
    by_id = dict(zip(test.ids, test.labels, strict=True))
    assert [test.class_names[by_id[f"test/00000{i}"]] for i in (0, 1)] == ["ox", "ape"]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (None, {"labels": ["a", "b"]}, "no train.parquet"),
        ({"labels": ["a", "a"]}, {"labels": ["a"]}, "found 1 classes"),
        ({"labels": ["a", "b"]}, {"labels": ["c"]}, "class 'c' is not in train"),
        ({"labels": ["a", "b"], "column": "kind"}, {"labels": ["a"]}, "columns are image, kind"),
        ({"labels": ["a", None]}, {"labels": ["a"]}, "row 1: label is empty"),
        ({"labels": [0, 2], "names": ["a", "b"]}, {"labels": [0]}, "label 2 has no name"),
        ({"labels": ["a", "b"], "images": [b"", b""]}, {"labels": ["a"]}, "no picture in column image"),
        ({"labels": ["a", "b"], "images": [b"x", b"y"]}, {"labels": ["a"]}, "broken image (unknown format)"),
        (b"PAR1", {"labels": ["a"]}, "train.parquet: not a Parquet file"),
    ],
)
def test_bad_parquet_files_are_one_line(tmp_path, train, test, message):
    for name, split in (("train", train), ("test", test)):
        if isinstance(split, bytes):
            (tmp_path / f"{name}.parquet").write_bytes(split)
        elif split is not None:
            parquet_file(tmp_path / f"{name}.parquet", **split)
    with pytest.raises(UserError) as error:
        load_task(params("parquet", tmp_path)).train.load()
    assert message in str(error.value) and "\n" not in str(error.value)
