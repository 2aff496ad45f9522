"""What others wrote, mutilated: only errors of ours come out, and nothing is written outside."""

from __future__ import annotations

import copy
import json
import os
import struct
import uuid
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from experiments import Study, experiment_from_json, experiment_to_json, get_experiment, get_study
from experiments.schema import read_dataclass
from ig_core.checkpoints.own import load_checkpoint, load_ema, load_history, save_checkpoint
from ig_core.config import ModelConfig, OptimConfig
from ig_core.training.state import TrainState
from pipelines.common.errors import ArtifactError
from pipelines.common.redaction import parse_secrets
from pipelines.graph.graph import Graph
from pipelines.status.activity import read_process_state
from pipelines.store.bucket.store import BucketStore
from pipelines.store.file_names import MANIFEST_FILE
from pipelines.store.folder import FolderStore
from pipelines.store.keys import Ref

KEY = "0123abcd"
REF = Ref("data", KEY)
LARGE = 2**70
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-LARGE, LARGE)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../../evil", "/etc/passwd", "..", "a\0b", "NaN", "1e999", "sit", "cuda"])
    | st.sampled_from([10**4, 10**6, 10**9, -1, 0, 1, 2**31, 2**63]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value, path=()):
    """Paths of everything in a JSON value."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from places(item, (*path, number))


@st.composite
def mutilated(draw, document):
    """A JSON document with a few of its places replaced, removed or added to."""
    found = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(places(found), key=str)))
        if not path:
            if draw(st.integers(0, 20)) == 0:
                return draw(JSON)
            continue
        parent = found
        for step in path[:-1]:
            parent = parent[step]
        how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if how == "replace":
            parent[path[-1]] = draw(JSON)
        elif how == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = draw(JSON)
        else:
            parent.append(draw(JSON))
    return found


@st.composite
def mutilated_text(draw, document):
    """The same as text; now and then with bytes that are no JSON."""
    text = json.dumps(draw(mutilated(document)))
    if draw(st.integers(0, 9)) == 0:
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + draw(st.text(max_size=4)) + text[cut + draw(st.integers(0, 3)) :]
    return text


def fuzz(examples: int):
    return settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


EXPERIMENT = json.loads(experiment_to_json(get_experiment("digits")))
STUDY = json.loads(json.dumps(get_study("digits").fixed()))


def check_experiment(text: str) -> None:
    try:
        experiment = experiment_from_json(text)
    except ValueError:
        return
    if experiment._shards < 5000:  # more are legal, and take a while to list
        assert len(Graph(experiment).run_key) == 20
    assert experiment_from_json(experiment_to_json(experiment)) == experiment


def check_study(values) -> None:
    try:
        Study.from_fixed("digits", values)
    except (ValueError, KeyError, TypeError):  # what `pipelines.study.storage` takes for unreadable
        return


def everything_below(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


def check_folder(root: Path, text: str) -> None:
    store = FolderStore(root / "store")
    (store.root / "data" / KEY / MANIFEST_FILE).write_text(text, errors="surrogatepass")
    before = everything_below(root)
    use(store)
    assert everything_below(root) == before


def use(store) -> None:
    for act in (store.find, store.open):
        try:
            act(REF)
        except ArtifactError:
            continue
    for artifact in store.list():
        assert isinstance(artifact.size, int)
        assert isinstance(artifact.seconds, float)


def check_bucket(root: Path, uri: str, text: str) -> None:
    store = BucketStore(uri, root / "cache", 10**9)
    store.bucket.write(f"manifests/data/{KEY}.json", text.encode(errors="surrogatepass"))
    use(store)
    assert {name.partition("/")[0] for name in everything_below(root)} <= {"cache"}
    inside = store.cache.folder.relative_to(root).as_posix()
    assert all(name == "cache" or name.startswith(inside) for name in everything_below(root))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A root with a store that holds an artifact, and its manifest."""
    root = tmp_path_factory.mktemp("folder")
    store = FolderStore(root / "store")
    with store.publish(REF, {"config": {"n": 1}, "inputs": {}}) as directory:
        (directory / "a.txt").write_text("content")
    return root, json.loads((store.root / "data" / KEY / MANIFEST_FILE).read_text())


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A root for a cache, a bucket in memory that holds an artifact, and its manifest."""
    root, uri = tmp_path_factory.mktemp("bucket"), f"memory://fuzz/{uuid.uuid4().hex}"
    store = BucketStore(uri, root / "cache", 10**9)
    with store.publish(REF, {"config": {"n": 1}, "inputs": {}}) as directory:
        (directory / "a.txt").write_text("content")
    return root, uri, json.loads(store.bucket.read(f"manifests/data/{KEY}.json"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of a small model, and its header."""
    directory = tmp_path_factory.mktemp("fuzz") / "checkpoint"  # what lies beside it is looked at
    model = ModelConfig(
        backbone="sit",
        depth=2,
        width=16,
        num_heads=2,
        patch_size=2,
        input_size=4,
        in_channels=1,
        num_classes=3,
        aux_layer=1,
    )
    save_checkpoint(TrainState.new(model, OptimConfig(), 0), directory)
    return directory, json.loads((directory / "state.json").read_text())


def check_checkpoint(directory: Path, text: str) -> None:
    (directory / "state.json").write_text(text, errors="surrogatepass")
    before = everything_below(directory.parent)
    for load in (load_checkpoint, load_ema):
        try:
            load(directory)
        except ValueError:
            continue
    assert everything_below(directory.parent) == before


def check_tensors(directory: Path, header: bytes, rest: bytes) -> None:
    path = directory / "ema.safetensors"
    path.write_bytes(header + rest)
    for load in (load_ema, load_checkpoint):
        try:
            load(directory)
        except ValueError:
            continue
    (directory / "history.safetensors").write_bytes(header + rest)
    try:
        load_history(directory)
    except ValueError:
        return


def run_all(examples: int, folder, bucket, checkpoint, tmp_path) -> None:
    """Every kind of document, so many times."""
    given(mutilated_text(EXPERIMENT))(fuzz(examples)(check_experiment))()
    given(mutilated(STUDY))(fuzz(examples)(check_study))()
    root, manifest = folder
    given(mutilated_text(manifest))(fuzz(examples)(lambda text: check_folder(root, text)))()
    cache, uri, manifest = bucket
    given(mutilated_text(manifest))(fuzz(examples)(lambda text: check_bucket(cache, uri, text)))()
    directory, header = checkpoint
    given(mutilated_text(header))(fuzz(examples)(lambda text: check_checkpoint(directory, text)))()
    (directory / "state.json").write_text(json.dumps(header))
    fuzz_tensors(examples, directory)
    given(st.text())(fuzz(examples)(check_words))()
    process = tmp_path / "doing.json"
    given(mutilated_text(DOING))(fuzz(examples)(lambda text: check_doing(process, text)))()


def fuzz_tensors(examples: int, directory: Path) -> None:
    """The header of a safetensors file: its length, and its JSON."""
    save_file({"history": torch.zeros(3, 4), "x": torch.ones(2)}, directory / "x.safetensors")
    data = (directory / "x.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    values, rest = json.loads(data[8 : 8 + length]), data[8 + length :]

    def check(text, wrong):
        encoded = text.encode(errors="surrogatepass")
        size = len(encoded) if wrong is None else wrong
        check_tensors(directory, struct.pack("<Q", size) + encoded, rest)

    sizes = st.none() | st.none() | st.integers(0, 2**64 - 1)
    given(mutilated_text(values), sizes)(fuzz(examples)(check))()


DOING = {
    "kind": "run",
    "name": "digits",
    "host": "node",
    "pid": 1,
    "started": 1.0,
    "updated": 2.0,
    "builds": [
        {
            "name": "digits",
            "trajectory": "ab",
            "started": 1.0,
            "training": {
                "step": 1,
                "steps": 2,
                "loss": 1.0,
                "steps_per_second": 3.0,
                "workers": 1,
                "host": "node",
                "reported_at": 2.0,
            },
        }
    ],
}


def check_doing(path: Path, text: str) -> None:
    path.write_text(text, errors="surrogatepass")
    try:
        read_process_state(path)
    except ValueError:
        return


def check_words(text: str) -> None:
    try:
        parse_secrets(text, "file")
    except ValueError:
        return


def test_what_is_mutilated_raises_our_errors_and_writes_nothing(
    folder, bucket, checkpoint, tmp_path
):
    run_all(150, folder, bucket, checkpoint, tmp_path)


@pytest.mark.slow
def test_ten_thousand_of_each_raise_our_errors_and_write_nothing(
    folder, bucket, checkpoint, tmp_path
):
    run_all(10_000, folder, bucket, checkpoint, tmp_path)


def test_the_check_can_fail(tmp_path):
    """An error that is not ours is seen."""
    with pytest.raises(TypeError):
        given(mutilated(EXPERIMENT))(fuzz(50)(lambda values: values + 1))()
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_a_value_of_the_wrong_type_is_named():
    with pytest.raises(ValueError, match=r"model\.depth"):
        read_dataclass(ModelConfig, {"depth": "4"}, "model")
