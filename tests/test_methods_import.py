"""Strategy import_folder: what other programs made, by folder or by table, and what is wrong with it in one line."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_methods as methods
from PIL import Image
from ruamel.yaml import YAML
from tiny_methods import make, plan, render

from dinv.errors import UserError
from dinv.images.export import export_image_folder
from dinv.images.fingerprint import write_fingerprints
from dinv.images.image_set import load_image_set
from dinv.images.resize import to_square
from dinv.strategies.worker import Form, RenderTask, image_digests

PLAIN = {"resize": "squash", "max_duplicate_bits": None}


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A workplace whose task has 16-pixel RGB images, and a model that wants 32 pixels."""
    monkeypatch.chdir(tmp_path)
    write_fingerprints([methods.resized(methods.clothes(3), 16)], Path("data/fingerprints.txt"))
    return methods.save_real(Path("data/real/train"))


def picture(path: str, side: int = 20, seed: int = 0) -> Image.Image:
    made = Image.fromarray(tiny.random_images(1, side=side, seed=seed)[0])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    made.save(path)
    return made


def test_a_folder_per_class_is_taken_whole_at_the_tasks_size(real, capsys):
    made = [picture(f"made/{p}", seed=i) for i, p in enumerate(("cat/b.png", "eel/deep/a.bmp", "cat/a.png"))]
    Path("made/cat/.hidden").write_text("x")
    strategy = make("import_folder", real, None, Path("made"), **PLAIN)
    assert "import_folder: 3 images of made (cat 2, dog_house 0, eel 1)" in "".join(capsys.readouterr())
    assert [(d.id, d.label, d.source_id) for d in plan(strategy)] == [
        ("cat/a.png", 0, None),
        ("cat/b.png", 0, None),
        ("eel/deep/a.bmp", 2, None),
    ]
    expected = np.stack([to_square(made[i], 16, "squash", "RGB") for i in (2, 0, 1)])
    assert (render(strategy, None, micro_batch=2).numpy() == expected).all()
    assert not strategy.renderer().uses_model


def test_a_changed_picture_changes_its_own_digest_only(real):
    for i, name in enumerate("abc"):
        picture(f"made/cat/{name}.png", seed=i)

    def digests():
        strategy = make("import_folder", real, None, Path("made"), **PLAIN)
        return image_digests(strategy, plan(strategy), [])

    before = digests()
    picture("made/cat/b.png", seed=9)
    picture("made/cat/aa.png", seed=8)  # in front of others: these keep theirs
    after = digests()
    assert (after[0], after[3]) == (before[0], before[2]) and not {after[1], after[2]} & set(before)


def test_a_table_names_classes_and_sources(real):
    for i in range(3):
        picture(f"made/{i}.png", seed=i)
    Path("made/labels.csv").write_text(
        "path,label,source_id,prompt\n2.png,cat,image-0,x\n./0.png,eel,,y\n1.png,dog_house,image-1,z\n"
    )
    strategy = make("import_folder", real, None, Path("made"), **PLAIN)
    found = [(d.id, d.label, d.source_id) for d in plan(strategy)]
    assert found == [("0.png", 2, None), ("1.png", 1, "image-1"), ("2.png", 0, "image-0")]


def test_what_dinv_exports_comes_back(real):
    export_image_folder(Path("data/real/train"), Path("made"))
    strategy = make("import_folder", real, None, Path("made"), **PLAIN)
    images = load_image_set(Path("data/real/train"))
    row_of = {
        f"{images.class_names[k]}/{i}.png": row
        for row, (i, k) in enumerate(zip(images.ids, images.labels, strict=True))
    }
    rows = [row_of[d.id] for d in plan(strategy)]
    assert (render(strategy, None).numpy() == images.images[rows]).all() and len(rows) == 7


def test_near_duplicates_of_held_out_images_are_left_out_and_counted(real, capsys):
    picture("made/cat/own.png")
    held_out = methods.clothes(1)[0, ..., 0]
    Image.fromarray(held_out).resize((40, 40)).save("made/cat/copy.png")
    strategy = make("import_folder", real, None, Path("made"), resize="squash", max_duplicate_bits=24)
    said = "".join(capsys.readouterr())
    assert "1 of 2 images are near-duplicates of test or validation images and left out" in said
    assert [d.id for d in plan(strategy)] == ["cat/own.png"]
    assert len(make("import_folder", real, None, Path("made"), **PLAIN)) == 2


@pytest.mark.parametrize(
    ("prepare", "update", "message"),
    [
        (lambda: None, {}, r"^import_folder: input = 'made': no such folder$"),
        (lambda: Path("made").mkdir(), {}, r"^import_folder: input = 'made': no image; put some there$"),
        (lambda: picture("made/cats/a.png"), {}, r"^made/cats/a.png: class 'cats' is not one of the task's \(did you mean cat\?\), which are cat, dog_house, eel; rename"),
        (lambda: picture("made/a.png"), {}, r"^made/a.png: lies in no class's folder; move it into one"),
        (lambda: (picture("made/cat/a.png"), Path("made/cat/a.txt").write_text("x")), {}, r"^made/cat/a.txt: not an image file"),
        (lambda: (picture("made/cat/a.png"), Path("made/cat/b.png").write_bytes(b"\x89PNG")), {}, r"^made/cat/b.png: broken image"),
        (lambda: picture("made/cat/a.png"), {"resize": "pad"}, r"^made/cat/a.png: larger than the task's 16 pixels; set resize"),
        (lambda: (picture("made/a.png"), Path("made/labels.csv").write_text("path,label\na.png,dog\n")), {}, r"^made/a.png: class 'dog' is not one"),
        (lambda: (picture("made/a.png"), Path("made/labels.csv").write_text("path,label\nb.png,cat\n")), {}, r"labels.csv: 'b.png': no such file"),
        (lambda: (picture("made/a.png"), Path("made/labels.csv").write_text("path,class\na.png,cat\n")), {}, r"labels.csv: no column 'label'"),
        (lambda: (picture("made/a.png"), Path("made/labels.csv").write_text("path,label,source_id\na.png,cat,x\n")), {}, r"^made/a.png: source_id 'x' is no training image"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(real, prepare, update, message):
    prepare()
    with pytest.raises(UserError, match=message) as raised:
        strategy = make("import_folder", real, None, Path("made"), **{**PLAIN, **update})
        image_digests(strategy, plan(strategy), [])  # which comes before any work
    assert "\n" not in str(raised.value)


def test_the_part_is_the_pictures_at_the_tasks_size_whatever_the_models(real, tmp_path):
    """The images go to the classifiers' resolution in one step, though the model's is another."""
    made = picture("made/eel/a.png", side=50)
    model_side = methods.save_real(tmp_path / "model")  # stands for another resolution
    strategy = make("import_folder", model_side, None, Path("made"), **PLAIN)
    task = RenderTask(
        strategy.renderer(),
        strategy.inputs(plan(strategy)),
        plan(strategy),
        Form((16, 16, 3), methods.CLASS_NAMES),
    )
    part = task.part(render(strategy, None))
    assert (part.images[0] == to_square(made, 16, "squash", "RGB")).all() and part.ids == ["eel/a.png"]


def test_dvc_watches_the_folder():
    """`input` is a dependency of every block of generate, so a changed picture reruns its stage."""
    stage = YAML(typ="safe").load((tiny.ROOT / "dvc.yaml").read_text())["stages"]["generate"]
    assert "${item.input}" in stage["do"]["deps"] and stage["foreach"] == "${generate}"
