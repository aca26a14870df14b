"""The commands and code of docs/ work, what they show is what files say, and their links lead somewhere."""

import csv
import io
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
import tiny
from cogapp import Cog
from ruamel.yaml import YAML
from test_readme import prepare_own_images

from dinv.errors import UserError
from dinv.images.export import export_image_folder
from dinv.images.image_set import ImageSet, load_image_set, save_image_set
from dinv.params import parse_params, read_yaml
from dinv.sources import image_folder

DOCS = tiny.ROOT / "docs"
PAGES = [tiny.ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.S)


def anchors(page):
    """What GitHub makes of a page's headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@EACH_PAGE
def test_linked_and_named_files_exist(page):
    text = page.read_text()
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), (target, anchor)
    for target in re.findall(r"`((?:tests|dinv|stages|benchmarks|docs|models)/[\w/.]+)`", text):
        assert (tiny.ROOT / target.replace("NAME", "base")).exists(), target


def test_files_name_pages_that_exist():
    tracked = subprocess.run(["git", "ls-files"], cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    found = [tiny.ROOT / name for name in tracked.stdout.splitlines()] or list(tiny.ROOT.glob("*.*"))
    texts = [p for p in found if p.suffix in {".py", ".yaml", ".md", ".toml"} and p.is_file()]
    for path in texts:
        for target in re.findall(r"\bdocs/\w+\.(?:md|png|csv)", path.read_text()):
            assert (tiny.ROOT / target).exists(), (path, target)


@pytest.fixture
def shown(monkeypatch):
    """The module that pages import, which reads files as they lie."""
    monkeypatch.syspath_prepend(DOCS)
    import shown

    return shown


def cogged(page):
    return Cog().process_string(page.read_text(), str(page))


def as_committed(path):
    """A file in git's last commit; as it lies where there is no such."""
    command = ["git", "show", f"HEAD:./{path}"]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else (tiny.ROOT / path).read_text()


def is_fresh(page, shown, monkeypatch):
    """Whether it shows files as they lie, as before a commit; or as they are committed: `make repro` on
    another processor writes other numbers.
    """
    if cogged(page) == page.read_text():
        return True
    monkeypatch.setattr(shown, "read", as_committed)
    return cogged(page) == page.read_text()


@EACH_PAGE
def test_what_is_shown_is_what_files_say(page, shown, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    assert is_fresh(page, shown, monkeypatch), f"{page.name} is out of date: run make pages"


@EACH_PAGE
def test_everything_to_be_shown_is_shown(page):
    """Code on the line of cog's first mark would be ignored, unless its second mark is there too."""
    for code, output in re.findall(
        r"\[\[\[cog(.*?)\]\]\] -->\n(.*?)<!-- \[\[\[end\]\]\]", page.read_text(), re.S
    ):
        assert bool(output) == ("cog.outl" in code), code


def test_a_table_that_differs_is_noticed(shown, monkeypatch, tmp_path):
    monkeypatch.chdir(tiny.ROOT)
    page = tmp_path / "README.md"
    page.write_text((tiny.ROOT / "README.md").read_text().replace("| real | 200 |", "| real | 201 |"))
    assert not is_fresh(page, shown, monkeypatch)


def test_a_table_that_make_repro_wrote_anew_is_not(shown, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    page, name, read = tiny.ROOT / "README.md", "metrics/table.md", shown.read
    other = as_committed(name).replace("real", "elsewhere")
    monkeypatch.setattr(shown, "read", lambda path: other if path == name else read(path))
    assert cogged(page) != page.read_text()
    assert is_fresh(page, shown, monkeypatch)


def test_committed_results_are_shown():
    texts = "".join(page.read_text() for page in PAGES)
    for path in (tiny.ROOT / "metrics").rglob("*.md"):
        assert f'table("{path.relative_to(tiny.ROOT)}")' in texts, path


def test_columns_known_answer(shown):
    table = "| a | b |\n|---|---|\n| 2 | 3 |\n| 4 | 5 |"
    assert shown.only(table, "b") == "| b |\n|---|\n| 3 |\n| 5 |"
    assert shown.turned(table) == "| a | 2 | 4 |\n|---|---|---|\n| b | 3 | 5 |"


def test_means_known_answer(shown, monkeypatch):
    monkeypatch.setattr(
        shown, "read", lambda path: "k,arm,split,value\n9,b,x,1\n9,b,x,2\n9,a,x,5\n10,a,x,3\n9,a,y,7\n"
    )
    assert shown.means("", ["k"], split="x") == (
        "| k | b | a |\n|---|---|---|\n| 9 | 1.5 (2) | 5.0 |\n| 10 |  | 3.0 |"
    )
    assert shown.number("", "value", arm="a", split="x") == 4


def test_a_calibration_known_answer(shown, monkeypatch):
    """Full runs say 2 and 4; the means 1 and 3 have a standard deviation of sqrt(2)."""
    files = {
        "calibration": "seed,k,mean,low,high,truth,verdict,covered\n"
        "0,8,1.0,-2.0,4.0,3.0,cannot tell,True\n1,8,3.0,1.0,2.5,3.0,yes,False\n",
        "runs": "seed,k,without a,with a\n7,8,50.0,52.0\n8,8,50.0,54.0\n",
    }
    monkeypatch.setattr(shown, "read", lambda path: files[path.partition("-")[2].removesuffix(".csv")])
    text = shown.calibration("x", 3)
    assert text.startswith("2 full runs with 8 labelled images per class: generated images add +3.0 points, ")
    assert (
        "standard error 1.0." in text and "**1 of 2 intervals cover that.** They are 3.8 points wide" in text
    )
    assert "deviation of 1.4 points, so that about 6 would be enough. 1 of 3 pilots have not been run" in text
    assert "| choice 1 | +3.0 (1.0 to 2.5) | yes | no |" in text


def written(page):
    """A page without what cog makes."""
    return re.sub(r"<!-- \[\[\[cog.*?<!-- \[\[\[end\]\]\] -->", "", page.read_text(), flags=re.S)


def test_pages_with_commands_are_those_that_are_tested():
    """The tests below and test_readme, test_remote, test_report_page and test_export_hub run all their blocks."""
    found = {lang: {p.name for p in PAGES if f"```{lang}" in written(p)} for lang in ("bash", "python")}
    assert found == {
        "bash": {
            "README.md",
            "own_images.md",
            "running_large.md",
            "experiments.md",
            "exporting.md",
            "sharing.md",
            "report.md",
        },
        "python": {"exporting.md", "method.md", "own_images.md"},
    }


@EACH_PAGE
def test_parameters_on_pages_are_valid(page):
    for block in re.findall("```yaml\n(.*?)```", written(page), re.S):
        params = read_yaml(tiny.ROOT / "params.yaml")
        for section, values in YAML(typ="safe").load(block).items():
            update(params[section], values)
        parse_params(params)


def update(old, new):
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            update(old[key], value)
        else:
            old[key] = value


@pytest.mark.slow
def test_from_python_in_a_notebook(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    (code,) = blocks("method.md", "python")
    check = "assert generated.shape[0] == 10 == len(generated_labels) and generated.dtype == torch.uint8"
    project.run("python3", "-c", f"{code}\n{check}")


@pytest.mark.slow
def test_own_images_are_looked_at_and_exported(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    prepare_own_images(project.root)
    init, look, checks, export = blocks("own_images.md", "bash")
    project.run("bash", "-e", "-c", export)
    assert len(list((project.root / "generated_images").rglob("*.png"))) == 60
    assert "data.root: tinydata -> my_images" in project.run("bash", "-e", "-c", init).stdout
    project.run("bash", "-e", "-c", look)
    assert "10 images, " in project.run("bash", "-e", "-c", checks).stdout
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
    finished.run("python3", "-c", code + check, **env)


@pytest.mark.slow
def test_running_large_sets_the_model_and_looks(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    shutil.copytree(tiny.ROOT / "presets", project.root / "presets")
    preset, look = blocks("running_large.md", "bash")
    project.run("bash", "-e", "-c", preset)
    assert "path: models/stable-diffusion-v1-4.yaml" in (project.root / "params.yaml").read_text()
    project.run("git", "checkout", "params.yaml")
    small = look.replace("num_visits=200", "num_visits=3").replace("num_per_class=10", "num_per_class=2")
    project.run("bash", "-e", "-c", small)


@pytest.mark.slow
def test_what_makes_no_difference_can_be_recorded_under_new_code(finished, tmp_path):
    """sharing.md: for those who have outputs and no finished parts."""
    project = finished.copy(tmp_path / "copy")
    assert "`dvc commit --force`" in (DOCS / "sharing.md").read_text()
    with (project.root / "dinv/inversion/invert.py").open("a") as file:
        file.write("# A comment.\n")
    assert "modified" in project.dvc("status").stdout
    project.dvc("commit", "--force")
    assert "up to date" in project.dvc("status").stdout


@pytest.mark.slow
def test_experiments_run_queue_and_compare(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    prepare_own_images(project.root)
    one, preset, queue, track, lists, compare, keep = blocks("experiments.md", "bash")
    project.run("bash", "-e", "-c", preset)
    assert "source: stl10" in (project.root / "params.yaml").read_text()
    project.run("git", "checkout", "params.yaml")
    project.run("bash", "-e", "-c", track)
    assert "my_images.dvc" in project.run("git", "ls-files").stdout
    project.run("git", "branch", "--move", "main")
    project.run("bash", "-e", "-c", one)
    project.run("git", "checkout", ".")
    smaller = queue.replace("guidance_scale=1,2", "guidance_scale=2 -S invert.embeddings.lr=0.2")
    project.run("bash", "-e", "-c", smaller)
    wait_for_queue(project)
    assert project.run("bash", "-e", "-c", lists).stdout.count("Queued experiment") == 4
    table = project.run("bash", "-e", "-c", compare).stdout
    assert table.count("Success") == 0 and "gain_over_real.mixed.mean" in table
    rows = list(csv.DictReader(io.StringIO(project.dvc("exp", "show", "--csv").stdout)))
    lambdas = {row["generate.inversion.noise_std"] for row in rows if row["top1_accuracy.mixed"]}
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


def test_the_best_over_several_experiments_known_answer(shown, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    alone = shown.table("metrics/experiments/fair_fight.md").split("\n\n")[1]
    assert shown.best_of("fair_fight") == alone
    assert shown.only(alone, "n") == "| n |\n|---|\n| 5 |\n| 5 |\n| 5 |"
    # An arm that is picked, for it is surest on validation images, and then wrong on every test image.
    read, name = shown.read, "metrics/experiments/fair_fight_finetuned.csv"
    picked = re.sub(r"(_finetune,val,0,,top1_accuracy),.*", r"\1,100.0", read(name))
    picked = re.sub(r"(_finetune,test,0,,top1_accuracy),.*", r"\1,1.5", picked)
    monkeypatch.setattr(shown, "read", lambda path: picked if path == name else read(path))
    for line in shown.best_of("fair_fight", "fair_fight_finetuned").splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[2:] == [
            "1.50",
            "1.50",
            "+0.00 (+0.00 to +0.00)",
            "+0.00 (+0.00 to +0.00)",
            "5",
            "real_finetune 5",
            "mixed_finetune 5",
        ]


def test_differences_between_cells_known_answer(shown, monkeypatch):
    values = {("a", 0): 50, ("a", 1): 60, ("b", 0): 51, ("b", 1): 63}
    rows = [f"{cell},{seed},mixed,val,top1_accuracy,{v}" for (cell, seed), v in values.items()]
    other = ["b,0,mixed,test,top1_accuracy,0", "b,0,real,val,top1_accuracy,0", "b,0,mixed,val,loss,0"]
    text = "\n".join(["cell,data.seed,arm,split,metric,value", *rows, *other])
    monkeypatch.setattr(shown, "read", lambda path: text)
    assert shown.differences("", "mixed", "val", "a").splitlines()[2:] == [
        "| b | +2.00 ± 1.00 | +1.0, +3.0 |"
    ]


@pytest.mark.parametrize("has_cells", [True, False])
def test_what_each_step_adds_known_answer(shown, monkeypatch, has_cells):
    values = {("a", 0): 50, ("a", 1): 60, ("b", 0): 51, ("b", 1): 63, ("c", 0): 50, ("c", 1): 63}
    rows = [f"x,{seed},{arm},val,top1_accuracy,{v}" for (arm, seed), v in values.items()]
    rows += ["x,0,a,test,top1_accuracy,0", "x,0,a,val,loss,0"]
    lines = ["cell,data.seed,arm,split,metric,value", *rows]
    text = "\n".join(lines if has_cells else [line.partition(",")[2] for line in lines])
    monkeypatch.setattr(shown, "read", lambda path: text)
    found = shown.steps("", "val", ["a", "b", "c"], ["first", "second"], "" if has_cells else "x")
    assert found.splitlines()[0] == "| cell | first | second |"
    assert found.splitlines()[2:] == ["| x | +2.00 ± 1.00 | -0.50 ± 0.50 |"]


@pytest.fixture
def of_methods(shown, monkeypatch):
    """Two choices of labelled images in two cells, some image sets of two sizes."""
    monkeypatch.chdir(tiny.ROOT)
    accuracy = {"real": (50, 60), "mixed": (52, 66), "genie": (49, 60)}
    rows = [
        f"{cell},{seed},{arm},{split},0,,top1_accuracy,{values[seed] + (cell == 'b')}"
        for cell in "ab"
        for arm, values in accuracy.items()
        for seed in (0, 1)
        for split in ("val", "test")
        if split == "test" or arm != "real"
    ]
    sets = {
        ("inversion", 500): (0.5, 0.7),
        ("inversion", 50): (0, 0),
        ("genie", 50): (1, 1),
        ("unseen", 500): (1, 1),
    }
    rows += [
        f"{cell},{seed},{images},,,{n},domain.{metric},{values[seed]}"
        for cell in "ab"
        for (images, n), values in sets.items()
        for seed in (0, 1)
        for metric in ("coverage", "recall")
    ]
    text = "\n".join(["cell,data.seed,arm,split,seed,num_images,metric,value", *rows])
    read, name = shown.read, "metrics/experiments/methods.csv"
    monkeypatch.setattr(shown, "read", lambda path: text if path == name else read(path))
    experiment, arms = shown._experiment("methods")
    few = experiment.model_copy(update={"arms": ["real", "mixed", "genie"]})
    monkeypatch.setattr(shown, "_experiment", lambda name: (few, arms))
    return shown


def test_the_sheet_of_methods_known_answer(of_methods):
    assert of_methods.sheet("methods", "b").splitlines()[2:] == [
        "| mixed | +4.00 ± 2.00 |  |  |  | 0.60 |  | 0.60 |  |",
        "| genie | -0.50 ± 0.50 |  |  |  |  |  |  |  |",
        "| unseen |  |  |  |  | 1.00 |  | 1.00 |  |",
    ]


def test_what_others_found_known_answer(of_methods):
    """4 ± 2 in both cells: 2, 6, 2 and 6, whose interval is 4 ± 3.18 x 1.155."""
    claims = [("more", "mixed", "real"), ("less", "real", "mixed"), ("none", "genie", "real")]
    assert of_methods.orderings("methods", claims).splitlines()[2:] == [
        "| more | +4.00 ± 2.00 | +4.00 ± 2.00 | +0.3 to +7.7 | yes |",
        "| less | -4.00 ± 2.00 | -4.00 ± 2.00 | -7.7 to -0.3 | no |",
        "| none | -0.50 ± 0.50 | -0.50 ± 0.50 | -1.4 to +0.4 | open |",
    ]
