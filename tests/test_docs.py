"""The commands and code of docs/ work, and its links lead somewhere."""

import csv
import io
import re
import shutil
import sys
import time

import numpy as np
import pytest
import tiny
from test_readme import prepare_own_images

from dinv.errors import UserError
from dinv.images.export import export_image_folder
from dinv.images.image_set import ImageSet, load_image_set, save_image_set
from dinv.sources import image_folder

PAGES = sorted((tiny.ROOT / "docs").glob("*.md"))


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (tiny.ROOT / "docs" / page).read_text(), re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_linked_and_named_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for target in re.findall(r"`((?:tests|dinv|stages|benchmarks|docs|models)/[\w/.]+)`", text):
        assert (tiny.ROOT / target.replace("NAME", "base")).exists(), target


TABLES = {
    (path.name, source): shown
    for path in [tiny.ROOT / "README.md", *PAGES]
    for source, shown in re.findall(r"<!-- (\S+\.md) -->\n(.*?)<!-- end -->", path.read_text(), re.S)
}


@pytest.mark.parametrize(("page", "source"), TABLES)
def test_tables_are_those_of_the_committed_runs(page, source):
    def lines(text):
        return [line for line in text.splitlines() if line.startswith("|")]

    assert lines(TABLES[page, source]) == lines((tiny.ROOT / source).read_text())


def test_committed_results_are_shown():
    shown = {source for _, source in TABLES}
    files = [*(tiny.ROOT / "metrics").rglob("*.md"), tiny.ROOT / "docs/five_per_class.md"]
    assert shown == {str(path.relative_to(tiny.ROOT)) for path in files}


def test_numbers_about_image_sets_are_those_of_the_committed_run():
    page = (tiny.ROOT / "docs/metrics.md").read_text()
    value = {
        (row["images"], row["metric"]): float(row["value"])
        for row in csv.DictReader((tiny.ROOT / "metrics/image_sets.csv").open())
    }
    assert f"{value['synthetic', 'share_nearer_train']:.2f} for the generated" in page
    assert f"unseen real images have {value['unseen', 'share_nearer_train']:.2f}" in page


def test_every_experiment_is_listed():
    page = (tiny.ROOT / "docs/experiments.md").read_text()
    for path in (tiny.ROOT / "experiments").glob("*.yaml"):
        assert f"| `{path.stem}` |" in page


@pytest.mark.slow
def test_the_library_in_a_notebook(finished):
    (code,) = blocks("library.md", "python")
    check = "assert generated.shape[0] == 10 == len(generated_labels) and generated.dtype == torch.uint8"
    finished.run(sys.executable, "-c", f"{code}\n{check}")


@pytest.mark.slow
def test_own_images_are_looked_at_and_exported(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    prepare_own_images(project.root)
    look, export = blocks("own_images.md", "bash")
    project.run("bash", "-e", "-c", export)
    assert len(list((project.root / "generated_images").rglob("*.png"))) == 60
    (settings,) = blocks("own_images.md", "yaml")
    project.set(**{f"data__{k}": v for k, v in re.findall(r"^  (\w+): (\S+)", settings, re.M)})
    project.run("bash", "-e", "-c", look)
    names = {p.parent.name for p in (project.root / "look_at_these").rglob("*.png")}
    assert names == {"cat", "dog"}


@pytest.mark.slow
def test_generated_images_open_in_hugging_face_datasets(finished, tmp_path):
    (code,) = blocks("own_images.md", "python")
    check = """
assert len(images) == 60 and images[0]["image"].size == (16, 16)
assert {"label", "source_id", "partner_id", "noise_std", "interpolation", "guidance_scale"} <= set(images.column_names)
assert images.features["label"].names[0] == "T-shirt/top"
"""
    env = {"HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    finished.run(sys.executable, "-c", code + check, **env)


@pytest.mark.slow
def test_gpu_page_sets_the_model_and_looks(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    shutil.copytree(tiny.ROOT / "presets", project.root / "presets")
    preset, look = blocks("gpu.md", "bash")
    project.run("bash", "-e", "-c", preset)
    assert "path: CompVis/stable-diffusion-v1-4" in (project.root / "params.yaml").read_text()
    project.run("git", "checkout", "params.yaml")
    small = look.replace("num_visits=200", "num_visits=3").replace("num_per_class=10", "num_per_class=2")
    project.run("bash", "-e", "-c", small)


@pytest.mark.slow
def test_experiments_run_queue_and_compare(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    prepare_own_images(project.root)
    shutil.copytree(tiny.ROOT / "presets", project.root / "presets")
    one, preset, queue, track, lists, compare, keep = blocks("experiments.md", "bash")
    project.run("bash", "-e", "-c", preset)
    assert "source: stl10" in (project.root / "params.yaml").read_text()
    project.run("git", "checkout", "params.yaml")
    project.run("bash", "-e", "-c", track)
    assert "my_images.dvc" in project.run("git", "ls-files").stdout
    project.run("git", "branch", "--move", "main")
    project.run("bash", "-e", "-c", one)
    project.run("git", "checkout", ".")
    project.run("bash", "-e", "-c", queue.replace("guidance_scale=1,2", "guidance_scale=2 -S invert.lr=0.2"))
    wait_for_queue(project)
    assert project.run("bash", "-e", "-c", lists).stdout.count("Queued experiment") == 3
    table = project.run("bash", "-e", "-c", compare).stdout
    assert table.count("Success") == 0 and "gain_over_real.mixed.mean" in table
    rows = list(csv.DictReader(io.StringIO(project.dvc("exp", "show", "--csv").stdout)))
    lambdas = {row["generate.noise_std"] for row in rows if row["top1_accuracy.mixed"]}
    assert lambdas >= {"0.5", "0.8", "1.0"}, table
    project.run("bash", "-e", "-c", keep)
    assert "noise_std: 0.8" in project.run("git", "show", "more-noise:params.yaml").stdout


def wait_for_queue(project):
    """Until both workers are through; every experiment of the queue must have succeeded."""
    for _ in range(300):
        status = project.dvc("queue", "status").stdout
        if "Running" not in status and "Queued" not in status:
            break
        time.sleep(2)
    assert status.count("Success") == 2, status


def image_set(class_names=("T-shirt/top", "dog"), ids=("a/1.png", "b#2", "c")):
    images = tiny.random_images(len(ids), channels=1)
    return ImageSet(images, np.array([0, 1, 1]), list(ids), list(class_names))


def test_exported_folder_has_the_same_pixels(tmp_path):
    save_image_set(image_set(), tmp_path / "set")
    assert export_image_folder(tmp_path / "set", tmp_path / "out") == 3
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png"))
    assert found == ["T-shirt_top/a_1.png.png", "dog/b_2.png", "dog/c.png"]
    pixels = np.asarray(image_folder.read_picture(tmp_path / "out/dog/c.png"))
    assert np.array_equal(pixels, load_image_set(tmp_path / "set").images[2].squeeze())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"class_names": ("a/b", "a b")}, "classes 'a/b' and 'a b' would share the folder 'a_b'"),
        ({"ids": ("x", "b#2", "b/2")}, "image 'b/2' and another would both be"),
    ],
)
def test_names_that_become_equal_are_refused(tmp_path, changed, message):
    save_image_set(image_set(**changed), tmp_path / "set")
    with pytest.raises(UserError, match=message):
        export_image_folder(tmp_path / "set", tmp_path / "out")


def test_an_existing_folder_is_not_written_into(tmp_path):
    save_image_set(image_set(), tmp_path / "set")
    with pytest.raises(UserError, match="exists already"):
        export_image_folder(tmp_path / "set", tmp_path)
