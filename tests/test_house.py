"""The rules of the house: who may import what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("ig_core", "experiments", "pipelines", "cluster")
STANDARD = set(sys.stdlib_module_names)

MAY_IMPORT = {
    "ig_core": {"ig_core", "torch", "numpy", "pyarrow", "safetensors"},
    "experiments": {"experiments", "ig_core"},
    "pipelines": {"pipelines", "experiments", "ig_core", "torch", "pandas", "safetensors", "rich"},
    "cluster": {"cluster", "pipelines"},
}
"""Package -> what any of its modules may import (besides the standard library)."""

COMMANDS = ("evaluate", "parse", "run", "study", "submit")
ONLY_IN = {
    "ray": {
        "pipelines/execution/ray_tasks.py",
        "pipelines/execution/ray_train.py",
        "pipelines/submit/ray_jobs.py",
    },
    "aiohttp": {"pipelines/submit/ray_jobs.py"},
    "fsspec": {"pipelines/store/bucket/objects.py"},
    "mlflow": {"pipelines/tracking/client.py"},
    "optuna": {f"pipelines/study/{name}.py" for name in ("ledger", "search", "storage", "trials")},
    "sqlalchemy": {"pipelines/study/storage.py"},
    "tyro": {f"pipelines/commands/{name}.py" for name in COMMANDS},
    "matplotlib": {"pipelines/reports/plots.py"},
    "scipy": {"pipelines/study/confirm.py"},
    "sklearn": {"pipelines/stages/data.py"},
    "PIL": {"pipelines/stages/sample.py", "ig_core/images/folders.py", "ig_core/images/crop.py"},
    "diffusers": {"ig_core/codecs/autoencoder.py"},
    "torch_fidelity": {"ig_core/metrics/extractors.py", "ig_core/metrics/scores.py"},
    "torchvision": {"ig_core/files/torchvision_shim.py"},
    "torchdiffeq": {"ig_core/sampling.py"},
    "moto": {"cluster/s3_server.py"},
    "werkzeug": {"cluster/s3_server.py"},
    "boto3": {"cluster/services.py"},
}
"""Library -> the modules that may import it."""

ONLY_INSIDE_FUNCTIONS = {
    "torch_fidelity",
    "torchvision",
    "diffusers",
    "torchdiffeq",
    "PIL",
    "sklearn",
    "scipy",
    "matplotlib",
    "mlflow",
    "moto",
    "werkzeug",
    "boto3",
}


def modules() -> list[Path]:
    return [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]


def imported(tree: ast.AST, *, top_level_only: bool = False) -> set[str]:
    """Top-level names of the packages a module imports, type checking included."""
    nodes = tree.body if top_level_only and isinstance(tree, ast.Module) else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add((node.module or "").partition(".")[0])
    return names - STANDARD


def layer_offences(name: str, source: str) -> list[str]:
    """Imports of a module that its package may not make, or may make inside functions alone."""
    tree = ast.parse(source)
    special = {library for library, homes in ONLY_IN.items() if name in homes}
    outside = imported(tree) - MAY_IMPORT[name.partition("/")[0]] - special
    early = imported(tree, top_level_only=True) & ONLY_INSIDE_FUNCTIONS
    return [f"{name} imports {library}" for library in sorted(outside)] + [
        f"{name} imports {library} outside a function" for library in sorted(early)
    ]


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        ("ig_core/loss.py", "import torch, json", []),
        ("ig_core/loss.py", "import ray", ["ig_core/loss.py imports ray"]),
        ("ig_core/loss.py", "def f():\n import ray.util", ["ig_core/loss.py imports ray"]),
        ("experiments/digits.py", "from torch import nn", ["experiments/digits.py imports torch"]),
        ("pipelines/stages/data.py", "def f():\n import sklearn", []),
        (
            "pipelines/stages/data.py",
            "import sklearn",
            ["pipelines/stages/data.py imports sklearn outside a function"],
        ),
    ],
)
def test_imports_out_of_a_layer_are_found(name, source, found):
    assert layer_offences(name, source) == found


def test_modules_keep_to_their_layers():
    sources = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in modules()}
    assert len(sources) > 100
    assert [x for name, source in sources.items() for x in layer_offences(name, source)] == []


def unnamed_encodings(source: str) -> list[int]:
    """Lines of calls that read or write text in whatever encoding the machine's locale has.

    Ruff's rule for it (PLW1514) knows a `Path` only where it is made.
    """
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and reads_text(node) and "encoding" not in keywords(node)
    ]


def keywords(call: ast.Call) -> dict[str | None, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords}


def reads_text(call: ast.Call) -> bool:
    """Whether a call has to do with text, as far as one sees it."""
    method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if method else getattr(call.func, "id", "")
    if name in ("read_text", "write_text", "FileHandler"):
        return True
    if name not in ("open", "fdopen"):
        return "text" in keywords(call) or "universal_newlines" in keywords(call)
    # Of a Path it is open(mode); others are open(file, mode) or open(ref).
    place = 0 if method and name == "open" else 1
    modes = [*call.args[place : place + 1], *filter(None, [keywords(call).get("mode")])]
    if not modes:
        return not method or not (call.args or call.keywords)
    mode = modes[0].value if isinstance(modes[0], ast.Constant) else "b"
    return isinstance(mode, str) and set(mode) <= set("rwaxt+")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path.read_text()", True),
        ("path.write_text(text, newline='')", True),
        ("path.open('w')", True),
        ("path.open()", True),
        ("open(path)", True),
        ("open(path, mode='a')", True),
        ("os.fdopen(file, 'w')", True),
        ("subprocess.run(words, text=True)", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.open('rb')", False),
        ("open(path, 'ab')", False),
        ("store.open(ref)", False),
        ("archive.open(zipfile.ZipInfo('x'), 'w')", False),
    ],
)
def test_unnamed_encodings_are_found(source, found):
    assert bool(unnamed_encodings(source)) == found


def test_text_files_are_utf_8_on_every_machine():
    """What one machine wrote, another one reads, whatever their locales say."""
    paths = [path for name in (*PACKAGES, "benchmarks") for path in (ROOT / name).rglob("*.py")]
    found = {str(p): unnamed_encodings(p.read_text(encoding="utf-8")) for p in paths}
    assert not {path: lines for path, lines in found.items() if lines}


def test_nobody_takes_a_lock_without_looking_whether_it_was_free():
    assert [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "acquire"
    ] == []


def test_one_module_makes_the_console_and_nothing_else_prints():
    """One place decides width, colours and encoding, and how a line stands beside a bar."""
    made = {"Console": set(), "print": set()}
    for path in (ROOT / "pipelines").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in made:
                made[node.func.id].add(path.relative_to(ROOT).as_posix())
    assert made == {"Console": {"pipelines/console/console.py"}, "print": set()}


def test_experiments_take_only_configurations_from_ig_core():
    assert [
        f"{path.name}:{node.lineno} imports {node.module}"
        for path in sorted((ROOT / "experiments").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("ig_core")
        and node.module != "ig_core.config"
    ] == []


def loaded_after(statement: str) -> set[str]:
    """Packages in memory after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys; print(*{{m.partition('.')[0] for m in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_experiments_loads_no_torch():
    loaded = loaded_after("import experiments; experiments.get_experiment('digits')")
    assert "experiments" in loaded
    assert not loaded & {"torch", "numpy", "ray", "mlflow"}


def test_importing_all_of_ig_core_loads_no_orchestration():
    names = [path.stem for path in (ROOT / "ig_core").glob("*.py") if path.stem != "__init__"]
    loaded = loaded_after("; ".join(f"import ig_core.{name}" for name in sorted(names)))
    assert "torch" in loaded
    assert not loaded & {"ray", "mlflow", "optuna", "pandas", "tyro", "experiments", "pipelines"}


def test_planning_loads_neither_torch_nor_ray():
    loaded = loaded_after(
        "import os, tempfile; os.environ['IGDIT_HOME'] = tempfile.mkdtemp()\n"
        "import contextlib, io\nfrom pipelines.__main__ import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['plan', 'digits'])"
    )
    assert not loaded & {"ray", "mlflow", "torch"}


def environment_readers(tree: ast.AST) -> set[int]:
    """Lines that touch the environment by `os.environ`, `os.getenv` and the like."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names:
            found.add(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            found |= {node.lineno for alias in node.names if alias.name in names}
    return found


@pytest.mark.parametrize(
    "source", ["import os\nos.environ['A']", "import os\nos.getenv('A')", "from os import environ"]
)
def test_readers_of_the_environment_are_found(source):
    assert environment_readers(ast.parse(source))


def test_only_settings_touch_the_environment():
    settings = ROOT / "pipelines" / "common" / "settings.py"
    offenders = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules()
        if path != settings and path.relative_to(ROOT).parts[0] != "cluster"
        for line in environment_readers(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not offenders
    assert environment_readers(ast.parse(settings.read_text(encoding="utf-8")))


def test_the_core_speaks_no_command_line():
    """It states facts; `pipelines.common.remedies` adds the options that mend them."""
    offenders = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "ig_core").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"(?<![\w-])--[a-z]", node.value)
    ]
    assert not offenders


VARIABLE = re.compile(r"(IGDIT|MLFLOW|RAY|GLOO|AWS|PG|XDG|DO_NOT|GIT)_?[A-Z0-9_]+")


def test_every_variable_stands_in_the_table_of_settings():
    from pipelines.common import settings

    known = {*re.findall(r"[A-Z0-9_]{4,}", settings.__doc__), *settings.SECRET_VARIABLES}
    named = {
        node.value
        for path in modules()
        if path.relative_to(ROOT).parts[0] != "cluster"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if VARIABLE.fullmatch(node.value) and not node.value.endswith("_")
    }
    assert named
    assert named <= known
