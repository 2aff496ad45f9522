"""What an installation brings: the core with its four requirements, the rest by extras."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ig_core.files.extras import MissingLibraryError, extra
from pipelines.__main__ import main
from tests.test_house import imported

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {"torch", "numpy", "safetensors", "pyarrow"}
OWN = {"ig_core", "experiments", "pipelines", "cluster", "tests", "benchmarks"}


def distribution(requirement: str) -> str:
    """The name in a requirement, as pip compares names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def closure(names: set[str]) -> set[str]:
    """Installed distributions with what they require, extras aside."""
    found, left = set(), list(names)
    while left:
        name = left.pop()
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        found.add(name)
        left += [
            each
            for each in (distribution(r) for r in requires if "extra ==" not in r)
            if each not in found
        ]
    return found


def modules_outside(distributions: set[str]) -> set[str]:
    """Top-level modules of all other libraries that are installed."""
    table = importlib.metadata.packages_distributions()
    outside = {name for name, of in table.items() if not {*map(distribution, of)} & distributions}
    return outside - OWN - set(sys.stdlib_module_names)


def run_without(libraries: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which libraries cannot be imported."""
    block = f"import sys\nsys.modules.update(dict.fromkeys({sorted(libraries)!r}))\n"
    return subprocess.run(
        [sys.executable, "-c", block + code],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        check=False,
    )


MISSING = """
from ig_core.files.extras import MissingLibraryError

def tell(call, *arguments):
    try:
        call(*arguments)
    except MissingLibraryError as error:
        print(error)
"""
EVERYTHING = """
import importlib, pkgutil, ig_core, experiments
for package in (ig_core, experiments):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
"""
USE = (
    MISSING
    + """
import tempfile, torch
from pathlib import Path
from ig_core.codecs.autoencoder import autoencoder_class
from ig_core.images.crop import read_pixels
from ig_core.metrics.scores import inception_score
from ig_core.sampling import dopri5
tell(dopri5, lambda x, t: x, torch.zeros(1), [1.0, 0.0])
tell(inception_score, torch.zeros(10, 10), 1)
tell(autoencoder_class)
tell(read_pixels, b"", 8)
"""
)


def test_the_core_and_the_experiments_need_four_libraries_and_name_the_extra_of_any_other():
    assert {distribution(each) for each in PROJECT["dependencies"]} == CORE
    done = run_without(modules_outside(closure(CORE)), EVERYTHING + USE)
    assert done.returncode == 0, done.stderr
    line = r"(?m)^(\w+) is not installed; .* pip install '(?:igdit|\.)\[(\w+)\]'$"
    said = re.findall(line, done.stdout)
    assert said == [
        ("torchdiffeq", "dopri5"),
        ("torch_fidelity", "metrics"),
        ("diffusers", "imagenet"),
        ("PIL", "imagenet"),
    ]


ENTRY = "import {0}; sys.exit({0}.{1}())".format(*PROJECT["scripts"]["igdit"].split(":"))
MODULE = "import runpy; runpy.run_module('pipelines', run_name='__main__')"


@pytest.mark.parametrize("entry", [ENTRY, MODULE])
def test_igdit_without_its_libraries_names_the_extra_in_one_line(entry):
    done = run_without(modules_outside(closure(CORE)), entry)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"igdit: \w+ is not installed; .* 'run': pip install '(igdit|\.)\[run\]'\n", done.stderr
    )


def test_a_library_that_a_command_lacks_is_named_in_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("IGDIT_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "mlflow", None)
    (tmp_path / "mlflow.db").touch()
    assert main(["ui"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("igdit: mlflow is not installed; it comes with the extra 'run'")


def test_a_part_that_an_installed_library_lacks_is_no_missing_extra():
    with pytest.raises(ModuleNotFoundError), extra("run"):
        import numpy.no_such_part  # noqa: F401
    with pytest.raises(MissingLibraryError, match=r"no_such_library.*\[run\]"), extra("run"):
        import no_such_library  # noqa: F401


def requirements_of(*extras: str) -> set[str]:
    """Distributions that pyproject.toml names for the core and some extras."""
    listed = [*PROJECT["dependencies"]]
    left, seen = list(extras), set()
    while left:
        name = left.pop()
        seen.add(name)
        for each in PROJECT["optional-dependencies"][name]:
            if inner := re.fullmatch(r"igdit\[(.*)\]", each):
                left += [other for other in inner[1].split(",") if other not in seen]
            else:
                listed.append(each)
    return {distribution(each) for each in listed}


def test_every_library_that_is_imported_is_required_by_name():
    table = importlib.metadata.packages_distributions()
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for package in ("ig_core", "experiments", "pipelines")
        for path in (ROOT / package).rglob("*.py")
    ]
    libraries = set().union(*map(imported, trees)) - OWN
    wanted = {name: {distribution(each) for each in table[name]} for name in libraries}
    required = requirements_of("run", "imagenet", "dopri5", "s3")
    assert not {name: of for name, of in wanted.items() if not of & required}


def test_pins_are_complete():
    """Every requirement of pyproject.toml stands in the lock, which nothing resolves."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pinned = {distribution(line) for line in lock if "==" in line}
    assert requirements_of(*PROJECT["optional-dependencies"]) <= pinned
