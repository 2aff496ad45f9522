from __future__ import annotations

import json
import math
import os
import pickle
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.common.errors import ArtifactError, MissingArtifactError
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.file_names import MANIFEST_FILE
from pipelines.store.folder import FolderStore
from pipelines.store.keys import Ref, canonical_json, content_key
from tests.equipment.store_programs import LEASE, PUBLISH, WANT
from tests.pipelines.conftest import damage, events, tree
from tests.pipelines.store.test_locks import interfere

KEY = "0123abcd"
REF = Ref("data", KEY)


@pytest.fixture
def store(tmp_path) -> FolderStore:
    """An empty store."""
    return FolderStore(tmp_path / "store")


def put(store: FolderStore, kind: str = "data", key: str = KEY, text: str = "content"):
    """Publish an artifact of two files, one of them in a folder."""
    with store.publish(Ref(kind, key), {"config": {"n": 1}}) as directory:
        (directory / "a.txt").write_text(text)
        (directory / "deep").mkdir()
        (directory / "deep" / "b.bin").write_bytes(bytes(1000))
    return store.find(Ref(kind, key))


def leftovers(store: FolderStore) -> list:
    return [path for name in (".staging", ".leases") for path in (store.root / name).glob("*")]


# Keys

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def respelt(value):
    """The same value, differently: dictionaries in reverse, whole numbers as floats, tuples."""
    if isinstance(value, dict):
        return {key: respelt(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return tuple(respelt(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return value


@given(VALUES)
@settings(max_examples=100, deadline=None, database=None)
def test_equal_values_have_equal_keys_however_they_are_written(value):
    assert canonical_json(respelt(value)) == canonical_json(value)
    assert content_key(respelt(value)) == content_key(value)


@given(VALUES)
@settings(max_examples=100, deadline=None, database=None)
def test_canonical_json_is_json_of_an_equal_value(value):
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)


def test_whole_floats_are_written_as_integers():
    assert canonical_json({"b": 2.0, "a": [0.5, -0.0, 1e20]}) == (
        '{"a":[0.5,0,100000000000000000000],"b":2}'
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (0, None),
        (1, "1"),
        (0.1, 0.10000000000000002),
        ([1, 2], [2, 1]),
        ([[1], 2], [1, [2]]),
        ({"a": 1}, {"b": 1}),
    ],
)
def test_different_values_have_different_keys(one, other):
    assert content_key(one) != content_key(other)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"a": [1, math.nan]}])
def test_a_value_that_is_no_number_has_no_key(value):
    with pytest.raises(ValueError):
        content_key(value)


def test_a_key_is_twenty_hexadecimal_digits():
    assert len(content_key({})) == 20
    assert int(content_key({}), 16) >= 0


# Publishing


def test_a_published_artifact_is_found_with_its_files_and_description(store):
    artifact = put(store)
    assert artifact.ref == REF
    assert (artifact.path / "a.txt").read_text() == "content"
    assert set(artifact.manifest["files"]) == {"a.txt", "deep/b.bin"}
    assert artifact.manifest["config"] == {"n": 1}
    assert artifact.size == 1007
    assert store.open(REF) == artifact
    assert [e["key"] for e in events(store, "published")] == [KEY]
    assert leftovers(store) == []


def test_cost_is_the_work_if_it_is_told_and_else_the_building(store):
    assert put(store).seconds == store.find(REF).manifest["seconds"]
    with store.publish(Ref("checkpoint", "1"), {"work_seconds": 12.5}):
        pass
    assert store.find(Ref("checkpoint", "1")).seconds == 12.5


def test_a_clock_that_is_set_changes_no_cost(store, monkeypatch):
    """The machine's clock is set right by a year while an artifact is made."""
    now, year = time.time, 365 * 86400
    with store.publish(REF, {}):
        monkeypatch.setattr(time, "time", lambda: now() + year)
    artifact = store.find(REF)
    assert artifact.seconds < 60
    assert abs(artifact.built - now()) < 60


def test_artifacts_made_together_share_their_cost(store, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with store.publish(REF, {}, shares=4):
        clock[0] = 10.0
    assert store.find(REF).seconds == 2.5


@pytest.mark.parametrize("told", [365 * 86400.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", ["seconds", "work_seconds"])
def test_a_cost_that_cannot_be_is_none(store, told, name):
    created = put(store).manifest["created"]
    edit_manifest(store, lambda manifest: manifest.update({name: told}))
    artifact = store.find(REF)
    assert artifact.seconds == 0.0
    assert artifact.built == pytest.approx(created, abs=60)


def test_the_first_publisher_wins_only_if_it_is_there(store):
    """An error at the last step is none that somebody else was first."""
    (store.root / "data").mkdir(parents=True)
    (store.root / "data" / KEY).write_text("in the way")
    with pytest.raises(ArtifactError, match=f"data/{KEY} could not be made"):
        put(store)
    assert events(store, "published") == []
    assert leftovers(store) == []


def test_an_error_inside_the_block_publishes_nothing_and_leaves_nothing(store):
    def break_off():
        with store.publish(REF, {}) as directory:
            (directory / "a.txt").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert store.find(REF) is None
    assert list(store.events()) == []
    assert leftovers(store) == []


def test_readers_see_nothing_before_the_end(store):
    with store.publish(REF, {}) as directory:
        (directory / "a.txt").write_text("content")
        reader = FolderStore(store.root)
        assert reader.find(REF) is None
        assert reader.list() == []
        with pytest.raises(MissingArtifactError, match=f"data/{KEY}"):
            reader.open(REF)
    assert reader.open(REF).size == 7


def test_the_first_publisher_of_a_key_wins(store):
    with store.publish(REF, {"who": "late"}) as directory:
        (directory / "a.txt").write_text("late")
        put(store, text="first")
    artifact = store.open(REF)
    assert (artifact.path / "a.txt").read_text() == "first"
    assert len(events(store, "published")) == 1
    assert leftovers(store) == []


def test_of_many_publishers_at_once_exactly_one_wins(store, child):
    others = [child(PUBLISH, store.root, KEY, f"writer {n}") for n in range(4)]
    assert [other.read() for other in others] == ["writing"] * 4
    for other in others:
        other.say()
    assert [other.read() for other in others] == ["done"] * 4
    assert len(events(store, "published")) == 1
    assert (store.open(REF).path / "a.txt").read_text().startswith("writer ")
    assert leftovers(store) == []


def test_a_publisher_killed_midway_leaves_no_artifact_and_is_swept_while_a_live_one_is_not(
    store, child
):
    dead, live = (child(PUBLISH, store.root, key, key) for key in ("dead", "live"))
    assert (dead.read(), live.read()) == ("writing", "writing")
    dead.kill()
    assert store.find(Ref("data", "dead")) is None
    assert store.list() == []
    assert store.sweep() == 1
    assert {path.name.split("-")[1] for path in (store.root / ".staging").iterdir()} == {"live"}
    assert store.sweep() == 0
    live.say()
    assert live.read() == "done"
    assert (store.open(Ref("data", "live")).path / "a.txt").read_text() == "live"
    assert leftovers(store) == []


def test_a_sweep_between_making_and_taking_a_builders_lock_does_no_harm(store, monkeypatch):
    """Every run begins with a sweep: it may meet the lock of a builder that is just starting."""
    interfere(monkeypatch, store.sweep)
    assert put(store) is not None
    assert store.open(REF).size == 1007


def test_sweeping_an_empty_store_does_nothing(store):
    assert store.sweep() == 0
    assert not store.root.exists()


# Leases


def test_what_many_processes_want_at_once_is_built_once(store, child):
    others = [child(WANT, store.root) for _ in range(4)]
    assert [other.read() for other in others] == ["ready"] * 4
    for other in others:
        other.say()
    assert [other.read() for other in others] == ["ok"] * 4
    assert len(events(store, "execute")) == 1
    assert len(events(store, "published")) == 1
    assert leftovers(store) == []


def test_a_waiter_takes_over_from_a_killed_holder(store, child):
    holder = child(LEASE, store.root)
    assert holder.read() == "held True"
    waiter = child(LEASE, store.root)
    assert waiter.read() == "waiting"
    holder.kill()
    assert waiter.read() == "held True"
    waiter.say()
    assert waiter.read() == "over"


def test_a_waiter_gives_up_when_told_that_it_is_there(store):
    with store.lease(REF) as held:
        assert held
        tries = iter([False, True])
        with store.lease(REF, lambda: next(tries)) as other:
            assert not other
    assert next(tries, "all asked") == "all asked"


def test_leases_of_different_artifacts_do_not_meet(store):
    with store.lease(Ref("data", "a")) as one, store.lease(Ref("data", "b")) as other:
        assert one
        assert other


def test_an_error_under_a_lease_frees_it(store):
    with pytest.raises(ZeroDivisionError), store.lease(REF):
        raise ZeroDivisionError
    with store.lease(REF, lambda: True) as held:
        assert held


# Damage


def edit_manifest(store: FolderStore, change) -> None:
    path = store.root / "data" / KEY / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


DAMAGE = {
    "truncated": lambda p: os.truncate(p / "a.txt", 3),
    "emptied": lambda p: os.truncate(p / "a.txt", 0),
    "grown": lambda p: (p / "a.txt").write_text("content and more"),
    "edited, same size": lambda p: (p / "a.txt").write_text("CONTENT"),
    "one bit flipped": lambda p: damage(p / "a.txt"),
    "deleted": lambda p: (p / "a.txt").unlink(),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("opened_before", [False, True])
def test_a_damaged_file_is_named_and_not_used(store, how, opened_before):
    artifact = put(store)
    if opened_before:
        store.open(REF)
    DAMAGE[how](artifact.path)
    with pytest.raises(CorruptArtifactError) as caught:
        store.open(REF)
    message = str(caught.value)
    assert f"artifact data/{KEY} is damaged" in message
    assert str(artifact.path / "a.txt") in message
    assert "--rebuild" in message


def test_damage_in_a_folder_within_is_found(store):
    damage(put(store).path / "deep" / "b.bin")
    with pytest.raises(CorruptArtifactError, match=r"deep/b\.bin"):
        store.open(REF)


def test_an_edit_that_restores_the_time_stamp_is_found(store):
    path = put(store).path / "a.txt"
    store.open(REF)
    before = path.stat()
    path.write_text("CONTENT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorruptArtifactError, match=r"a\.txt"):
        store.open(REF)


MANIFEST_TEXTS = {
    "empty": "",
    "half": '{"kind": "data", "key"',
    "not JSON": "hello",
    "a list": "[]",
    "null": "null",
    "without files": json.dumps({"kind": "data", "key": KEY}),
    "of another kind": json.dumps({"kind": "images", "key": KEY, "files": {}}),
    "of another key": json.dumps({"kind": "data", "key": "other", "files": {}}),
    "not text": "\udcff",
}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "images"},
        {"key": "4567"},
        {"seconds": None},
        {"created": "today"},
        {"work_seconds": "long"},
    ],
)
def test_a_whole_manifest_with_one_wrong_value_is_damage(store, change):
    """Among them that of another artifact, which somebody copied here."""
    put(store)
    edit_manifest(store, lambda manifest: manifest.update(change))
    with pytest.raises(CorruptArtifactError, match=f"data/{KEY} is damaged.*{MANIFEST_FILE}"):
        store.find(REF)


@pytest.mark.parametrize("how", MANIFEST_TEXTS)
def test_a_broken_manifest_is_damage_even_to_a_reader_that_only_looks(store, how):
    path = put(store).path / MANIFEST_FILE
    path.write_bytes(MANIFEST_TEXTS[how].encode(errors="surrogateescape"))
    for read in (store.find, store.open):
        with pytest.raises(CorruptArtifactError, match=f"data/{KEY} is damaged.*{MANIFEST_FILE}"):
            read(REF)


def test_a_missing_manifest_is_damage(store):
    (put(store).path / MANIFEST_FILE).unlink()
    with pytest.raises(CorruptArtifactError, match=f"{MANIFEST_FILE} is missing"):
        store.find(REF)


MANIFEST_EDITS = {
    "checksum of a file": lambda m: m["files"]["a.txt"].update(sha256="0" * 64),
    "size of a file": lambda m: m["files"]["a.txt"].update(size=8),
    "name of a file": lambda m: m["files"].update({"c.txt": m["files"].pop("a.txt")}),
    "entry without fields": lambda m: m["files"].update({"a.txt": {}}),
    "entry that is no object": lambda m: m["files"].update({"a.txt": 7}),
    "list of files": lambda m: m.update(files=["a.txt"]),
}


@pytest.mark.parametrize("how", MANIFEST_EDITS)
@pytest.mark.parametrize("opened_before", [False, True])
def test_a_manifest_that_does_not_fit_its_files_is_damage(store, how, opened_before):
    put(store)
    if opened_before:
        store.open(REF)
    edit_manifest(store, MANIFEST_EDITS[how])
    with pytest.raises(CorruptArtifactError, match=f"data/{KEY} is damaged"):
        store.open(REF)


def test_damage_survives_the_way_from_a_worker(store):
    damage(put(store).path / "a.txt")
    with pytest.raises(CorruptArtifactError) as caught:
        store.open(REF)
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(caught.value))))
    assert type(again) is CorruptArtifactError
    assert str(again) == str(caught.value)
    assert again.ref == REF


def test_what_is_missing_is_not_called_damaged(store):
    assert store.find(REF) is None
    with pytest.raises(MissingArtifactError, match=f"data/{KEY} is not in {store.root}"):
        store.open(REF)


def test_setting_aside_keeps_every_byte_and_makes_room(store):
    artifact = put(store, text="damaged")
    before = tree(artifact.path)
    aside = store.root / ".corrupt" / store.quarantine(REF)
    assert tree(aside) == before
    assert store.find(REF) is None
    assert len(events(store, "quarantined")) == 1
    put(store, text="rebuilt")
    assert (store.open(REF).path / "a.txt").read_text() == "rebuilt"
    assert tree(aside) == before


def test_setting_aside_twice_keeps_both(store):
    put(store, text="one")
    one = store.quarantine(REF)
    put(store, text="two")
    two = store.quarantine(REF)
    folders = [store.root / ".corrupt" / name for name in (one, two)]
    assert [(folder / "a.txt").read_text() for folder in folders] == ["one", "two"]
    assert store.quarantined() == sorted((one, two))


def test_setting_aside_what_is_not_there_does_nothing(store):
    assert store.quarantine(REF) is None
    assert list(store.events()) == []


# Names


@pytest.mark.parametrize("name", ["../x", "..", "", "a/b", ".hidden", "a.b"])
def test_a_name_that_could_lead_elsewhere_is_refused(name):
    for kind, key in ((name, KEY), ("data", name)):
        with pytest.raises(ValueError, match="letters, digits and '-'"):
            Ref(kind, key)


RECORDS = {
    "lock": lambda store, name: store.lock(name),
    "held": lambda store, name: store.held(f"{name}/"),
    "read_staged": lambda store, name: store.read_staged(name, "a.txt"),
    "write_record": lambda store, name: store.write_record(name, "text"),
    "records": lambda store, name: store.records(name),
    "record_times": lambda store, name: store.record_times(name),
    "delete_record": lambda store, name: store.delete_record(name),
    "delete_quarantined": lambda store, name: store.delete_quarantined(name),
}


@pytest.mark.parametrize("name", ["../outside", ".runs/../../outside"])
@pytest.mark.parametrize("method", RECORDS)
def test_a_record_or_lock_stays_in_the_store(store, name, method):
    with pytest.raises(ValueError, match="must stay in the store"):
        RECORDS[method](store, name)
    with pytest.raises(ValueError, match="must stay in the store"):
        store.lock("/outside")
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_only_what_is_quarantined_is_deleted(store, name):
    put(store)
    store.quarantine(REF)
    with pytest.raises(ValueError, match="must stay in the store"):
        store.delete_quarantined(name)
    assert len(store.quarantined()) == 1


# Symbolic links


def moved_and_linked(store: FolderStore, elsewhere):
    """An artifact that somebody moved to a larger disk."""
    artifact = put(store)
    artifact.path.rename(elsewhere)
    artifact.path.symlink_to(elsewhere)
    return store.open(REF)


def test_of_a_linked_artifact_the_link_is_deleted_and_what_stays_is_named(store, tmp_path, caplog):
    store.delete(moved_and_linked(store, tmp_path / "elsewhere"))
    assert store.find(REF) is None
    assert (tmp_path / "elsewhere" / "a.txt").exists()
    assert str(store.root / "data" / KEY) in caplog.text
    assert str(tmp_path / "elsewhere") in caplog.text
    assert leftovers(store) == []


def test_a_linked_artifact_in_quarantine_is_deleted(store, tmp_path):
    moved_and_linked(store, tmp_path / "elsewhere")
    store.delete_quarantined(store.quarantine(REF))
    assert store.quarantined() == []
    assert (tmp_path / "elsewhere" / "a.txt").exists()


def test_a_link_that_leads_nowhere_is_damage_and_not_work_that_is_lost(store, tmp_path):
    """Else it would be built, and could not be published."""
    moved_and_linked(store, tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(tmp_path / "away")
    with pytest.raises(CorruptArtifactError, match=f"data/{KEY}"):
        store.find(REF)
    assert store.quarantine(REF)
    assert put(store)


def test_what_was_set_aside_and_cannot_be_deleted_is_named(store, monkeypatch):
    put(store)
    name = store.quarantine(REF)

    def refuse(path, **_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(ArtifactError, match=f"{name} could not be deleted: .*busy"):
        store.delete_quarantined(name)


def test_a_kind_on_another_file_system_is_refused_before_work(store, tmp_path):
    """What was built could not be renamed to there."""
    (store.root).mkdir()
    (store.root / "images").symlink_to("/proc")
    with pytest.raises(ValueError, match=r"one file system.*images"):
        store.prepare()


def test_a_file_of_a_store_may_lie_on_another_file_system(store, monkeypatch):
    """In a container it does, where the image has it and the folder is of the layer above."""
    put(store)
    store.log("opened", REF)
    stat = Path.stat

    def of_a_layer(path, **options):
        found = stat(path, **options)
        device = found.st_dev + (path.name == "events.jsonl")
        return os.stat_result((*found[:2], device, *found[3:10]))

    monkeypatch.setattr(Path, "stat", of_a_layer)
    store.prepare()


def test_all_that_a_run_writes_in_a_store_is_looked_at_before_work(store, monkeypatch):
    """Also the times of commands: else a command would fail at its end."""
    seen = []
    monkeypatch.setattr(
        "pipelines.store.folder.require_writable", lambda _, names, __: seen.extend(names)
    )
    for name in (".runs/a.json", ".runs/a.1", ".drivers/store-id"):
        store.write_record(name, "{}")
    store.prepare()
    assert {path.name for path in store.root.iterdir()} <= set(seen)


# Listing, deleting, the event log


def test_listing_is_sorted_and_filters_by_kind_and_by_prefix(store):
    for kind, key in (("images", "b1"), ("data", "a2"), ("images", "b0"), ("images", "c")):
        put(store, kind, key)
    assert [a.ref for a in store.list()] == [
        Ref("data", "a2"),
        Ref("images", "b0"),
        Ref("images", "b1"),
        Ref("images", "c"),
    ]
    assert [a.ref.key for a in store.list("images", "b")] == ["b0", "b1"]
    assert store.list("nothing") == []


def test_listing_leaves_out_what_cannot_be_read_or_is_not_finished(store):
    put(store, key="good")
    (put(store, key="bad").path / MANIFEST_FILE).write_text("{")
    with store.publish(Ref("data", "unfinished"), {}):
        assert [a.ref.key for a in store.list()] == ["good"]


@pytest.mark.parametrize("name", [".nfs000012", ".DS_Store", "notes.txt"])
def test_a_stray_file_beside_the_artifacts_does_not_stop_listing(store, name):
    put(store)
    (store.root / "data" / name).write_text("left by a file system or a person")
    (store.root / "data" / ".snapshots").mkdir()
    assert [a.ref.key for a in store.list()] == [KEY]
    assert list(store.refs()) == [REF]


def test_deleting_removes_one_artifact_and_says_so(store):
    put(store, key="other")
    store.delete(put(store))
    assert store.find(REF) is None
    assert [a.ref.key for a in store.list()] == ["other"]
    assert [e["key"] for e in events(store, "deleted")] == [KEY]
    assert leftovers(store) == []


DELETE = """
import shutil, sys
from pipelines.store.folder import FolderStore
from pipelines.store.keys import Ref
store = FolderStore(sys.argv[1])
def stuck(*_, **__):
    print("deleting")
    input()
shutil.rmtree = stuck
store.delete(store.find(Ref("data", sys.argv[2])))
"""


def test_a_deletion_killed_midway_is_out_of_sight_and_swept_later(store, child):
    put(store)
    other = child(DELETE, store.root, KEY)
    assert other.read() == "deleting"
    assert store.find(REF) is None
    assert store.sweep() == 0
    other.kill()
    assert store.sweep() == 1
    assert leftovers(store) == []


LOG = """
import sys
from pipelines.store.folder import FolderStore
from pipelines.store.keys import Ref
store = FolderStore(sys.argv[1])
print("ready")
input()
for n in range(100):
    store.log("tick", Ref("data", sys.argv[2]), n=n, text=sys.argv[2] * 9000)
"""


def test_event_lines_of_many_processes_never_mix(store, child):
    others = [child(LOG, store.root, who) for who in "abcd"]
    assert [other.read() for other in others] == ["ready"] * 4
    for other in others:
        other.say()
    assert [other.finish() for other in others] == [0] * 4
    found = list(store.events())
    assert all(event["text"] == event["key"] * 9000 for event in found)
    for who in "abcd":
        assert [event["n"] for event in found if event["key"] == who] == list(range(100))


def test_an_empty_store_has_no_events(store):
    assert list(store.events()) == []


def test_the_stores_errors_are_one_family():
    assert issubclass(MissingArtifactError, ArtifactError)
    assert issubclass(CorruptArtifactError, ArtifactError)
