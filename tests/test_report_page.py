"""dinv report: its numbers are those of the files, what is missing is named, and a browser shows it all."""

import html as htmllib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import runs
import tiny
from test_plots import CHROMIUM

from dinv.cli import main
from dinv.errors import UserError
from dinv.files import file_digest
from dinv.images.image_set import load_image_set
from dinv.report import facts, pictures
from dinv.report.charts import Axis, axis_of, bar_chart, line_chart
from dinv.report.contents import read_run
from dinv.report.files import Workspace
from dinv.report.run import escape_markdown
from dinv.report.verdict import Difference, Verdict, chosen_by_validation, verdicts

BOLD = "&lt;b&gt;bold&lt;/b&gt; &amp; co"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run; copy it before changing it."""
    return runs.make(tmp_path_factory.mktemp("runs") / "made")


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of the run as the current folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def report(here, *arguments):
    main(["report", *arguments])
    return (here / "report.html").read_text()


def words(page):
    """What a reader sees: no tags, no style, one space between words."""
    page = re.sub(r"<style>.*?</style>", " ", page, flags=re.S)
    return htmllib.unescape(" ".join(re.sub(r"<[^>]+>", " ", page).split()))


def cells(page, first):
    """Texts of the first table row that starts with this cell."""
    rows = [
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in re.findall(r"<tr>.*?</tr>", page, re.S)
    ]
    return next([htmllib.unescape(cell) for cell in row] for row in rows if row and row[0] == first)


def test_interval_known_answer():
    """Of 1, 2, 3: t = 4.303 with two degrees of freedom, times 1 / sqrt(3)."""
    found = Difference(2.0, 1 / np.sqrt(3), 3)
    assert found.low == pytest.approx(2 - 2.4841, abs=1e-4) and found.high == pytest.approx(4.4841, abs=1e-4)


@pytest.mark.parametrize(
    ("mean", "stderr", "n", "answer", "said"),
    [
        (
            3.0,
            0.5,
            3,
            "Yes",
            "mixed is 3.00 points of test accuracy above real (95 % interval +0.85 to +5.15,",
        ),
        (-3.0, 0.5, 3, "No", "below real (95 % interval −5.15 to −0.85, over 3 classifier seeds)."),
        (1.0, 0.5, 3, "Unclear", "above real, but the 95 % interval −1.15 to +3.15 over 3 classifier seeds"),
        (
            9.0,
            float("nan"),
            1,
            "Unclear",
            "above real, by one classifier seed: how far seeds differ is not known",
        ),
    ],
)
def test_verdict_is_as_sure_as_its_interval(mean, stderr, n, answer, said):
    verdict = Verdict("mixed", "real", Difference(mean, stderr, n))
    assert verdict.answer == answer and said in verdict.sentence


def test_headline_arm_is_chosen_on_validation_never_on_test():
    rows = [("real", 0, "test", 50.0), ("a", 0, "test", 99.0), ("b", 0, "test", 40.0)]
    rows += [("real", 0, "val", 50.0), ("a", 0, "val", 30.0), ("b", 0, "val", 60.0)]
    scores = pd.DataFrame(rows, columns=["arm", "seed", "split", "top1_accuracy"])
    found = verdicts(scores, {"a": "real", "b": "real"})
    assert [v.arm for v in found] == ["a", "b"] and chosen_by_validation(scores, found).arm == "b"
    assert chosen_by_validation(scores[scores["split"] == "test"], found) is None


def test_numbers_on_the_page_are_those_of_the_files(here):
    page = report(here)
    assert "Yes. mixed is 2.83 points of test accuracy above real (95 % interval +0.94" in words(page)
    assert "Unclear. synthetic is" in words(page)
    assert cells(page, "mixed") == [
        "mixed",
        "73.83 ± 0.76 (3)",
        "+2.83 (+0.94 to +4.73)",
        "18",
        "real images and inversion, cnn",
        "76.00 ± 1.00 (3)",
        "73.33 ± 0.76 (3)",
        "5.00 ± 0.00 (3)",
    ]
    assert cells(page, "real")[1:3] == ["71.00 ± 1.00 (3)", ""]
    assert cells(page, "T-shirt/top") == ["T-shirt/top", "40", "71.00", "88.83", "+17.83 (+15.94 to +19.73)"]
    assert "9 are wrong before, 8 after" in words(page)
    changes = re.findall(
        r"<td>([^<]*)</td><td class=\"n\">(\d+)</td><td class=\"n\">(\d+)</td><td class=\"n\">([+−]\d+)</td>",
        page,
    )
    assert changes == [("a|b *x*", "7", "3", "−4"), ("T-shirt/top", "2", "0", "−2"), (BOLD, "0", "5", "+5")]
    assert "20 labelled images per class, 129 test images of 3 classes." in words(page)
    assert "1.250 ± 0.010" in page and "0.625 ± 0.010" in page
    assert cells(page, "train@mixed")[1:3] == ["3 classifiers, 800 steps of 64 images each", "1.5 MB"]
    # 12 images of 6 passes each
    assert cells(page, "generate@inversion")[1:] == [
        "12 images, 72 passes of an image through the UNet",
        "2.5 MB",
        "unknown",
    ]


def test_the_page_is_one_file_that_asks_for_nothing(here):
    runs.add_pilot(here)
    page = report(here)
    assert "<b>bold" not in page and page.count(BOLD) > 5 and "<script" not in page
    assert "cannot tell &lt;i&gt;yet&lt;/i&gt;" in page and "Label more images." in page
    assert cells(page, "20") == ["20", "70.0 (69.0 to 71.0)", "72.0 (70.0 to 74.0)", "+2.0 (−1.0 to 5.0)"]
    assert 'alt="Figure of the pilot first"' in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) > 30 and all(s.startswith("data:image/") for s in sources)
    assert not re.findall(r'url\(|<link|@import|src="http', page)
    assert all(re.findall(r'alt="([^"]*)"', tag) not in ([], [""]) for tag in re.findall("<img[^>]*>", page))
    assert all('scope="' in tag for tag in re.findall(r"<th[^e>]*>", page))
    assert len(page) < 1_000_000
    assert page == report(here), "equal runs give equal bytes"


def test_doubt_is_what_classifiers_of_real_images_say(here):
    judged = read_run(Workspace(here, "w")).judged
    images = load_image_set(here / "data/generated/inversion")
    import torch

    every = [runs.classifier(s).predict_proba(images.tensor(), torch.device("cpu")) for s in (0, 1)]
    confidence = np.mean(every, axis=0)[np.arange(12), images.labels]
    order = np.argsort(confidence)
    assert judged.num == 12 and judged.classifiers == 2
    assert [one.image.alt.split(", ")[-1] for one in judged.doubted] == [images.ids[i] for i in order]
    assert f": {100 * confidence[order[0]]:.0f} %" in judged.doubted[0].caption
    assert judged.sure[0].image.alt.endswith(images.ids[order[-1]])


def test_a_copy_of_a_training_image_comes_first(here):
    nearest = read_run(Workspace(here, "w")).nearest
    assert nearest.pairs[0].caption.endswith("distance 0.00, not its source")
    assert nearest.pairs[0].image.alt.endswith("real-4#1")
    assert nearest.pairs[0].source.alt.startswith("nearest: real") and nearest.pairs[0].source.alt.endswith(
        "real-0"
    )


def test_pictures_show_source_partner_and_image(here):
    first = read_run(Workspace(here, "w")).pairs[0]
    assert (first.source.alt, first.partner.alt) == (
        "source: real <b>bold</b> & co, real-0",
        "partner: real <b>bold</b> & co, real-3",
    )
    assert first.caption == "<b>bold</b> & co, a 0.25, s 2.00"


LOST = {
    "metrics/class_accuracy.csv": "metrics/class_accuracy.csv: no such file; run dvc repro, or dvc pull",
    "metrics/confusion.csv": "metrics/confusion.csv: no such file",
    "metrics/classifier_loss.csv": "metrics/classifier_loss.csv: no such file",
    "metrics/learned_loss.csv": "metrics/learned_loss.csv: no such file",
    "metrics/grid.png": "metrics/grid.png: no such file",
    "metrics/image_sets": "metrics/image_sets/domain.csv: no such file",
    "data/classifiers": "data/classifiers/real: no such folder",
    "data/features": "data/features/domain/inversion: no such folder",
    "dvc.lock": "dvc.lock: no such file",
}


@pytest.mark.parametrize(
    "lost", [LOST, {"data/generated": "data/generated/inversion: no such folder; run dvc repro, or dvc pull"}]
)
def test_what_is_missing_is_named_and_the_rest_is_shown(here, capsys, lost):
    for name in lost:
        path = here / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page, said = report(here), capsys.readouterr().out
    assert "Yes." in page and cells(page, "real")[1] == "71.00 ± 1.00 (3)"
    for named in lost.values():
        assert named in htmllib.unescape(page) and named in said


def test_damaged_files_are_named(here):
    (here / "metrics/confusion.csv").write_text("arm,actual\nreal,x\n")
    (here / "data/generated/inversion/part-00000.parquet").write_bytes(b"no")
    page = report(here)
    assert "metrics/confusion.csv: has no column predicted" in page
    assert "part-00000.parquet" in page


@pytest.mark.parametrize("lost", ["params.yaml", "metrics/accuracy.csv"])
def test_without_a_run_there_is_one_line(here, lost):
    (here / lost).unlink()
    with pytest.raises(SystemExit, match=rf"^dinv report: {lost}: no such file; run dvc repro"):
        report(here)


def test_parameters_newer_than_results_are_told(here):
    text = (here / "params.yaml").read_text()
    assert "has changed since" not in report(here)
    (here / "params.yaml").write_text(text.replace("num_steps: 800", "num_steps: 900"))
    assert "before: train@mixed. Run dvc repro." in report(here)


def test_time_is_the_median_between_finished_parts_times_their_number(here):
    """A pause before the last of four does not count; without its parts a stage has no time."""
    outputs, store = here / "data/generated/inversion", here / ".scratch/generated"
    (outputs / "part-00000.parquet").unlink()
    store.mkdir(parents=True)
    for i, moment in enumerate((100, 110, 122, 5000)):
        (outputs / f"part-0000{i}.parquet").write_bytes(bytes([i]))
        (store / f"{i}.part").write_bytes(bytes([i]))
        digest = file_digest(store / f"{i}.part")
        (store / f"{i}.json").write_text(json.dumps({"sha256": digest, "images": []}))
        os.utime(store / f"{i}.part", (moment, moment))
    (store / "other.part").write_bytes(b"of another run, without a sidecar")
    assert cells(report(here), "generate@inversion")[-1] == "about 48 s"
    (store / "3.part").unlink()
    assert cells(report(here), "generate@inversion")[-1] == "unknown"


def test_licences_are_read_where_they_stand(here):
    page = report(here)
    assert cells(page, "model")[1:] == [
        "models/fashion-ldm",
        "creativeml-openrail-m",
        "models/fashion-ldm/README.md",
    ]
    assert "Creative Commons Attribution 4.0" in cells(page, "data")[2]
    assert "medical advice" in page
    (here / "models/fashion-ldm/README.md").write_text("# A model\n")
    page = report(here)
    assert cells(page, "model")[2] == "unknown" and "medical advice" not in page


def test_a_model_of_the_hub_has_an_unknown_licence_and_a_link(here):
    shutil.copy(tiny.ROOT / "models/stable-diffusion-v1-4.yaml", here / "models")
    path = "models/stable-diffusion-v1-4.yaml"
    found = facts.licences(Workspace(here, "w"), {"model": {"path": path}})
    assert [(x.licence, x.url) for x in found] == [
        ("unknown", "https://huggingface.co/CompVis/stable-diffusion-v1-4")
    ]
    assert found[0].restricts_use


def test_against_a_folder_shows_both(here, tmp_path):
    other = runs.make(
        tmp_path / "other", test={**runs.TEST, "mixed": (70.0, 70.5, 71.0)}, train__cnn__lr=0.05
    )
    page = report(here, "--against", str(other))
    assert cells(page, "train.cnn.lr") == ["train.cnn.lr", "0.1", "0.05"]
    comparison = page[page.index('id="comparison"') :]
    assert cells(comparison, "mixed") == ["mixed", "73.83", "70.50", "+3.33 (+1.90 to +4.77)"]
    assert "mixed is 2.83 points" in page and "mixed is 0.50 points of test accuracy below real" in page
    assert page.count('<img class="grid"') == 2


def test_other_data_are_warned_of(here, tmp_path):
    page = report(here, "--against", str(runs.make(tmp_path / "other", data__num_test=10)))
    assert "The data differ (data.num_test)" in page


def test_against_a_revision_reads_git_and_dvc(here, tmp_path):
    """Pictures come from DVC's cache; what is not there is named."""
    run = lambda *command: subprocess.run(command, cwd=here, check=True, capture_output=True)  # noqa: E731
    dvc = (sys.executable, "-m", "dvc")
    run("git", "init", "-q")
    run(*dvc, "init", "-q")
    run(*dvc, "add", "-q", "data/generated/inversion", "data/real/train")
    run("git", "add", ".")
    run("git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "one")
    run("git", "tag", "first")
    accuracy = (here / "metrics/accuracy.csv").read_text()
    (here / "metrics/accuracy.csv").write_text(accuracy.replace("test,73.0", "test,70.0"))
    page = report(here, "--against", "first")
    comparison = page[page.index('id="comparison"') :]
    assert cells(comparison, "mixed")[1:3] == ["72.83", "73.83"]
    assert page.count('alt="source: real') > 40, "pictures of both"
    with pytest.raises(
        SystemExit, match=r"--against absent: no revision, experiment or folder with a params"
    ):
        main(["report", "--against", "absent"])


def test_markdown_has_the_same_numbers_and_escapes_names(here):
    main(["report", "--markdown"])
    text = (here / "report.md").read_text()
    assert "**Yes.** mixed is 2.83 points of test accuracy above real" in text
    assert "| mixed | 18 | 73.83 ± 0.76 (3) | +2.83 (+0.94 to +4.73) | 76.00 ± 1.00 (3) |\n" in text
    assert "| a\\|b \\*x\\* | 71.00 | 78.83 |" in text and "<b>" not in text
    assert "](metrics/grid.png)" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (4, 5, 6) for row in rows)
    main(["report", "--markdown", "--output", "deep/down/x.md"])
    assert "](../../metrics/grid.png)" in (here / "deep/down/x.md").read_text()


def test_markdown_escapes():
    assert escape_markdown("a\n<b>|*_`[x]&") == "a &lt;b&gt;\\|\\*\\_\\`\\[x\\]&amp;"


def test_axes_known_answers():
    assert [t.label for t in Axis(0, 10, 0, 100).ticks()] == ["0", "2", "4", "6", "8", "10"]
    assert [t.label for t in Axis(-0.11, 0.1, 0, 100).ticks()] == ["−0.10", "−0.05", "0.00", "0.05", "0.10"]
    flat = axis_of([5.0], 0, 10)
    assert flat.low < 5 < flat.high
    chart = bar_chart({"a": (2.0, 1.0, 3.0), "b": (-1.0, None, None)}, "x")
    assert chart.rows[0].value > chart.zero > chart.rows[1].value and chart.rows[1].low is None
    (line,) = line_chart({"l": ([0, 10], [1.0, 2.0])}, "x", "y").lines
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.points.split())
    assert x0 < x1 and y0 > y1, "up is up"


def test_large_pictures_become_small():
    shown = pictures.picture(tiny.random_images(1, side=512)[0], "x")
    assert shown.src.startswith("data:image/webp") and len(shown.src) < 30_000


def test_no_revision_outside_a_repository(here):
    with pytest.raises(SystemExit, match="--against HEAD: no revision"):
        main(["report", "--against", "HEAD"])


def test_a_pilot_that_is_damaged_is_named(here):
    runs.add_pilot(here)
    (here / "metrics/pilot/first.json").write_text(json.dumps({"sentence": "x"}))
    assert "metrics/pilot/first.json: not a pilot" in htmllib.unescape(report(here))


def test_a_folder_is_no_output(here):
    with pytest.raises(UserError, match="--output metrics: is a folder"):
        from dinv.report.run import write_report

        write_report(here.relative_to(here) / "metrics", None, False)


def browsed(page, tmp_path):
    """(DOM, console) of a page in Chromium, without a network."""
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
    ]
    flags += [
        "--enable-logging=stderr",
        "--virtual-time-budget=5000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", f"file://{page}"]
    done = subprocess.run([CHROMIUM, *flags], capture_output=True, text=True, check=True, timeout=300)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_all_and_asks_for_nothing(here, tmp_path):
    page = report(here)
    dom, console = browsed(here / "report.html", tmp_path)
    assert console == [] and dom.count("<polyline") == 5 and dom.count("<section") == 11
    # The page itself may run no script, so a copy without that rule counts what has loaded.
    probe = """<script>addEventListener("load", () => {
        const all = [...document.images], loaded = all.filter(image => image.naturalWidth > 0).length;
        const asked = performance.getEntriesByType("resource").filter(x => !x.name.startsWith("data:")).length;
        document.title = `${loaded} of ${all.length} loaded, ${asked} asked for, `
            + `${document.documentElement.scrollWidth <= innerWidth ? "fits" : "too wide"}`;
        console.log("seen");
    })</script></body>"""
    copy = re.sub(r"<meta http-equiv=[^>]*>", "", page).replace("</body>", probe)
    (tmp_path / "probe.html").write_text(copy)
    dom, console = browsed(tmp_path / "probe.html", tmp_path)
    number = page.count("<img")
    assert f"<title>{number} of {number} loaded, 0 asked for, fits</title>" in dom
    assert len(console) == 1, "what is logged would have been seen"


@pytest.mark.slow
def test_commands_of_the_page_about_it_work(finished, tmp_path):
    """docs/report.md, on a run that the pipeline has made; CML is a stand-in that looks for its file."""
    project = finished.copy(tmp_path / "copy")
    project.run("git", "branch", "--move", "main")
    one, two, pull_request = re.findall(
        r"```bash\n(.*?)```", (tiny.ROOT / "docs/report.md").read_text(), re.S
    )
    assert "not shown" not in project.run("bash", "-e", "-c", one).stdout
    page = (project.root / "report.html").read_text()
    scores = pd.read_csv(project.root / "metrics/accuracy.csv").query("arm == 'mixed' and split == 'test'")
    assert cells(page, "mixed")[1].startswith(f"{scores['top1_accuracy'].mean():.2f} ± ")
    assert "not shown" not in project.run("bash", "-e", "-c", two).stdout
    both = (project.root / "lambda-0.8.html").read_text()
    assert cells(both, "generate.inversion.noise_std")[1:] == ["0.8", "1.5"]
    stub = tmp_path / "bin/cml"
    stub.parent.mkdir()
    stub.write_text('#!/bin/bash\n[ "$1 $2 $3" = "comment create --publish" ] && test -s "$4"\n')
    stub.chmod(0o755)
    path = f"{stub.parent}:{project.env()['PATH']}"
    project.run("bash", "-e", "-c", pull_request, PATH=path)
    assert "## Comparison" in (project.root / "comment.md").read_text()
    code = """
from pathlib import Path
from dinv.report.files import Revision
assert b"noise_std: 0.8" in Revision("lambda-0.8", Path("copies")).read("params.yaml")
assert list(Revision("lambda-0.8", Path("copies")).folder("data/generated/inversion").glob("part-*"))
"""
    project.run("python3", "-c", code)
