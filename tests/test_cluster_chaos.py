"""Everything that a study on a cluster depends on is broken while it runs."""

from __future__ import annotations

import uuid
from types import SimpleNamespace

import pytest

from pipelines.store.bucket.store import BucketStore
from pipelines.store.keys import Ref
from tests.equipment.verdict import findings


@pytest.fixture
def store(tmp_path) -> BucketStore:
    """A bucket in memory with two checkpoints of one training."""
    store = BucketStore(f"memory://chaos/{uuid.uuid4().hex}", tmp_path / "cache", 10**9)
    store.log("execute", Ref("checkpoint", "abc"), from_step=0)
    for step in (1, 2):
        with store.publish(Ref("checkpoint", f"abc-{step:08d}"), {}) as directory:
            (directory / "weights").write_text(str(step))
    return store


def trial(number: int, fid: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(number=number, point="layer 1", state="COMPLETE", fid=fid)


def test_a_study_as_it_should_be_has_no_findings(store):
    assert findings(store, [trial(0), trial(1)], [trial(0), trial(1)]) == []


def test_other_numbers_and_other_trials_are_found(store):
    assert len(findings(store, [trial(0, 2.0)], [trial(0, 1.0)])) == 1
    assert findings(store, [trial(0)], [trial(0), trial(1)]) == ["1 trials instead of 2"]


def test_what_was_done_twice_is_found(store):
    store.log("published", Ref("checkpoint", "abc-00000001"))
    (found,) = findings(store, [], [])
    assert "checkpoint/abc-00000001 was published 2 times" in found


def test_a_training_that_began_before_what_was_there_is_found(store, monkeypatch):
    later = [dict(event) for event in store.events()]
    later.append(
        {
            "event": "execute",
            "kind": "checkpoint",
            "key": "abc",
            "from_step": 1,
            "time": later[-1]["time"] + 5,
        }
    )
    monkeypatch.setattr(store, "events", lambda last=None: later)
    assert findings(store, [], []) == ["a training began at step 1 though 2 was published"]


def test_files_without_a_manifest_and_manifests_without_files_are_found(store):
    store.bucket.write("files/checkpoint/abc-00000009/0123/weights", b"half")
    name = next(name for name in store.bucket.list("files") if "abc-00000001" in name)
    store.bucket.delete(f"files/{name}")
    found = findings(store, [], [])
    assert found == [
        "checkpoint/abc-00000009/0123/weights belongs to nothing",
        f"{name} is missing",
    ]


@pytest.mark.slow
def test_a_study_on_a_cluster_outlives_everything(short_folder):
    """Ten minutes: nodes, servers, workers and the driver are killed, one after the other."""
    from tests.equipment import chaos

    assert chaos.run(short_folder, 10, print) == []
