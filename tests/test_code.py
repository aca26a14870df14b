"""What throws finished work away: what code says, not how it is written."""

import ast
import re
import shutil
import subprocess
import sys

import pytest
import tiny
from code_deps import covered

from dinv.execution import code
from dinv.execution.code import changed_since, code_digest, reached, snapshot

STAGES = ("stages.invert", "stages.generate")


def all_modules():
    """The stages that cost GPU days, and every method in reach of a registry."""
    folders = ("dinv/strategies", "dinv/inversion")
    files = [path for folder in folders for path in (tiny.ROOT / folder).rglob("*.py")]
    names = [".".join(path.relative_to(tiny.ROOT).with_suffix("").parts) for path in files]
    return sorted(reached(*STAGES, *(name.removesuffix(".__init__") for name in names)))


MODULES = all_modules()


@pytest.fixture
def copy(tmp_path):
    for package in code.PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(tiny.ROOT / package, tmp_path / package, ignore=ignored)
    return tmp_path


def source_file(root, module):
    path = root.joinpath(*module.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"


def rewrite(path, change):
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before


def commented(text):
    """Other docstrings, comments before functions and classes and at the end."""
    words = re.sub(r'"""(?=[A-Z])', '"""Changed. ', text)
    return re.sub(r"^(?=def |class |@)", "# A comment.\n", words, flags=re.M) + "\n# The end.\n"


def moved_imports(text):
    """Imports of one line go to the end, for type checkers only."""
    lines = text.splitlines()
    moved = [line for line in lines if re.match(r"(from|import) ", line) and not line.endswith("(")]
    kept = [line for line in lines if line not in moved]
    return "\n".join([*kept, "if TYPE_CHECKING:", *(f"    {line}" for line in moved or ["pass"]), ""])


def other_constant(text):
    """One number more by one; where there is none, a new name."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            lines = text.encode().splitlines(keepends=True)
            line = lines[node.lineno - 1]
            number = f"{node.value + 1}".encode()
            lines[node.lineno - 1] = line[: node.col_offset] + number + line[node.end_col_offset :]
            return b"".join(lines).decode()
    return f"{text}\nADDED = 1\n"


@pytest.mark.parametrize("change", [commented, moved_imports])
def test_words_and_imports_of_every_module_cost_nothing(copy, change):
    before = code_digest(*MODULES, root=copy)
    for path in (source_file(copy, module) for module in MODULES):
        if path.read_text():
            rewrite(path, change)
            assert code_digest(*MODULES, root=copy) == before, path


@pytest.mark.parametrize("width", [60, 160])
def test_the_form_of_every_module_costs_nothing(copy, width):
    before = code_digest(*MODULES, root=copy)
    sources = snapshot(copy)
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", str(width), str(copy)]
    subprocess.run(ruff, check=True, capture_output=True)
    assert len(snapshot(copy).items() ^ sources.items()) > 20
    assert code_digest(*MODULES, root=copy) == before


@pytest.mark.parametrize("module", MODULES)
def test_a_constant_of_any_module_counts(copy, module):
    before = code_digest(*MODULES, root=copy)
    rewrite(source_file(copy, module), other_constant)
    assert code_digest(*MODULES, root=copy) != before


def test_plumbing_and_registries_do_not_count(copy):
    before = code_digest(*MODULES, root=copy)
    rewrite(copy / "dinv/execution/parts.py", other_constant)
    rewrite(copy / "dinv/errors.py", other_constant)
    rewrite(copy / "dinv/params.py", other_constant)
    (copy / "dinv/strategies/registry.py").write_text("import dinv.classify.train")
    assert "dinv.classify.train" not in reached("dinv.strategies.registry", root=copy)
    assert code_digest(*MODULES, root=copy) == before


def project_of(root, **modules):
    """A project of a few modules dinv.NAME."""
    (root / "dinv").mkdir(parents=True, exist_ok=True)
    (root / "dinv/__init__.py").touch()
    for name, text in modules.items():
        (root / f"dinv/{name}.py").write_text(text)
    return root


def digest_of_text(root, text):
    return code_digest("dinv.a", root=project_of(root, a=text))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 'a'", 'x = ("a")'),
        ("x = f(1, 2)", "x = f(\n    1,\n    2,\n)"),
        ("def f():\n    'Say.'\n    return 1", "def f():\n    return 1"),
        ("def f():\n    'Say.'", "def f():\n    pass"),
        ("raise ValueError('bad')", "raise ValueError(f'worse {1 + 1}')"),
        ("x = 1000", "x = 1_000  # many"),
    ],
)
def test_texts_that_say_the_same(tmp_path, one, other):
    assert digest_of_text(tmp_path / "1", one) == digest_of_text(tmp_path / "2", other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 1", "x = '1'"),
        ("x = a[1:]", "x = a[:1]"),
        ("x = None", "x: int"),
        ("f(None)", "f()"),
        ("x = [None, 1]", "x = [1, None]"),
        ("def f(*, a=None, b): ...", "def f(*, a, b=None): ..."),
        ("raise ValueError('bad')", "raise KeyError('bad')"),
        ("raise Stop(1)", "raise Stop(2)"),
        ("x = 'a'", "x = b'a'"),
        ("x = f'{y}'", "x = f'{y!r}'"),
        ("x = 1 + 2 * 3", "x = (1 + 2) * 3"),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    x = 1", "if TYPE_CHECKING:\n    pass\nelse:\n    x = 2"),
    ],
)
def test_texts_that_say_something_else(tmp_path, one, other):
    assert digest_of_text(tmp_path / "1", one) != digest_of_text(tmp_path / "2", other)


@pytest.mark.parametrize(
    "statement",
    [
        "import dinv.b",
        "import os, dinv.b as c",
        "from dinv import b",
        "from dinv.b import x as y",
        "from . import b",
        "from .b import x",
        "def f():\n    from dinv.b import x",
        "if TYPE_CHECKING:\n    from dinv.b import x",
        "try:\n    import dinv.b\nexcept ImportError:\n    raise",
    ],
)
def test_every_way_to_import_is_seen(tmp_path, statement):
    before = code_digest("dinv.a", root=project_of(tmp_path, a=statement, b="from dinv import c", c="x = 1"))
    after = code_digest("dinv.a", root=project_of(tmp_path, c="x = 2"))
    assert before != after


def test_a_package_that_imports_its_own_module_is_followed(tmp_path):
    project_of(tmp_path, b="x = 1")
    (tmp_path / "dinv/p").mkdir()
    (tmp_path / "dinv/p/__init__.py").write_text("from . import m\nfrom ..b import x")
    (tmp_path / "dinv/p/m.py").write_text("x = 1")
    assert {"dinv.p.m", "dinv.b"} <= reached("dinv.p", root=tmp_path)
    assert {"dinv.p", "dinv.b"} <= reached("dinv.p.m", root=tmp_path)  # Python runs the package first


def test_renamed_moved_and_circular_modules_cost_nothing(tmp_path):
    first = project_of(tmp_path / "1", a="import dinv.b", b="x = 1\nimport dinv.a")
    second = project_of(tmp_path / "2", z="from dinv.p import y")
    (second / "dinv/p").mkdir()
    (second / "dinv/p/__init__.py").touch()
    (second / "dinv/p/y.py").write_text("import dinv.z\nx = 1")
    assert code_digest("dinv.a", root=first) == code_digest("dinv.z", root=second)


def test_a_module_that_is_not_there_is_noticed(tmp_path):
    with pytest.raises(ModuleNotFoundError, match=r"has no module dinv\.q"):
        code_digest("dinv.q", root=project_of(tmp_path))


def test_the_digest_is_that_of_every_python(tmp_path):
    """A value that Python 3.11 and 3.14 both gave: parts outlive a new interpreter."""
    text = (
        "def f(a, *, b=None, **c):\n    return f'{a!r:>{b}}', c[1:], [x async for x in y], 1e-5, b'a', ...\n"
    )
    assert (
        digest_of_text(tmp_path, text) == "c7791c3c8276e28e9a3d00637bb70cb616d17537b49125614a1a70f8bfec8bab"
    )


def test_what_a_run_has_loaded_is_compared_with_what_it_began_with(tmp_path, monkeypatch):
    root = project_of(tmp_path, a="x = 1", b="x = 1", errors="x = 1")
    for name in ("dinv.a", "dinv.errors"):
        monkeypatch.setitem(sys.modules, name, None)
    before = snapshot(root)
    project_of(root, a="x = 1  # same", b="x = 2", errors="x = 2")
    assert changed_since(before, "stages.b", root) == []
    assert changed_since(before, "dinv.b", root) == ["dinv.b"]
    project_of(root, a="x = (")
    assert changed_since(before, "stages.b", root) == ["dinv.a"]
    (root / "dinv/a.py").unlink()
    assert changed_since(before, "stages.b", root) == ["dinv.a"]


def test_the_digest_is_cheap(monkeypatch):
    """A process parses every module once."""
    first = code_digest(*MODULES)
    monkeypatch.setattr(ast, "parse", lambda *_, **__: pytest.fail("parsed again"))
    assert code_digest(*MODULES) == first


def test_undeclared_and_superfluous_code_is_found(tmp_path):
    registry = 'R = {"x": "dinv.p.x:X"}'
    project_of(tmp_path, a="import dinv.errors, dinv.b", b="", errors="import dinv.unseen", unseen="x = 1")
    for name, text in {"dinv/p/registry.py": registry, "dinv/p/x.py": "from dinv.q import y"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    project_of(tmp_path, q="y = 1", b="from dinv.p import registry")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/s.py").write_text("def main():\n    import dinv.a")
    whole = ["data/x", "stages/s.py", "dinv/a.py", "dinv/b.py", "dinv/p", "dinv/q.py"]
    assert covered(whole, "s", tmp_path) == (set(), set())
    assert covered([d for d in whole if d != "dinv/p"], "s", tmp_path)[0] == {
        "dinv/p/registry.py",
        "dinv/p/x.py",
    }
    assert covered([*whole, "dinv/unseen.py", "dinv/z"], "s", tmp_path)[1] == {"dinv/unseen.py", "dinv/z"}
