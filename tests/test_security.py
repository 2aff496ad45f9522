"""What docs/threat-model.md promises, where code can be asked: nothing is unpickled, names stay."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from experiments import Study, experiment_from_json, experiment_to_json, get_experiment, get_study
from pipelines.__main__ import main
from pipelines.store.folder import FolderStore
from pipelines.store.keys import Ref

ROOT = Path(__file__).parent.parent
FILES = [
    path
    for package in ("ig_core", "experiments", "pipelines", "cluster", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
]
EXECUTING = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "jsonpickle",
}
"""Modules whose loading runs what a file says."""
ONLY_ITS_ERROR = {"ig_core/files/tensors.py"}
"""Who may import pickle, to catch what torch's restricted loading raises."""


def call_name(node: ast.Call) -> str:
    return ast.unparse(node.func)


def keyword(node: ast.Call, name: str) -> object:
    """A constant keyword's value; ... if it is not given or is no constant."""
    for item in node.keywords:
        if item.arg == name:
            return item.value.value if isinstance(item.value, ast.Constant) else ...
    return ...


def offences(tree: ast.AST, path: str) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            executing = EXECUTING & {name.partition(".")[0] for name in names}
            if executing and not (path in ONLY_ITS_ERROR and isinstance(node, ast.Import)):
                found += sorted(executing)
        elif isinstance(node, ast.Attribute) and node.attr != "UnpicklingError":
            if ast.unparse(node.value) in EXECUTING:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call):
            found += offences_of_call(node)
    return found


def offences_of_call(node: ast.Call) -> list[str]:
    name, found = call_name(node), []
    if name == "torch.load" and keyword(node, "weights_only") is not True:
        found.append("torch.load without weights_only=True")
    if keyword(node, "allow_pickle") is not False and (
        any(item.arg == "allow_pickle" for item in node.keywords)
    ):
        found.append("allow_pickle")
    if name in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"):
        found.append(name)
    if keyword(node, "shell") is True:
        found.append("shell=True")
    return found


def test_nothing_that_is_loaded_is_executed():
    sources = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in FILES}
    assert len(sources) > 100
    found = {name: offences(ast.parse(source), name) for name, source in sources.items()}
    assert {name: offended for name, offended in found.items() if offended} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "eval(x)",
        "torch.load(p, weights_only=flag)",
        "subprocess.run(x, shell=True)",
        "yaml.load(x)",
    ],
)
def test_the_scan_finds_what_it_looks_for(code):
    assert offences(ast.parse(code), "pipelines/x.py")


def test_an_import_for_an_error_is_no_leave_to_unpickle():
    code = ast.parse("import pickle\ntry: x\nexcept pickle.UnpicklingError: pickle.loads(x)")
    assert offences(code, "ig_core/files/tensors.py") == ["pickle.loads"]


# Names that become paths

ODD = [
    "..",
    "../x",
    "/etc/x",
    "a/b",
    "a\\b",
    ".hidden",
    "a\nb",
    "a\0b",
    "",
    " a",
    "a ",
    "~root",
    "-rf",
    "a;b",
    "$HOME",
    "a*",
    "a:b",
    "x" * 200,
    "\u202ea",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_refused_wherever_they_come_from(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("IGDIT_HOME", str(tmp_path / "home"))
    for words in (["run", "digits", f"--name={name}"], ["study", "digits", f"--name={name}"]):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        assert code == 2
        assert "name" in capsys.readouterr().err
    text = experiment_to_json(get_experiment("digits"))
    assert text.count('"name": "digits"') == 1
    with pytest.raises(ValueError, match="name must be a file name"):
        experiment_from_json(text.replace('"name": "digits"', f'"name": {json.dumps(name)}'))
    with pytest.raises(ValueError, match="name must be a file name"):
        Study.from_fixed(name, get_study("digits").fixed())
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("name", ["digits", "digits_wide", "Über 2", "a.b-c_d+e=f(g)@h,i", "7"])
def test_ordinary_names_are_taken(name):
    assert Study.from_fixed(name, get_study("digits").fixed()).name == name


@pytest.mark.parametrize("part", ["..", "../x", "/etc", "a/b", ".hidden", "", "a.b", "a\0"])
def test_artifacts_have_no_names_that_leave_the_store(part, tmp_path):
    store = FolderStore(tmp_path / "store")
    for kind, key in ((part, "key"), ("kind", part)):
        with pytest.raises(ValueError, match="must be letters, digits"):
            store.find(Ref(kind, key))


@pytest.mark.parametrize("word", ["../../etc", "/etc/passwd", "..", "a/../../b"])
def test_words_that_look_runs_and_studies_up_open_no_files(word, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IGDIT_HOME", str(tmp_path / "home"))
    for words in (
        ["report", word],
        ["report", "study", word],
        ["store", "gc", "--forget", word],
        ["export", word, str(tmp_path / "out")],
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("igdit: ")
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "out").exists()
