"""The page that `dvc plots show` writes, opened in headless Chromium without a network."""

import re
import shutil

import project as projects
import pytest
import tiny
import vl_convert
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FIGURES = "metrics/experiments/figures"
# DVC's page loads Vega from a content delivery network; the test puts the same libraries in its place.
LIBRARIES = "window.vegaEmbed = (place, spec) => vegaEmbed(place, spec, {renderer: 'svg', actions: false});"
TITLES = [
    k
    for plot in YAML(typ="safe").load((tiny.ROOT / "dvc.yaml").read_text())["plots"]
    if isinstance(plot, dict)
    for k in plot
]


def open_page(project, *command):
    """Run a DVC plots command; return the page as Chromium has drawn it."""
    project.dvc("plots", *command, "-o", "page")
    page = project.root / "page/index.html"
    text, count = re.subn(r'<script src="https://[^"]*"></script>', "", page.read_text())
    assert count == 3
    bundle = vl_convert.javascript_bundle(LIBRARIES, vl_version="5.20")
    (page.parent / "vega.js").write_text(f"(() => {{{bundle}}})()")
    page.write_text(text.replace("<head>", '<head><script src="vega.js"></script>', 1))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=20000",
        "--window-size=1400,6000",
    ]
    offline = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    profile = f"--user-data-dir={project.root / 'profile'}"
    drawn = project.run(
        CHROMIUM,
        *flags,
        *offline,
        profile,
        f"--screenshot={project.root}/page.png",
        "--dump-dom",
        f"file://{page}",
    )
    return drawn.stdout


def drawings(dom):
    """Title -> SVG."""
    found = re.findall(r'<div id="([^"]+)"[^>]*>(.*?)</svg>', dom, re.S)
    return {title.split("_class=")[0]: svg for title, svg in found}


def lines_of(svg):
    """What the lines of a drawing go through."""
    return re.findall(r'<path[^>]*aria-roledescription="line mark"[^>]* d="(M[^"]*)"', svg)


def anchor(title):
    return re.sub(r"[^\w-]", "_", title)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_every_plot_is_drawn_and_labelled(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    shutil.copytree(tiny.ROOT / FIGURES, project.root / FIGURES)
    dom = open_page(project, "show")
    found = drawings(dom)
    assert sorted(found) == sorted(anchor(title) for title in TITLES)
    for title, svg in found.items():
        assert "NaN" not in svg, title
    accuracies = next(svg for title, svg in found.items() if title.startswith("Test"))
    assert accuracies.count('aria-roledescription="point"') == 16  # arms x seeds x splits
    assert accuracies.count('aria-roledescription="tick"') == 8
    confusion = next(svg for title, svg in found.items() if title.startswith("Confusion"))
    for name in ("T-shirt/top", "Ankle boot"):
        assert confusion.count(name) >= 2, name  # on both axes
    panels = re.findall(r"<text[^>]*>([^<]*)</text>", confusion)
    assert [text for text in panels if text in projects.ARMS] == projects.ARMS, "a panel each, in order"
    curves = next(svg for title, svg in found.items() if title.startswith("Classifiers"))
    assert [line.count("L") > 3 for line in lines_of(curves)] == [True] * len(projects.ARMS)
    legend = [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", curves) if text in projects.ARMS]
    assert legend == projects.ARMS
    learned = next(svg for title, svg in found.items() if title.startswith("Learned"))
    assert len(lines_of(learned)) == 2 and all(
        k in learned for k in ("training", "heldout", *tiny.PARAMS.invert)
    )
    images = {project.root / "page" / name for name in re.findall(r'<img src="([^"]*)"', dom)}
    committed = [project.root / "metrics/grid.png", *(project.root / FIGURES).iterdir()]
    assert len(committed) > 1
    assert sorted(p.read_bytes() for p in images) == sorted(p.read_bytes() for p in committed)
    assert (project.root / "page.png").stat().st_size > 20_000


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_two_runs_are_drawn_over_each_other(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    project.set(train__cnn__lr=0.02)
    project.repro()
    curves = next(
        svg for t, svg in drawings(open_page(project, "diff", "HEAD")).items() if t.startswith("Classifiers")
    )
    assert "HEAD" in curves and "workspace" in curves
