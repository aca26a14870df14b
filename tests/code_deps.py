"""Which project modules a stage reaches: what dvc.yaml must declare as its code, as files or folders."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# These cannot change a result: they validate, report, resume and find the interpreter.
NOT_DECLARED = (
    "dinv/__init__.py",
    "dinv/errors.py",
    "dinv/execution/",
    "dinv/params.py",
    "dinv/section.py",
    "stages/__init__.py",
    "stages/runner.py",
)


def covered(deps: Sequence[str], stage: str, root: Path = ROOT) -> tuple[set[str], set[str]]:
    """(files the stage reaches and no dependency covers, dependencies that are code and are not reached)."""
    code = [dep for dep in deps if dep.startswith(("dinv", "stages"))]
    files = reached_files(f"stages/{stage}.py", root)
    missing = {f for f in files if not any(_covers(dep, f) for dep in code)}
    return missing, {dep for dep in code if not any(_covers(dep, f) for f in files)}


def _covers(dep: str, file: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


def reached_files(entry: str, root: Path = ROOT) -> set[str]:
    """Files that can change a stage's result: its own and what it leads to, by imports, and by the names that registries hold."""
    seen, todo = set(), [entry]
    while todo:
        file = todo.pop()
        if file not in seen and not file.startswith(NOT_DECLARED):
            seen.add(file)
            todo += _leads_to(root, file)
    return seen


def _leads_to(root: Path, file: str) -> set[str]:
    """Files named in a file's import statements and in texts like "dinv.strategies.x:Name"."""
    modules: list[str] = []
    for node in ast.walk(ast.parse((root / file).read_text())):
        if isinstance(node, ast.ImportFrom):
            modules += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            modules += [a.name for a in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            modules += re.findall(r"^(dinv(?:\.\w+)+):\w+$", node.value)
    bases = [module.replace(".", "/") for module in modules]
    candidates = {f"{base}.py" for base in bases} | {f"{base}/__init__.py" for base in bases}
    return {path for path in candidates if (root / path).is_file() and (root / path).read_text()}
