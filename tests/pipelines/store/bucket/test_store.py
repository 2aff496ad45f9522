"""The store in a bucket, on a real S3 server on loopback: what a folder promises, it promises."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref

import fsspec
import pytest

from cluster.services import S3
from pipelines.common.errors import ArtifactError, MissingArtifactError
from pipelines.graph.garbage import collect_garbage, in_use
from pipelines.store.base import Store
from pipelines.store.bucket import leases as bucket_locks
from pipelines.store.bucket import objects as bucket
from pipelines.store.bucket.leases import BucketLock, Leases
from pipelines.store.bucket.store import MARK, PROBED, BucketStore
from pipelines.store.errors import CorruptArtifactError
from pipelines.store.keys import Ref
from pipelines.store.open import open_store
from tests.equipment.processes import wait_for
from tests.equipment.store_programs import LEASE, PUBLISH, WANT
from tests.pipelines.conftest import events, tree

KEY = "0123abcd"
REF = Ref("data", KEY)
SECONDS = 3.0
"""How long a lease lasts here."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An S3 server with a bucket."""
    server = S3(tmp_path_factory.mktemp("s3"), secret_key="not-a-secret")
    server.start()
    try:
        server.make_bucket("lab")
        yield server
    finally:
        server.close()


@pytest.fixture
def use(server, monkeypatch, tmp_path):
    """Address the server as the environment of a node does; gives a prefix of this test's own."""
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "IGDIT_CACHE": str(tmp_path / "cache"),
        "IGDIT_LEASE_SECONDS": str(SECONDS),
    }.items():
        monkeypatch.setenv(name, value)
    return f"s3://lab/{tmp_path.name}"


@pytest.fixture
def store(use) -> Store:
    store = open_store(use)
    store.bucket.write(MARK, PROBED)  # as `prepare` does after it has tried the server
    return store


def put(store: Store, kind: str = "data", key: str = KEY, text: str = "content"):
    with store.publish(Ref(kind, key), {"config": {"n": 1}}) as directory:
        (directory / "a.txt").write_text(text)
        (directory / "deep").mkdir()
        (directory / "deep" / "b.bin").write_bytes(bytes(1000))
    return store.find(Ref(kind, key))


def objects(store: Store, *folders: str) -> list[str]:
    """What lies in the bucket, but for the log, the marker and notes on who was swept."""
    return [
        name
        for name in store.bucket.list("")
        if not name.startswith((".events/", ".igdit-store", ".fences/"))
        and (not folders or name.startswith(folders))
    ]


# What is published


def test_a_published_artifact_is_found_and_opened_by_another_machine(
    store, use, monkeypatch, tmp_path
):
    put(store)
    monkeypatch.setenv("IGDIT_CACHE", str(tmp_path / "elsewhere"))
    other = open_store(use)
    artifact = other.open(REF)
    assert artifact.path.is_relative_to(tmp_path / "elsewhere")
    assert tree(artifact.path) == tree(store.open(REF).path)
    assert (artifact.size, artifact.manifest["config"]) == (1007, {"n": 1})
    assert [a.ref for a in other.list()] == [REF]
    assert len(objects(store)) == 3  # two files and the manifest; no lock is left


def test_what_was_built_here_is_not_fetched_again(store, monkeypatch):
    put(store)
    monkeypatch.setattr(store.bucket, "download", None)
    assert store.open(REF).size == 1007


def test_an_error_inside_the_block_publishes_nothing_and_leaves_nothing(store):
    def fail():
        with store.publish(REF, {}) as directory:
            (directory / "a.txt").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.find(REF) is None
    assert objects(store) == []
    assert list((store.cache.folder / ".staging").iterdir()) == []


def test_an_error_while_uploading_publishes_nothing_and_leaves_nothing(store, monkeypatch):
    upload = store.bucket.upload

    def partly(files):
        upload(dict([next(iter(files.items()))]))
        raise OSError("the disk of the server is full")

    monkeypatch.setattr(store.bucket, "upload", partly)
    with pytest.raises(ArtifactError, match=r"could not be made.*disk of the server is full"):
        put(store)
    assert objects(store) == []


def test_of_many_publishers_at_once_exactly_one_wins(store, child, use):
    others = [child(PUBLISH, use, KEY, f"writer {n}") for n in range(4)]
    assert [other.read() for other in others] == ["writing"] * 4
    for other in others:
        other.say()
    assert [other.read() for other in others] == ["done"] * 4
    assert len(events(store, "published")) == 1
    assert (store.open(REF).path / "a.txt").read_text().startswith("writer ")
    assert len(objects(store)) == 2


def test_a_publisher_killed_midway_is_swept_while_a_live_one_is_not(store, child, use):
    dead, live = (child(PUBLISH, use, key, key) for key in ("dead", "live"))
    assert (dead.read(), live.read()) == ("writing", "writing")
    dead.kill()
    store.bucket.write(f"files/data/dead/{_attempt_of(store, 'dead')}/a.txt", b"half")
    assert store.list() == []
    wait_for(lambda: store.sweep() and not objects(store, "files/data/dead"), 60)
    assert [name.split("-")[1] for name in store.held(".staging/")] == ["live"]
    live.say()
    assert live.read() == "done"
    assert (store.open(Ref("data", "live")).path / "a.txt").read_text() == "live"
    assert len(objects(store)) == 2


def _attempt_of(store: Store, key: str) -> str:
    return next(name for name in store.held(".staging/") if key in name).rpartition("-")[2]


def elsewhere(store: Store, monkeypatch, tmp_path, name: str = "elsewhere") -> Store:
    """The same store, seen from another machine."""
    monkeypatch.setenv("IGDIT_CACHE", str(tmp_path / name))
    return open_store(store.uri)


def test_a_builder_that_slept_and_was_swept_publishes_all_its_files(store, monkeypatch, tmp_path):
    """A laptop's lid, a suspended job: it looks dead, and is not."""
    upload, swept = store.bucket.upload, []

    def sleep_after(files):
        upload(files)
        if not swept:
            attempt = next(iter(files)).split("/")[3]
            swept.append(attempt)
            open_store(store.uri)._publication.sweep(REF, attempt)

    monkeypatch.setattr(store.bucket, "upload", sleep_after)
    put(store)
    artifact = elsewhere(store, monkeypatch, tmp_path).open(REF)
    assert artifact.size == 1007
    assert artifact.manifest["attempt"] not in swept
    assert len(objects(store)) == 3


def test_a_sweeper_that_comes_too_late_leaves_what_was_published(store, monkeypatch, tmp_path):
    attempt = put(store).manifest["attempt"]
    store._publication.sweep(REF, attempt)
    assert elsewhere(store, monkeypatch, tmp_path).open(REF).size == 1007
    assert store.bucket.list(".fences") == {}


# Leases


def test_what_many_processes_want_at_once_is_built_once(store, child, use):
    others = [child(WANT, use) for _ in range(4)]
    assert [other.read() for other in others] == ["ready"] * 4
    for other in others:
        other.say()
    assert [other.read() for other in others] == ["ok"] * 4
    assert len(events(store, "execute")) == 1
    assert len(events(store, "published")) == 1
    assert objects(store, ".locks") == []


def test_a_waiter_takes_over_from_a_killed_holder_but_not_from_one_that_is_slow(store, child, use):
    holder = child(LEASE, use)
    assert holder.read() == "held True"
    waiter = child(LEASE, use)
    assert waiter.read() == "waiting"
    time.sleep(2.5 * SECONDS)  # it is renewed all the while
    assert store.held(".leases/")["data-shared"].pid == holder.process.pid
    holder.kill()
    assert waiter.read() == "held True"
    assert store.held(".leases/")["data-shared"].pid == waiter.process.pid
    waiter.say()
    assert waiter.read() == "over"
    assert objects(store, ".locks") == []


def test_shared_and_exclusive_locks_shut_each_other_out(store):
    one, other = (store.lock("x", shared=True) for _ in range(2))
    alone = store.lock("x")
    assert (one.acquire(), other.acquire(), alone.acquire()) == (True, True, False)
    one.release()
    assert not alone.acquire()
    other.release()
    assert (alone.acquire(), one.acquire()) == (True, False)
    alone.release()
    assert one.acquire()


def test_a_process_that_holds_no_lease_keeps_no_thread_and_no_client():
    leases = Leases(bucket.Bucket("memory://leases"), 0.6)
    for path in ("first", "second"):
        leases.hold(path, b"held")
        wait_for(lambda path=path: leases.bucket.read(path) == b"held")
        leases.release(path)
        wait_for(lambda: leases._renewer is None)
        assert leases.bucket.read(path) is None
    client = weakref.ref(leases.bucket)
    leases = None
    wait_for(lambda: gc.collect() is not None and client() is None)


class Slow(Leases):
    """Leases of a process that stops for a while between looking and writing."""

    def __init__(self, bucket) -> None:
        super().__init__(bucket, SECONDS)
        self.pause = lambda: None

    def live(self, name):
        found = super().live(name)
        pause, self.pause = self.pause, lambda: None
        pause()
        return found


def test_two_that_saw_a_free_lock_do_not_both_get_it(store):
    slow = Slow(store.bucket)
    lock, rival = BucketLock(slow, "x"), store.lock("x", shared=True)
    slow.pause = rival.acquire  # while the slow one believes that the lock is free
    assert not lock.acquire()
    rival.release()
    assert lock.acquire()


def test_an_old_lease_is_not_taken_at_first_sight(store, monkeypatch):
    """After an outage all leases look old, also those of the living."""
    other = Leases(store.bucket, SECONDS)
    monkeypatch.setattr(other, "_renew", lambda: None)
    held = BucketLock(other, "x")
    assert held.acquire()
    time.sleep(SECONDS + 1.5)
    assert not store.lock("x").acquire()  # it may have been kept from renewing
    other.bucket.write(held._path, other._held[held._path])
    time.sleep(SECONDS / 3)
    assert not store.lock("x").acquire()  # and indeed it lives
    wait_for(lambda: store.lock("x").acquire(), 5 * SECONDS)


def test_a_short_lease_does_not_die_of_an_outage(store):
    """What counts as long dead is longer than any outage that is waited out."""
    leases = Leases(store.bucket, 2.0)
    now = store.bucket.now()
    assert leases._may_live(".locks/x/x-000001", now - bucket.OUTAGE_SECONDS)
    assert not leases._may_live(".locks/x/x-000001", now - bucket.OUTAGE_SECONDS - 10)


def test_what_this_process_holds_it_never_takes_for_dead(store, monkeypatch):
    """Its renewals may have waited for the end of an outage."""
    held, now = store.lock("x"), store.bucket.now
    assert held.acquire()
    monkeypatch.setattr(store.bucket, "now", lambda: now() + 3600)
    monkeypatch.setattr(store.leases.bucket, "now", lambda: now() + 3600)
    assert not store.lock("x").acquire()


def test_a_lock_whose_taking_failed_is_held_by_nobody(store, monkeypatch):
    lock, live = store.lock("x"), store.leases.live
    calls = []

    def fail_at_second_look(name):
        calls.append(name)
        if len(calls) == 2:
            raise ArtifactError("the bucket is away")
        return live(name)

    monkeypatch.setattr(store.leases, "live", fail_at_second_look)
    with pytest.raises(ArtifactError):
        lock.acquire()
    assert objects(store, ".locks") == []
    assert store.lock("x").acquire()


def test_the_time_is_asked_for_again_after_a_while(store, monkeypatch):
    """Also after a sleep of this machine, in which a monotonic clock may stand still."""
    asked, write = [], store.bucket.write
    monkeypatch.setattr(store.bucket, "write", lambda *a: asked.append(a) or write(*a))
    store.bucket.now()
    store.bucket.now()
    assert len(asked) <= 1
    elapsed = bucket._elapsed
    monkeypatch.setattr(bucket, "_elapsed", lambda: elapsed() + bucket.CLOCK_SECONDS + 1)
    before = len(asked)
    assert abs(store.bucket.now() - time.time()) < 60
    assert len(asked) == before + 1


def test_times_of_the_server_count_not_those_of_the_machines(store, monkeypatch):
    held = store.lock("x")
    assert held.acquire()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert not open_store(store.uri).lock("x").acquire()


# Damage


@pytest.mark.parametrize("how", ["cut", "changed", "removed"])
def test_damage_in_the_bucket_is_named_and_not_used(store, use, monkeypatch, tmp_path, how):
    artifact = put(store)
    name = next(name for name in objects(store) if name.endswith("a.txt"))
    if how == "removed":
        store.bucket.delete(name)
    else:
        store.bucket.write(name, b"conten" if how == "cut" else b"CONTENT")
    monkeypatch.setenv("IGDIT_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(CorruptArtifactError, match=r"data/0123abcd is damaged: .*s3://lab/"):
        open_store(use).open(REF)
    assert store.open(REF).path == artifact.path  # the copy here is whole


def test_a_damaged_copy_is_fetched_again(store):
    artifact = put(store)
    (artifact.path / "a.txt").write_text("CONTENT")
    assert (store.open(REF).path / "a.txt").read_text() == "content"
    (artifact.path / "deep" / "b.bin").unlink()
    assert (store.open(REF).path / "deep" / "b.bin").stat().st_size == 1000


OPEN = """
import sys
from pipelines.store.keys import Ref
from pipelines.store.open import open_store
store = open_store(sys.argv[1])
print("ready")
input()
print(store.open(Ref("data", "0123abcd")).size)
"""


def test_many_processes_that_find_a_damaged_copy_all_get_a_good_one(store, child, use):
    artifact = put(store)
    (artifact.path / "a.txt").write_text("CONTENT")
    others = [child(OPEN, use) for _ in range(6)]
    assert [other.read() for other in others] == ["ready"] * 6
    for other in others:
        other.say()
    assert [other.read() for other in others] == ["1007"] * 6
    assert (artifact.path / "a.txt").read_text() == "content"


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"kind": "data"}', "\xff"])
def test_a_broken_manifest_is_damage(store, text):
    put(store)
    store.bucket.write(f"manifests/data/{KEY}.json", text.encode("latin-1"))
    with pytest.raises(CorruptArtifactError):
        open_store(store.uri).find(REF)
    assert open_store(store.uri).list() == []


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/../../b", "", "a//b", "..", "a\0b"])
def test_a_manifest_cannot_have_files_written_elsewhere(store, name, tmp_path):
    put(store)
    manifest = json.loads(store.bucket.read(f"manifests/data/{KEY}.json"))
    manifest["files"] = {name: manifest["files"]["a.txt"]}
    store.bucket.write(f"manifests/data/{KEY}.json", json.dumps(manifest).encode())
    before = tree(tmp_path)
    with pytest.raises(CorruptArtifactError, match="does not stay in the artifact"):
        open_store(store.uri).open(REF)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("attempt", ["../x", "", None, 7, "a/b"])
def test_a_manifest_cannot_lead_elsewhere_by_its_attempt(store, attempt):
    put(store)
    manifest = json.loads(store.bucket.read(f"manifests/data/{KEY}.json"))
    manifest["attempt"] = attempt
    store.bucket.write(f"manifests/data/{KEY}.json", json.dumps(manifest).encode())
    with pytest.raises(CorruptArtifactError):
        open_store(store.uri).open(REF)


def test_what_is_missing_is_not_called_damaged(store):
    with pytest.raises(MissingArtifactError, match=f"data/{KEY} is not in {store.uri}"):
        store.open(REF)


def test_setting_aside_keeps_every_byte_and_makes_room(store):
    put(store, text="damaged")
    before = set(objects(store, "files/"))
    aside = store.quarantine(REF)
    assert store.find(REF) is None
    assert before <= set(objects(store))
    put(store, text="rebuilt")
    assert (store.open(REF).path / "a.txt").read_text() == "rebuilt"
    assert store.quarantined() == [aside]
    store.delete_quarantined(aside)
    assert len(objects(store)) == 3
    assert not before & set(objects(store))


# Keeping house


def test_garbage_collection_waits_for_no_run_and_leaves_nothing(store):
    put(store)
    with in_use(store), pytest.raises(ArtifactError, match="a run is using the store"):
        collect_garbage(store)
    assert [a.ref.key for a in collect_garbage(store).artifacts] == [KEY]
    assert objects(store) == []
    assert not list(store.cache.folder.glob("data*"))


def test_records_are_written_once(store):
    store.write_record(".runs/a.json", "first")
    store.write_record(".runs/a.json", "second")
    assert store.records(".runs/") == {"a.json": "first"}
    assert abs(store.record_times(".runs/")["a.json"] - time.time()) < 60
    store.delete_record(".runs/a.json")
    assert store.records(".runs/") == {}


def test_the_last_events_are_read_without_the_others(store, monkeypatch):
    for number in range(5):
        store.log("made", Ref("data", str(number)))
    assert [event["key"] for event in store.events()] == list("01234")
    read = []
    monkeypatch.setattr(store.bucket, "read", lambda name: read.append(name) or b"{}")
    assert len(store.events(2)) == len(read) == 2


def test_the_cache_keeps_to_its_size_and_what_was_used_last(store, monkeypatch):
    store.cache.limit, store.cache._keep = 2500, 0.0
    for key in ("a", "b", "c"):
        put(store, key=key)
        store.open(Ref("data", "a"))
        time.sleep(0.02)
    names = {path.name.split(".")[1] for path in store.cache.folder.glob("data*") if path.is_dir()}
    assert names == {"a", "c"}
    assert store.open(Ref("data", "b")).size == 1007


def test_what_was_used_lately_stays_however_much_it_is(store):
    store.cache.limit = 1
    put(store, key="a")
    put(store, key="b")
    assert all((store.open(Ref("data", key)).path / "a.txt").exists() for key in "ab")


def test_what_a_dead_process_was_fetching_goes_and_counts_until_then(store):
    put(store)
    left = store.cache.folder / ".staging" / "data.0123abcd.0123456789ab-ffffffffffff"
    left.mkdir(parents=True)
    (left / "a.bin").write_bytes(bytes(5000))
    left.with_name(left.name + ".lock").touch()
    store.cache.limit, store.cache._keep = 5500, 0.0
    store.cache._trim()
    assert not list(store.cache.folder.glob("data*"))  # there was room for one of them only
    assert store.sweep() == 1
    assert not left.exists()


def test_an_entry_that_is_used_meanwhile_is_not_evicted(store):
    path = put(store).path
    seen = path.stat().st_mtime
    assert store.open(REF)
    store.cache._delete_unused(path.name, seen)
    assert path.exists()
    store.cache._delete_unused(path.name, path.stat().st_mtime)
    assert not path.exists()


def test_a_listing_asks_for_the_keys_that_begin_so(store, monkeypatch):
    for key in ("aa-00000001", "aa-00000002", "bb-00000001"):
        put(store, "checkpoint", key)
    find, asked = store.bucket._fs.find, []

    def note(path, **options):
        asked.append(options)
        return find(path, **options)

    monkeypatch.setattr(store.bucket._fs, "find", note)
    assert [ref.key for ref in store.refs("checkpoint", "aa-")] == ["aa-00000001", "aa-00000002"]
    assert asked[0]["prefix"] == "aa-"


# Outages


def test_a_long_transfer_that_breaks_twice_is_no_outage(store, monkeypatch):
    monkeypatch.setattr(bucket, "OUTAGE_SECONDS", 0.5)
    tries = []

    def act():
        tries.append(time.monotonic())
        if len(tries) <= 2:
            time.sleep(0.4)
            raise ConnectionError("reset by peer")
        return "done"

    assert store.bucket.read("nothing") is None
    assert store.bucket._retry_while_unavailable(act) == "done"


def test_what_always_fails_fails_in_the_end_though_the_bucket_answers(store, monkeypatch):
    monkeypatch.setattr(bucket, "OUTAGE_SECONDS", 0.1)
    assert store.bucket.read("nothing") is None

    def act():
        raise ConnectionError("no")

    with pytest.raises(ArtifactError, match="cannot be used: ConnectionError: no"):
        store.bucket._retry_while_unavailable(act)


def test_work_goes_on_after_an_outage(store, server):
    put(store, key="before")
    server.stop()
    back = threading.Timer(3.0, server.start)
    back.start()
    try:
        put(store, key="during")
    finally:
        back.join()
    assert {a.ref.key for a in open_store(store.uri).list()} == {"before", "during"}
    assert len(events(store, "published")) == 2
    assert objects(store, ".locks") == []


def test_a_worker_that_starts_during_an_outage_waits_for_its_end(store, server, monkeypatch):
    """Its driver knows that the address is right."""
    put(store)
    monkeypatch.setattr(bucket, "FIRST_SECONDS", 0.5)
    server.stop()
    back = threading.Timer(3.0, server.start)
    back.start()
    try:
        assert open_store(store.uri, in_use=True).find(REF) is not None
    finally:
        back.join()


def test_an_outage_that_lasts_ends_the_work_with_one_message(store, server, monkeypatch):
    monkeypatch.setattr(bucket, "OUTAGE_SECONDS", 1.0)
    server.stop()
    try:
        with pytest.raises(ArtifactError, match="cannot be used"):
            store.find(REF)
    finally:
        server.start()


def test_an_answer_that_got_lost_is_no_refusal(store, monkeypatch):
    """The server has it, but the connection broke before it said so."""
    pipe, lost = store.bucket._fs.pipe_file, []

    def once(path, data, **options):
        pipe(path, data, **options)
        if not lost:
            lost.append(path)
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(store.bucket._fs, "pipe_file", once)
    assert store.bucket.create("x", b"mine")
    assert lost
    assert not store.bucket.create("x", b"another's")


# Addresses


def test_a_server_that_overwrites_is_refused(use, monkeypatch):
    create = bucket.Bucket.create

    def overwrite(self, name, data):
        self.write(name, data)
        return True

    monkeypatch.setattr(bucket.Bucket, "create", overwrite)
    store = open_store(use)
    with pytest.raises(ValueError, match=r"does not heed If-None-Match.*Use an S3 with"):
        store.prepare()
    monkeypatch.setattr(bucket.Bucket, "create", create)
    assert objects(store) == []


def check_then_write(self, name, data):
    """A library that looks first: right as long as it is alone."""
    if self.read(name) is not None:
        return False
    self.write(name, data)
    return True


def test_a_bucket_that_creates_in_two_steps_is_refused(use, monkeypatch):
    store = open_store(use)
    with monkeypatch.context() as patch:
        patch.setattr(bucket.Bucket, "create", check_then_write)
        assert [store.bucket.create("x", data) for data in (b"1", b"2")] == [True, False]
        store.bucket.delete("x")
        with pytest.raises(ValueError, match=r"of 8 that created one object at once [2-8] did"):
            store.prepare()
    assert not store.exists()
    assert objects(store) == []


def test_a_bucket_that_was_marked_before_is_tried_once_more(use, monkeypatch):
    """Its mark may be of a time when a sequence of writes was trusted."""
    store = open_store(use)
    store.bucket.write(".igdit-store", b"0123\n")
    with monkeypatch.context() as patch:
        patch.setattr(bucket.Bucket, "create", check_then_write)
        with pytest.raises(ValueError, match="cannot be used"):
            store.prepare()
    store.prepare()
    assert store.bucket.read(".igdit-store").startswith(b"0123\n")
    monkeypatch.setattr(bucket.Bucket, "create", None)
    open_store(use).prepare()  # tried once and for all


@pytest.mark.parametrize("protocol", ["memory", "two-steps"])
def test_a_library_that_looks_before_it_writes_is_refused_by_how_it_does_it(tmp_path, protocol):
    class TwoSteps(fsspec.get_filesystem_class("memory")):
        protocol = "two-steps"
        pipe_file = fsspec.AbstractFileSystem.pipe_file

    fsspec.register_implementation("two-steps", TwoSteps, clobber=True)
    store = BucketStore(f"{protocol}://lab/{tmp_path.name}", tmp_path, 10**9)
    with pytest.raises(ValueError, match="looks whether an object is there and then writes it"):
        store.prepare()
    assert not store.exists()


def test_a_bucket_that_is_not_there_is_named(use):
    with pytest.raises(ValueError, match=r"s3://no-such-bucket/x is not: .*does not exist"):
        open_store("s3://no-such-bucket/x").prepare()


def test_nobody_at_the_address_is_said_soon(use, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(bucket, "FIRST_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"must be a bucket.*Could not connect"):
        open_store(use + "/nobody").prepare()
    assert time.monotonic() - started < bucket.OUTAGE_SECONDS / 4


@pytest.mark.parametrize("answered", [True, False])
def test_what_answered_once_is_waited_for_longer_than_what_never_did(use, monkeypatch, answered):
    found, clock = open_store(use).bucket, [0.0]
    assert not answered or found.read("nothing") is None
    monkeypatch.setattr(found, "_answers", lambda: False)

    class Time:
        """Of this module alone: fsspec's threads go by the real one."""

        monotonic = staticmethod(lambda: clock[0])
        sleep = staticmethod(lambda seconds: None)

    def act():
        clock[0] += 1.0
        raise ConnectionError("refused")

    monkeypatch.setattr(bucket, "time", Time)
    with pytest.raises(ArtifactError, match="refused"):
        found._retry_while_unavailable(act)
    expected = bucket.OUTAGE_SECONDS if answered else bucket.FIRST_SECONDS
    assert clock[0] == pytest.approx(expected, abs=2)


def test_the_servers_time_goes_on_between_two_looks(store, monkeypatch):
    elapsed, first = bucket._elapsed, store.bucket.now()
    monkeypatch.setattr(bucket, "_elapsed", lambda: elapsed() + 100.0)
    assert store.bucket.now() == pytest.approx(first + 100.0, abs=20)


@pytest.mark.parametrize("address", ["s3://", "http://host/x", "s3:///", "nfs://a/b"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ValueError, match=r"s3://BUCKET/PREFIX.*but got"):
        open_store(address)


@pytest.mark.parametrize("size", ["0", "-1", "much", "nan", "inf"])
def test_a_cache_size_that_is_none_is_refused(use, monkeypatch, size):
    monkeypatch.setenv("IGDIT_CACHE_GIB", size)
    with pytest.raises(ValueError, match=f"IGDIT_CACHE_GIB must be a positive number.*{size}"):
        open_store(use)


def test_a_lease_time_that_is_none_is_refused(use, monkeypatch):
    monkeypatch.setenv("IGDIT_LEASE_SECONDS", "0.5")
    with pytest.raises(ValueError, match=r"IGDIT_LEASE_SECONDS must be at least 2 .*'0.5'"):
        open_store(use)


def test_the_time_of_a_lease_is_a_minute_unless_told_otherwise(use, monkeypatch):
    monkeypatch.delenv("IGDIT_LEASE_SECONDS")
    assert open_store(use).leases.seconds == bucket_locks.LEASE_SECONDS == 60.0
