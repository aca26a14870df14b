"""Which project modules a stage reaches: what dvc.yaml must declare as its code."""

import ast
from pathlib import Path

from stages.runner import NOT_FINGERPRINTED

ROOT = Path(__file__).parents[1]


def imported_files(path: Path) -> set[Path]:
    """Project files that a file imports, packages' __init__.py left out (they are empty)."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        else:
            continue
        candidates = {Path(*m.split(".")).with_suffix(".py") for m in modules if m}
        found |= {c for c in candidates if (ROOT / c).is_file()}
    return found


def closure(entry: Path) -> set[Path]:
    seen, todo = {entry}, [entry]
    while todo:
        new = imported_files(todo.pop()) - seen
        seen |= new
        todo += new
    return seen


def expected_code(stage: str) -> list[str]:
    files = {path.as_posix() for path in closure(Path(f"stages/{stage}.py"))}
    return sorted(f for f in files if not f.startswith(NOT_FINGERPRINTED))


if __name__ == "__main__":
    for name in ("download", "invert", "generate", "measure", "train", "evaluate"):
        print(name, *[f"\n      - {f}" for f in expected_code(name)])
