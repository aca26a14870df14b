"""dinv init: what it says of a folder, what it writes, and that the pipeline takes it."""

import csv
import json
import shutil

import numpy as np
import project as projects
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from PIL import Image
from ruamel.yaml import YAML

from dinv.cli import main
from dinv.intake import look, shipped
from dinv.intake.place import find_source
from dinv.params import load_params
from dinv.preset import apply_presets
from dinv.sources.task import load_task


def picture(seed, side=40, grey=False, long=None):
    """Smooth, so that a tiny side keeps what is in it."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3), np.uint8)
    image = Image.fromarray(small).resize((long or side, side), Image.Resampling.BICUBIC)
    return image.convert("L") if grey else image


def write(folder, n, seed=0, **options):
    folder.mkdir(parents=True)
    for i in range(n):
        picture(seed + i, **options).save(folder / f"{i:02d}.png")


def csv_only(folder):
    (folder / "mine").mkdir()
    (folder / "mine/images.csv").write_text("path,label\n")


def two(folder):
    write(folder / "mine/a", 10)
    write(folder / "mine/b", 10)


def all_broken(folder):
    two(folder)
    for file in (folder / "mine").rglob("*.png"):
        file.write_bytes(b"no")


def stray(folder):
    write(folder / "mine/cat", 3)
    write(folder / "mine/dog", 3)
    for name in "abcdefg":
        (folder / f"mine/cat/{name}.txt").touch()


def arrow(folder):
    (folder / "mine/train").mkdir(parents=True)
    (folder / "mine/train/data-00000-of-00001.arrow").touch()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project with a shipped grey model and a shipped colour model, both tiny."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny.ROOT / "params.yaml", tmp_path)
    shutil.copytree(tiny.ROOT / "presets", tmp_path / "presets")
    tiny.save_tiny_model(tmp_path / "models/fashion-ldm", num_channels=1, text=False)
    tiny.save_tiny_model(tmp_path / "models/cells-ldm", num_channels=3, text=False)
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """Without loading models."""
    levels = {"models/fashion-ldm": 30.0, "models/cells-ldm": 20.0, "models/satellite-ldm": 22.0}
    monkeypatch.setattr("dinv.intake.initialise.fidelity", lambda model, images: levels[model.path])


def init(capsys, *arguments):
    main(["init", *arguments])
    return capsys.readouterr().out


def values(path="params.yaml"):
    return YAML(typ="safe").load(open(path).read())


def test_a_folder_of_classes_is_described_and_set(folder, capsys):
    """With the true models: they load, and the one that is in colour is chosen."""
    write(folder / "mine/cat", 12)
    write(folder / "mine/dog", 40, seed=100)
    before = (folder / "params.yaml").read_text().splitlines()
    out = init(capsys, "mine")
    assert "mine: image_folder, 2 classes, 52 images" in out
    assert "cat 10 2 dog 32 8 all 42 10 sizes:" in " ".join(out.split())
    assert "sizes: all 40x40" in out and "colour: all in colour" in out
    assert "test: a fifth of every class, set aside" in out
    assert "imbalance: the largest class has 32 training images, the smallest 10" in out
    assert "model: models/cells-ldm" in out and "it does not know such pictures" in out
    assert "data.root: data/bundled/fashion-mnist -> mine" in out
    data = load_params().data
    assert (data.source, data.root, data.mode, data.resize) == ("image_folder", "mine", "RGB", "center_crop")
    assert (data.num_per_class, data.num_val_per_class, data.num_test, data.resolution) == (None, 2, None, 16)
    assert load_params().model.model_dump() == {
        "path": "models/cells-ldm",
        "dtype": "float32",
        "resolution": 16,
    }
    task = load_task(data)
    assert [len(s) for s in (task.train, task.val, task.test)] == [38, 4, 10]
    after = (folder / "params.yaml").read_text().splitlines()
    assert [line.partition("#")[2] for line in before] == [line.partition("#")[2] for line in after]


def test_twice_is_as_once_and_a_dry_run_writes_nothing(folder, quick, capsys):
    write(folder / "mine/cat", 10)
    write(folder / "mine/dog", 10)
    text = (folder / "params.yaml").read_text()
    assert "params.yaml would change:\n  data.source" in init(capsys, "mine", "--dry-run")
    assert (folder / "params.yaml").read_text() == text
    init(capsys, "mine")
    once = (folder / "params.yaml").read_text()
    assert once != text
    assert "params.yaml stays as it is" in init(capsys, "mine/")
    assert (folder / "params.yaml").read_text() == once


def test_what_the_user_changed_is_kept_and_said(folder, quick, capsys):
    write(folder / "mine/cat", 10)
    write(folder / "mine/dog", 10)
    init(capsys, "mine")
    edited = (folder / "params.yaml").read_text().replace("lr: 0.3 ", "lr: 0.05 ", 1)
    edited = edited.replace("num_val_per_class: 1 ", "num_val_per_class: 3 ")
    (folder / "params.yaml").write_text(edited)
    out = init(capsys, "mine")
    assert "params.yaml stays as it is\nkept, since" in out
    assert (
        "data.num_val_per_class: 3, proposed 1" in out and "invert.embeddings.lr: 0.05, proposed 0.3" in out
    )
    assert (folder / "params.yaml").read_text() == edited
    out = init(capsys, "mine", "--resolution", "24")
    assert "changed:\n  data.resolution: 16 -> 24\n" in out and "invert.embeddings.lr: 0.05, proposed" in out
    init(capsys, "mine", "--reset")
    assert values()["invert"]["embeddings"]["lr"] == 0.3 and values()["data"]["num_val_per_class"] == 1
    assert values()["data"]["resolution"] == 16


def test_another_model_brings_its_settings_and_the_way_back_is_whole(folder, quick, capsys):
    for name in ("a", "b"):
        write(folder / "mine" / name, 10, side=100)
    init(capsys, "mine")
    first = values()
    pin = folder / "models/stable-diffusion-v1-4.yaml"
    shutil.copy(tiny.ROOT / "models/stable-diffusion-v1-4.yaml", pin)
    out = init(capsys, "mine", "--model", "models/stable-diffusion-v1-4.yaml")
    assert "model: models/stable-diffusion-v1-4.yaml, at 256 pixels" in out and "docs/running_large.md" in out
    params = load_params()
    assert (params.data.resolution, params.model.resolution, params.model.dtype) == (96, 256, "bfloat16")
    assert params.invert["embeddings"].num_visits == 1000 and params.train["cnn"].architecture == "resnet18"
    assert "params.yaml stays as it is" in init(capsys, "mine"), "the model that was chosen stays"
    out = init(capsys, "mine", "--model", "models/cells-ldm")
    assert "invert.embeddings.num_visits: 1000 -> 80" in out
    back = values()
    assert back["train"]["cnn"].pop("architecture") == "resnet18"
    assert first["train"]["cnn"].pop("architecture") == "convnet3"
    assert back == first


def test_blocks_that_are_not_there_are_left_out(folder, quick, capsys):
    write(folder / "mine/cat", 10)
    write(folder / "mine/dog", 10)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("embeddings:", "own:").replace("/embeddings", "/own"))
    assert "data.source" in init(capsys, "mine")
    assert list(load_params().invert) == ["own"] and load_params().invert["own"].lr == 0.1


def test_a_table_and_grey_pictures(folder, quick, capsys):
    write(folder / "mine/scans", 20, grey=True)
    with (folder / "mine/labels.csv").open("w", newline="") as file:
        rows = [
            (f"scans/{i:02d}.png", "sick" if i % 2 else "well", "train" if i < 14 else "test")
            for i in range(20)
        ]
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    out = init(capsys, "mine/labels.csv")
    assert "mine: image_csv, 2 classes, 20 images" in out and "colour: none, all are grey" in out
    assert "a fifth of every class" not in out
    assert "models/fashion-ldm; its autoencoder leaves 30.0 dB" in out and "it knows such pictures" in out
    data = load_params().data
    assert (data.source, data.mode, data.num_val_per_class) == ("image_csv", "L", 1)
    assert len(load_task(data).train) == 12


def test_parquet_with_its_own_validation(folder, quick, capsys):
    (folder / "mine").mkdir()
    for split, n in (("train", 30), ("validation", 6), ("test", 6)):
        write(folder / split, n)
        files = sorted((folder / split).iterdir())
        column = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        table = pa.table({"image": column, "label": [["x", "y"][i % 2] for i in range(n)]})
        pq.write_table(table, folder / f"mine/{split}.parquet")
    out = init(capsys, "mine")
    assert "mine: parquet, 2 classes, 42 images" in out and " train val test " in " ".join(out.split())
    data = load_params().data
    assert data.source == "parquet" and data.num_val_per_class == 0
    assert len(load_task(data).val) == 6


def test_what_is_wrong_is_named(folder, quick, capsys):
    write(folder / "mine/train/cat", 10)
    write(folder / "mine/train/dog", 3, long=90)
    write(folder / "mine/test/cat", 2)
    write(folder / "mine/test/dog", 2, grey=True)
    write(folder / "mine/valid/dog", 1)
    (folder / "mine/train/cat/03.png").write_bytes(b"\x89PNG half")
    (folder / "mine/test/dog/00.png").write_bytes(b"")
    out = init(capsys, "mine")
    assert "broken: 2 that the pipeline will refuse\n" in out
    assert "  mine/train/cat/03.png: broken image" in out and "  mine/test/dog/00.png: broken image" in out
    assert "Repair or remove the broken pictures, then:" in out
    assert "not read: mine/valid; rename it to val" in out
    assert "few training images: dog (3);" in out
    assert "sizes: shorter side 40 to 40" in out and "93.3% in colour, 1 grey" in out
    assert load_params().data.num_val_per_class == 0


def test_long_pictures_are_squashed_and_a_few_in_colour_are_grey(folder, quick, capsys):
    write(folder / "mine/cat", 30, grey=True, long=80)
    write(folder / "mine/dog", 30, grey=True, long=80)
    picture(1, long=80).save(folder / "mine/dog/29.png")
    assert "1.7% in colour, 59 grey; fewer than 5% in colour: taken as grey" in init(capsys, "mine")
    assert load_params().data.mode == "L" and load_params().data.resize == "squash"
    init(capsys, "mine", "--resize", "center_crop")
    assert load_params().data.resize == "center_crop"


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda f: None, ["absent"], "absent: no such folder or file"),
        (lambda f: f.joinpath("mine").mkdir(), ["mine"], "mine: has neither class folders, nor labels.csv"),
        (lambda f: write(f / "mine/cat", 3), ["mine"], "found 1 class folders; classification needs two"),
        (csv_only, ["mine"], "has no labels.csv; rename images.csv"),
        (csv_only, ["mine/images.csv"], "the table must be called labels.csv"),
        (stray, ["mine"], "not image files: cat/a.txt, cat/b.txt, .* and 2 more; move them"),
        (arrow, ["mine"], "in Arrow format.*write Parquet"),
        (two, ["mine", "--model", "models/absent"], "--model models/absent: not a model in"),
        (two, ["mine", "--model", "x.yaml"], "--model x.yaml: no such folder or file"),
        (two, ["mine", "--source", "image_csb"], "no such source .did you mean image_csv"),
        (all_broken, ["mine"], "mine: no picture can be read; the first: mine/a/"),
        (two, ["mine", "--resolution", "3"], "params.yaml: data.resolution = 3"),
    ],
)
def test_errors_are_one_line_and_change_nothing(folder, quick, make, arguments, message):
    make(folder)
    before = (folder / "params.yaml").read_text()
    with pytest.raises(SystemExit, match=f"^dinv init: .*{message}") as stop:
        main(["init", *arguments])
    assert "\n" not in str(stop.value.code)
    assert (folder / "params.yaml").read_text() == before


def test_pictures_elsewhere_have_an_absolute_path(folder, quick, capsys, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    two(elsewhere)
    init(capsys, str(elsewhere / "mine"))
    assert load_params().data.root == (elsewhere / "mine").as_posix()


def test_the_bundled_samples_are_found_too():
    assert find_source(tiny.ROOT / "data/bundled/fashion-mnist")[0] == "fashion_mnist"
    assert find_source(tiny.ROOT / "data/bundled/cells")[0] == "parquet"


def test_psnr_known_answer():
    """All levels off by 255 / 10: 20 dB."""

    class Tenth:
        def encode(self, images):
            self.images = images
            return self

        mean = None

        def decode(self, _):
            return self.images + 25.5

    model = Tenth()
    images = np.zeros((2, 4, 4, 3), np.uint8)
    model.images = None
    assert shipped.psnr(model, images) == pytest.approx(20)


@pytest.mark.parametrize(
    ("mode", "spread", "grey"),
    [("L", 0, True), ("RGB", 0, True), ("RGB", 8, True), ("RGB", 30, False), ("1", 0, True)],
)
def test_grey_known_answers(mode, spread, grey):
    pixels = np.full((80, 80, 3), 100, np.uint8)
    pixels[..., 0] += spread
    assert look.is_grey(Image.fromarray(pixels).convert(mode)) == grey


def test_the_preset_of_the_default_is_what_is_committed(folder):
    """It names the way back from every other preset of a model."""
    before = values()
    for name in ("cells", "sd14", "sd14-fast"):
        apply_presets([name, "fashion"])
        now = values()
        now["data"]["num_val_per_class"] = 100
        assert now == before, name


def test_a_model_of_many_domains_must_be_ahead_and_knows_what_comes_back_as_its_own_images_do(tmp_path):
    one, many = (shipped.Shipped(str(tmp_path / name), "RGB", {}) for name in ("one", "many"))
    (tmp_path / "many/text_encoder").mkdir(parents=True)
    assert shipped.best_of([one, many], {one.path: 30.0, many.path: 31.4}) is one
    assert shipped.best_of([one, many], {one.path: 30.0, many.path: 31.6}) is many
    assert one.known_db == many.known_db == shipped.KNOWN_DB
    figures = {"tiles": {"autoencoder_psnr": 32.0}, "photos": {"autoencoder_psnr": 25.0}}
    (tmp_path / "many/measured.json").write_text(json.dumps(figures))
    assert many.known_db == 25.0 - shipped.OWN_DB


def test_shipped_models_are_those_with_a_preset_and_a_folder(folder):
    found = {model.path: model for model in shipped.shipped_models()}
    assert {path: model.mode for path, model in found.items()} == {
        "models/fashion-ldm": "L",
        "models/cells-ldm": "RGB",
    }
    assert found["models/cells-ldm"].settings["invert"]["embeddings"]["lr"] == 0.3
    assert found["models/cells-ldm"].settings["invert"]["embeddings"]["num_visits"] == 80


def test_without_a_model_in_colour_it_says_so(folder, quick):
    shutil.rmtree(folder / "models/cells-ldm")
    two(folder)
    with pytest.raises(SystemExit, match="no shipped model is for images of mode RGB; name another"):
        main(["init", "mine"])


@pytest.mark.slow
def test_a_pipeline_takes_what_init_wrote(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    shutil.copytree(tiny.ROOT / "presets", project.root / "presets")
    for name in ("cat", "dog"):
        write(project.root / "mine" / name, 10, grey=True)
    project.run("dinv", "init", "mine")
    small = {k: v for k, v in projects.SMALL.items() if not k.startswith(("data", "model"))}
    project.set(**{name.replace(".", "__"): value for name, value in small.items()})
    assert project.repro() >= {"download", "evaluate"}
    assert "mixed" in (project.root / "metrics/table.md").read_text()
