"""What code says, apart from how it is written: digests of syntax trees, which key finished parts.

Comments, docstrings, formatting, imports, the words of errors and the names of modules do not count, so
changing them throws away no finished work. Nor does Python's minor version.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dinv.files import digest_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dinv", "stages")

# These cannot change a result: they read, validate, schedule, store and report.
_PLUMBING = (
    "dinv.cli",
    "dinv.errors",
    "dinv.files",
    "dinv.params",
    "dinv.section",
    "stages",
    "stages.runner",
)
# Fields of syntax trees that say nothing or come and go with Python's version.
_NOT_CODE = {"ctx", "kind", "type_comment", "type_ignores", "type_params"}


def code_digest(*modules: str, root: Path = ROOT) -> str:
    """Digest of the named modules and of all project modules that they import, directly or not.

    Raises:
        ModuleNotFoundError: the project has no such module.
    """
    return digest_of(sorted({_read(_file(name, root)).digest for name in reached(*modules, root=root)}))


def reached(*modules: str, root: Path = ROOT) -> set[str]:
    """The named modules and those they import, anywhere in the text, that can change a result."""
    seen: set[str] = set()
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name in seen or not can_change_results(name):
            continue
        seen.add(name)
        packages = [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]
        todo += packages  # Python runs their __init__.py first
        todo += [m for m in _read(_file(name, root)).imports(name) if _exists(m, root)]
    return seen


def can_change_results(module: str) -> bool:
    """Whether the module counts: neither plumbing nor a registry, which would reach every other method."""
    parts = module.split(".")
    return module not in _PLUMBING and parts[:2] != ["dinv", "execution"] and parts[-1] != "registry"


def snapshot(root: Path = ROOT) -> dict[str, bytes]:
    """Source of every project module that can change a result."""
    files = {path: path.relative_to(root) for p in PACKAGES for path in (root / p).rglob("*.py")}
    named = {".".join(short.with_suffix("").parts): path for path, short in files.items()}
    sources = {name.removesuffix(".__init__"): path.read_bytes() for name, path in named.items()}
    return {name: source for name, source in sources.items() if can_change_results(name)}


def changed_since(before: dict[str, bytes], stage: str, root: Path = ROOT) -> list[str]:
    """Modules that this process has loaded, or is (`stage`), and that say something else than before."""
    after, loaded = snapshot(root), {stage, *sys.modules}
    names = sorted(loaded & (before.keys() | after.keys()))
    return [name for name in names if not _same(before.get(name), after.get(name))]


def _same(before: bytes | None, after: bytes | None) -> bool:
    if before is None or after is None:
        return before is after
    try:
        return before == after or _shape(ast.parse(before)) == _shape(ast.parse(after))
    except SyntaxError:  # caught in the middle of an edit
        return False


@dataclass(frozen=True)
class _Module:
    """Digest of what a module says, and its import statements as (level, module, names).

    `level` is how many parts the module's name loses before `module` is put behind it; -1: all.
    """

    digest: str
    statements: tuple[tuple[int, str, tuple[str, ...]], ...]

    def imports(self, name: str) -> Iterator[str]:
        """Everything that may be a module, with full names; `name` is this module's own."""
        for level, module, names in self.statements:
            package = "" if level < 0 else name.rsplit(".", level)[0]
            base = ".".join(part for part in (package, module) if part)
            yield from (base, *(f"{base}.{n}" for n in names))


def _read(path: Path) -> _Module:
    stat = path.stat()
    return _parse(path, stat.st_mtime_ns, stat.st_size)


@cache
def _parse(path: Path, mtime_ns: int, size: int) -> _Module:
    tree = ast.parse(path.read_bytes(), path.name)
    statements: list[tuple[int, str, tuple[str, ...]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            # The name of a package lacks the "__init__" that the first dot of an import takes away.
            level = node.level - (path.name == "__init__.py") if node.level else -1
            statements.append((level, node.module or "", tuple(a.name for a in node.names)))
        elif isinstance(node, ast.Import):
            statements += [(-1, alias.name, ()) for alias in node.names]
    return _Module(digest_of(_shape(tree)), tuple(statements))


def _shape(node: Any) -> Any:
    """A syntax tree as nested lists: no positions, nothing that has no effect, no empty fields."""
    if isinstance(node, list):
        return [_shape(item) for item in node if not _says_nothing(item)]
    if not isinstance(node, ast.AST):
        return f"{type(node).__name__} {node!r}"
    fields = {name: _shape(value) for name, value in ast.iter_fields(node) if name not in _NOT_CODE}
    if isinstance(node, ast.Constant):
        return [*fields.values()]
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        values = [a for a in node.exc.args if not _is_text(a)]  # not the words that the user reads
        fields["exc"] = [_shape(node.exc.func), _shape(values), _shape(node.exc.keywords)]
    return [type(node).__name__, {k: v for k, v in fields.items() if v not in ([], _shape(None))}]


def _says_nothing(node: Any) -> bool:
    """Imports, docstrings and other lone constants, `pass`, and what only type checkers read."""
    if isinstance(node, ast.If):
        test = ast.unparse(node.test)
        return test in ("TYPE_CHECKING", "typing.TYPE_CHECKING") and not node.orelse
    lone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return lone or isinstance(node, ast.Import | ast.ImportFrom | ast.Pass)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _exists(module: str, root: Path) -> bool:
    package = module.split(".", maxsplit=1)[0]
    return package in PACKAGES and any(path.is_file() for path in _candidates(module, root))


def _file(module: str, root: Path) -> Path:
    for path in _candidates(module, root):
        if path.is_file():
            return path
    raise ModuleNotFoundError(f"{root}: has no module {module}")


def _candidates(module: str, root: Path) -> tuple[Path, Path]:
    base = root.joinpath(*module.split("."))
    return base.with_suffix(".py"), base / "__init__.py"
