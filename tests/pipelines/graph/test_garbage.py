from __future__ import annotations

import sys

import pytest

from experiments import experiment_to_json
from pipelines.__main__ import main
from pipelines.common.errors import ArtifactError
from pipelines.graph.garbage import collect_garbage, find_garbage, in_use, store_summary
from pipelines.graph.graph import Graph
from pipelines.graph.node import closure
from pipelines.graph.trajectory import starting_step
from pipelines.store.folder import FolderStore
from pipelines.store.keys import Ref
from pipelines.store.register import Record, command_times, read_register, record_start, remember
from tests.pipelines.conftest import events, run_inline, tiny, tree


def names(garbage) -> set[Ref]:
    return {artifact.ref for artifact in garbage.artifacts}


def reachable(experiment) -> set[Ref]:
    return {node.ref for node in closure(Graph(experiment).targets)}


def built(finished) -> set[Ref]:
    """All of the finished run, what it reported among it."""
    return {node.ref for node in finished.nodes}


def test_what_may_come_to_be_reported_is_no_garbage(finished):
    assert built(finished) - reachable(tiny())
    assert names(find_garbage(finished.home.store)) == set()


def record(store: FolderStore, experiment) -> str:
    key = Graph(experiment).run_key
    remember(store, Record.of_run(experiment, key))
    return key


def recorded(store: FolderStore) -> dict[str, object]:
    return read_register(store).experiments


@pytest.fixture
def two_runs(store):
    """The finished run, and one with another scale that shares its training."""
    other = tiny(ig_scales=(2.5,), name="other")
    run_inline(store, other)
    record(store, other)
    return store, other


# Records


def test_a_run_records_what_it_was(finished):
    assert recorded(finished.home.store) == {finished.graph.run_key: finished.experiment}


def test_a_run_is_recorded_once_under_each_of_its_names(store, finished):
    before, key = tree(store.root / ".runs"), finished.graph.run_key
    record(store, tiny(resources={"sample_tasks": 3}))
    assert tree(store.root / ".runs") == before
    record(store, tiny(name="renamed"))
    assert sorted((k, e.name) for k, e in read_register(store).runs) == [
        (key, "renamed"),
        (key, "tiny"),
    ]
    assert list(recorded(store)) == [key]


def test_no_store_has_no_runs_and_no_garbage(tmp_path):
    store = FolderStore(tmp_path / "nothing")
    assert recorded(store) == {}
    assert names(find_garbage(store)) == set()
    assert store_summary(store) == []
    assert not store.root.exists()


# What is garbage


def test_what_a_recorded_run_leads_to_is_no_garbage(two_runs):
    store, _ = two_runs
    assert names(find_garbage(store)) == set()


def test_exactly_what_no_recorded_run_leads_to_is_garbage(store):
    unrecorded = tiny(ig_scales=(2.5,))
    run_inline(store, unrecorded)
    extra = reachable(unrecorded) - reachable(tiny())
    assert len(extra) == 6
    assert names(find_garbage(store)) == extra


def test_checkpoints_that_no_run_wants_any_more_are_garbage(store):
    finer = tiny(train={"checkpoint_every": 5})
    graph = run_inline(store, finer, Graph(finer).checkpoints)
    extra = {node.ref for node in (graph.checkpoints[0], graph.checkpoints[2])}
    assert names(find_garbage(store)) == extra


def test_forgetting_a_run_frees_only_what_no_other_needs(two_runs, finished):
    store, other = two_runs
    freed = names(find_garbage(store, (Graph(other).run_key[:6],)))
    assert freed == reachable(other) - reachable(tiny())
    freed = names(find_garbage(store, (finished.graph.run_key[:6],)))
    assert reachable(tiny()) - reachable(other) == set()
    assert freed == set(), "the other run may report the same scale"
    both = (Graph(other).run_key, finished.graph.run_key)
    assert names(find_garbage(store, both)) == reachable(other) | built(finished)


@pytest.mark.parametrize("prefix", ["", "zzz"])
def test_forgetting_must_name_one_run(two_runs, prefix, finished):
    store, other = two_runs
    with pytest.raises(ValueError, match=f"--forget must name one recorded run.*{prefix!r}") as e:
        find_garbage(store, (prefix,))
    assert finished.graph.run_key in str(e.value)
    assert Graph(other).run_key in str(e.value)


# Studies


@pytest.fixture
def studied(two_runs):
    """The store of two runs, the second of them also a training of the study "other"."""
    store, other = two_runs
    own = tiny(ig_scales=(3.5,), name="other")
    run_inline(store, own)
    remember(store, Record.of_study("other", "5e0"))
    for experiment in (other, own):
        remember(store, Record.of_study("other", "5e0", experiment, Graph(experiment).run_key))
    record_start(store, "5e0", 1.0)
    return store, own


def test_a_study_is_forgotten_by_name_with_all_that_only_it_needs(studied):
    store, own = studied
    assert names(find_garbage(store)) == set()
    garbage = find_garbage(store, ("study/other",))
    assert garbage.forgotten == ("study/other 5e0",)
    assert names(garbage) == reachable(own) - reachable(tiny())
    collect_garbage(store, ("5e",))
    assert sorted(e.name for _, e in read_register(store).runs) == ["other", "tiny"]
    assert not list((store.root / ".runs").glob("5e0*")), "the times of its commands go as well"
    assert command_times(store, "5e0").started_ms is None
    assert names(find_garbage(store)) == set()


def test_a_name_that_a_run_and_a_study_have_is_told_apart_by_what_it_is(studied):
    store, _ = studied
    with pytest.raises(ValueError, match=r"one recorded run, study.*study/other 5e0.*'other'"):
        find_garbage(store, ("other",))
    assert find_garbage(store, ("run/other",)).forgotten[0].startswith("run/other ")
    assert find_garbage(store, ("tiny",)).forgotten[0].startswith("run/tiny ")


def test_a_training_of_a_study_that_cannot_be_read_keeps_all_until_it_runs_again(studied):
    store, own = studied
    again = Record.of_study("other", "5e0", own, Graph(own).run_key)
    (store.root / ".runs" / again.file).write_text("{")
    remember(store, Record.of_study("other", "5e0"))
    assert find_garbage(store, (Graph(tiny()).run_key,)).unreadable == ("5e0",)
    remember(store, again)
    assert read_register(store).unreadable == {}
    assert names(find_garbage(store)) == set()


def test_recording_reads_no_other_records(store, monkeypatch):
    record(store, tiny(ig_scales=(3.5,)))
    asked, real = [], FolderStore.records
    monkeypatch.setattr(
        FolderStore, "records", lambda self, *names: asked.append(names) or real(self, *names)
    )
    key = record(store, tiny(ig_scales=(2.5,)))
    assert asked == [(f".runs/{key}.", ".json")]


def test_what_is_forgotten_is_said_before_anything_is_deleted(studied, capsys, monkeypatch):
    monkeypatch.setattr(FolderStore, "delete", lambda *_: sys.stdout.write("GONE\n"))
    assert main(["store", "gc", "--forget", "study/other", "--delete"]) == 0
    said = capsys.readouterr().out
    assert said.index("forgotten: study/other 5e0") < said.index("evaluate/") < said.index("GONE")
    assert said.index("GONE") < said.index("Deleted ")


UNREADABLE = {
    "of a field that is no more": experiment_to_json(tiny()).replace('"steps"', '"stepz"'),
    "cut short": experiment_to_json(tiny())[:100],
    "empty": "",
    "of before the register": experiment_to_json(tiny()),
    "of a kind to come": '{"kind": "sweep", "name": "x", "key": "0000abc"}',
    "of something else": '{"kind": "study", "name": "x", "key": "0000abd"}',
}


UNREADABLE_FILES = ("0000abc.1234.json", "0000abc.json")
"""A record, and one as they were before there was one register."""


@pytest.fixture(params=UNREADABLE)
def unreadable(request, two_runs):
    """The store of two runs, with the record of a third that nobody can read."""
    store, _ = two_runs
    text = UNREADABLE[request.param]
    for name in UNREADABLE_FILES:
        (store.root / ".runs" / name).write_text(text)
    return store


def test_a_record_that_cannot_be_read_is_named_and_passed_over(unreadable, two_runs, caplog):
    _, other = two_runs
    runs = recorded(unreadable)
    assert set(runs) == {Graph(tiny()).run_key, Graph(other).run_key}
    assert sorted(e.name for _, e in read_register(unreadable).runs) == ["other", "tiny"]
    recorded(unreadable)
    for name, warning in zip(UNREADABLE_FILES, caplog.messages, strict=True):
        assert f"{unreadable.uri}/.runs/{name} cannot be read and is passed over" in warning
        assert "--forget 0000abc" in warning


def test_what_a_record_that_cannot_be_read_may_need_is_kept_until_it_is_forgotten(
    unreadable, two_runs
):
    _, other = two_runs
    run_inline(unreadable, tiny(ig_scales=(3.5,)))  # recorded nowhere
    before = {artifact.ref for artifact in unreadable.list()}
    forget = (Graph(other).run_key,)
    garbage = collect_garbage(unreadable, forget)
    assert (names(garbage), garbage.unreadable) == (set(), ("0000abc",))
    assert {artifact.ref for artifact in unreadable.list()} == before
    assert Graph(other).run_key not in recorded(unreadable), "forgotten all the same"
    garbage = collect_garbage(unreadable, ("0000",))
    assert names(garbage) == before - built_of(unreadable, tiny())
    assert garbage.unreadable == ()
    assert not list(unreadable.root.glob(".*/0000abc*"))


def built_of(store, experiment) -> set[Ref]:
    return {node.ref for node in closure(Graph(experiment).needed)} & {
        artifact.ref for artifact in store.list()
    }


def test_running_it_again_writes_a_record_anew_that_cannot_be_read(store, finished, caplog):
    key = finished.graph.run_key
    for record_ in store.root.glob(f".*/{key}*.json"):
        record_.write_text("{")
    (store.root / ".runs" / f"{key}.json").write_text(experiment_to_json(tiny()))  # an older one
    assert recorded(store) == {}
    record(store, finished.experiment)
    assert recorded(store) == {key: finished.experiment}
    assert read_register(store).runs == [(key, finished.experiment)]
    assert read_register(store).unreadable == {}


COMMANDS = (["store", "ls"], ["store", "gc"], ["report", "tiny"])
"""And `table` and `track rebuild`, which read records by the same function."""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_ends_at_a_record_that_cannot_be_read(words, store, caplog, capsys):
    (store.root / ".runs" / "0000abc.json").write_text("{")
    assert main(words) == 0
    assert "0000abc.json cannot be read and is passed over" in caplog.text
    assert ("0000abc" in capsys.readouterr().out) == (words[0] == "store")


def publish(store: FolderStore, *nodes) -> None:
    for node in nodes:
        with store.publish(node.ref, {}) as directory:
            (directory / "state.json").write_text("{}")


def test_what_an_interrupted_training_would_go_on_from_is_no_garbage(store):
    """And only that; of a run that is forgotten nothing."""
    longer = tiny(train={"steps": 40})
    key, graph = record(store, longer), Graph(longer)
    publish(store, *(graph.resume(step) for step in (15, 23, 27, 35)))
    # Steps 30 and 40 are missing: the training goes on from 27.
    others = {graph.resume(step).ref for step in (15, 23, 35)}
    assert names(find_garbage(store)) == others
    collect_garbage(store)
    assert starting_step(store, graph, [30, 40]) == 27
    assert names(find_garbage(store, (key,))) == {graph.resume(27).ref}


def test_a_state_that_nothing_is_resumed_from_any_more_is_garbage(store, finished):
    older, over = finished.graph.resume(15), finished.graph.resume(25)
    publish(store, older, over)
    assert names(find_garbage(store)) == {node.ref for node in (older, over)}


def test_a_checkpoint_of_no_run_that_a_training_would_go_on_from_is_no_garbage(store):
    longer = tiny(train={"steps": 60, "checkpoint_every": 30})
    record(store, longer)
    graph = Graph(longer)
    publish(store, graph.checkpoint(25), graph.resume(22))
    assert names(find_garbage(store)) == {graph.resume(22).ref}


# Collecting


def test_collecting_deletes_the_garbage_and_nothing_else(two_runs, finished):
    store, other = two_runs
    forget = (Graph(other).run_key[:6],)
    garbage = find_garbage(store, forget)
    collect_garbage(store, forget)
    assert {a.ref for a in store.list()} == built(finished)
    assert {Ref(e["kind"], e["key"]) for e in events(store, "deleted")} == names(garbage)
    assert list(recorded(store)) == [Graph(tiny()).run_key]
    assert not list((store.root / ".staging").iterdir())
    run_inline(store, tiny(), runner=None)  # everything is still there


def test_collecting_deletes_what_was_set_aside(store, finished):
    aside = store.quarantine(finished.graph.data.ref)
    garbage = find_garbage(store)
    assert garbage.quarantined == (aside,)
    collect_garbage(store)
    assert find_garbage(store).quarantined == ()
    assert len(store.list()) == 40


def test_collecting_twice_does_nothing_more(store):
    run_inline(store, tiny(ig_scales=(2.5,)))
    collect_garbage(store)
    before = tree(store.root)
    collect_garbage(store)
    assert tree(store.root) == before


def test_a_run_that_holds_the_store_prevents_collecting(two_runs):
    store, other = two_runs
    forget = (Graph(other).run_key[:6],)
    before = tree(store.root)
    with in_use(store), pytest.raises(ArtifactError, match="a run is using the store"):
        collect_garbage(store, forget)
    assert {k: v for k, v in tree(store.root).items() if k != ".in-use.lock"} == {
        k: v for k, v in before.items() if k != ".in-use.lock"
    }
    collect_garbage(store, forget)
    assert len(store.list()) == 41


def test_what_a_run_came_to_need_since_is_not_deleted(store):
    """Between finding and deleting a run may begin and end that wants the same artifacts."""
    other = tiny(ig_scales=(2.5,))
    run_inline(store, other)
    find_garbage(store)
    with in_use(store):
        record(store, other)
    collect_garbage(store)
    assert reachable(other) <= {a.ref for a in store.list()}


HOLD = """
import sys
from pipelines.store.folder import FolderStore
from pipelines.graph.garbage import in_use
with in_use(FolderStore(sys.argv[1])):
    print("running")
    input()
"""


def test_a_killed_run_does_not_hold_the_store(store, child):
    other = child(HOLD, store.root)
    assert other.read() == "running"
    with pytest.raises(ArtifactError, match="a run is using the store"):
        collect_garbage(store)
    other.kill()
    collect_garbage(store)


def test_runs_hold_the_store_together_and_not_while_it_is_collected(store, monkeypatch):
    with in_use(store), in_use(store):
        pass
    refused = []

    def sweep():
        with pytest.raises(ArtifactError, match="being collected"), in_use(store):
            pass
        refused.append(True)

    monkeypatch.setattr(store, "sweep", sweep)
    collect_garbage(store)
    assert refused == [True]
    with in_use(store):
        pass


# The command


@pytest.fixture
def wasteful(two_runs):
    """A store whose garbage is six artifacts, if "other" is forgotten."""
    store, other = two_runs
    return store, Graph(other).run_key[:8]


def test_the_command_only_says_what_would_go(wasteful, capsys):
    store, key = wasteful
    before = tree(store.root)
    assert main(["store", "gc", "--forget", key]) == 0
    assert tree(store.root) == before
    said = capsys.readouterr().out
    assert "Would delete 6 artifacts" in said
    assert "--delete" in said


def test_the_command_deletes_if_told_to(wasteful, capsys, finished):
    store, key = wasteful
    assert main(["store", "gc", "--forget", key, "--delete"]) == 0
    assert "Deleted 6 artifacts" in capsys.readouterr().out
    assert {a.ref for a in store.list()} == built(finished)


def test_the_command_refuses_while_a_run_holds_the_store(wasteful, capsys):
    store, key = wasteful
    with in_use(store):
        assert main(["store", "gc", "--forget", key, "--delete"]) == 1
    assert "a run is using the store" in capsys.readouterr().err
    assert len(store.list()) == 47


def test_the_summary_counts_artifacts_and_bytes_by_kind(finished):
    summary = {kind: (count, size) for kind, count, size in store_summary(finished.home.store)}
    assert {kind: count for kind, (count, _) in summary.items()} == {
        kind: len([n for n in finished.nodes if n.kind == kind])
        for kind in (
            "checkpoint",
            "data",
            "evaluate",
            "extractor",
            "features",
            "images",
            "reference",
            "sample",
        )
    }
    data = finished.home.store.open(finished.graph.data.ref)
    on_disk = sum(path.stat().st_size for path in data.path.iterdir())
    assert summary["data"][1] == data.size == on_disk - (data.path / "MANIFEST.json").stat().st_size
