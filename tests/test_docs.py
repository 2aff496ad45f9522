"""What the documentation names exists: files, sections, options, snippets that run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("[!.]*/README.md")])
HELP = (
    "run digits",
    "plan digits",
    "study digits",
    "table main",
    "status",
    "evaluate",
    "export",
    "store gc",
    "ui",
    "submit",
)
"""Commands whose `--help` lists every option that the documentation may name."""
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
OF_OTHERS = {
    *("--no-deps", "--nodes", "--gpus-per-node", "--cpus-per-task", "--time"),  # pip, sbatch
    *("--postgres", "--mlflow", "--clean", "--s3"),  # cluster.local
    *("--runtime-env-json", "--host", "--workers", "--backend-store-uri"),  # ray, mlflow
    "--artifacts-destination",
}
"""Options of other programs that the pages name."""
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("http"):
            continue
        name, _, section = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not section or section in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_of_the_project_that_are_named_exist(page):
    own = r"`((?:ig_core|experiments|pipelines|cluster|tests|benchmarks|docs)/[\w/.-]*)`"
    missing = [name for name in re.findall(own, text_of(page)) if not (ROOT / name).exists()]
    # README's own experiment is the reader's to write.
    assert set(missing) <= {"experiments/digits_wide.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_programs_of_the_project_that_are_named_exist(page):
    own = r"python -m ((?:cluster|tests|benchmarks|pipelines)[\w.]*)"
    for name in re.findall(own, text_of(page)):
        path = ROOT / name.rstrip(".").replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), name


@pytest.mark.parametrize("name", ["README.md", "docs/studies.md", "docs/python.md"])
def test_snippets_run(name, tmp_path):
    """All Python of a page, one after the other in one process, away from the project."""
    code = "\n".join(BLOCK.findall(text_of(ROOT / name)))
    assert code
    functions = re.findall(r"^def (\w+)\(\) -> (?:Experiment|Study)", code, re.MULTILINE)
    code += "".join(f"\n{function}()" for function in functions)
    run = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert run.returncode == 0, run.stderr


def test_options_that_are_named_exist():
    """Every option of `igdit` in a page is one of some command."""
    code = (
        "import runpy, sys\n"
        f"for words in {[f'{words} --help'.split() for words in HELP]}:\n"
        "    sys.argv[1:] = words\n"
        "    try: runpy.run_module('pipelines', run_name='__main__')\n"
        "    except SystemExit: pass\n"
    )
    helps = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    ).stdout
    known = set(OPTION.findall(helps)) | {"--help", "--version"} | OF_OTHERS
    known |= {option.partition(".")[0] for option in known}  # `--loss.*` stands for its options
    for page in PAGES:
        if page.parent.name == "benchmarks" or page.name == "CHANGELOG.md":
            continue  # programs of their own; former names
        found = {option.rstrip(".-") for option in OPTION.findall(text_of(page))}
        assert found <= known, page
