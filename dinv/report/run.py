"""The command `dinv report`: read one run or two, write one file."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dinv.errors import UserError
from dinv.files import atomic_write
from dinv.report.compare import Comparison, compared
from dinv.report.contents import MEMORISATION, Missing, Run, read_run
from dinv.report.files import Files, Revision, Workspace, is_project, opened
from dinv.report.verdict import NOT_COVERED

GRID = Path("metrics/grid.png")
OPENRAIL = (
    "OpenRAIL licences restrict use. That of Stable Diffusion 1.x and 2.x lists what is forbidden, giving "
    "medical advice and interpreting medical results among it; that holds for models derived from it and for "
    "what is done with generated images too. Read the model's licence before you use them."
)


def write_report(output: Path | None, against: str | None, as_markdown: bool) -> Path:
    """Write the page of the run in this folder; return where.

    Args:
        output: the file; report.html or report.md if None.
        against: a git revision, an experiment of DVC or a folder with another run.
        as_markdown: Markdown instead of HTML.

    Raises:
        UserError: there is no run here or there, or the file cannot be written.
    """
    target = output or Path("report.md" if as_markdown else "report.html")
    if target.is_dir():
        raise UserError(f"--output {target}: is a folder; name a file")
    runs = [read_run(Workspace(Path(), "workspace"))]
    if against is not None:
        with opened(against) as copies:
            runs.append(read_run(_other(against, copies)))
    for run in runs:
        for section, reason in run.missing.items():
            print(f"not shown: {section} of {run.name}: {reason}")
    text = markdown(runs, target) if as_markdown else html(runs)
    with atomic_write(target) as temporary:
        temporary.write_text(text)
    return target


def _other(against: str, copies: str | None) -> Files:
    if is_project(Path(against)):
        return Workspace(Path(against), against)
    assert copies is not None
    return Revision(against, Path(copies))


def html(runs: Sequence[Run]) -> str:
    """The page; everything that is put into it is escaped."""
    return _environment(autoescape=True).get_template("page.html.j2").render(_values(runs))


def markdown(runs: Sequence[Run], target: Path) -> str:
    """The same for a comment or a README: the grid is a link to its file, as there are no other pictures."""
    grid = os.path.relpath(GRID, target.parent) if GRID.is_file() else None
    template = _environment(autoescape=False, finalize=escape_markdown).get_template("page.md.j2")
    text = template.render(_values(runs), grid_path=grid)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _environment(**options: Any) -> Environment:
    environment = Environment(
        loader=PackageLoader("dinv.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.tests["missing"] = lambda part: isinstance(part, Missing)
    return environment


def _values(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "title": "dinv report: " + " against ".join(run.name for run in runs),
        "runs": runs,
        "comparison": _comparison(runs),
        "not_covered": NOT_COVERED,
        "openrail": OPENRAIL,
        "memorisation_heads": list(MEMORISATION.values()),
        "has_pilots": any(run.pilots for run in runs),
    }


def _comparison(runs: Sequence[Run]) -> Comparison | None:
    if len(runs) < 2:
        return None
    here, there = runs
    return compared((here.params, there.params), (here.scores, there.scores))


def escape_markdown(value: object) -> str:
    """Text that Markdown shows as it is, also in a cell of a table: names of classes are anybody's."""
    one_line = " ".join(str(value).split())
    entities = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", entities)
