"""Copies of a bucket's artifacts on one machine, up to a size."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.store.bucket.cache import Cache
from pipelines.store.folder import FolderStore
from tests.equipment.processes import wait_for
from tests.pipelines.conftest import run_inline, tiny


@pytest.fixture
def cache(tmp_path) -> Cache:
    """Room for one entry; what was used within a second or so stays."""
    return Cache(tmp_path / "cache", 1500, 1.2)


def fetch(cache: Cache, name: str) -> bool:
    return cache.fetch(name, lambda folder: (folder / "a.bin").write_bytes(bytes(1000)), 1000)


def names(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.folder.glob("[!.]*"))


def grow_old(cache: Cache) -> None:
    for name in names(cache):
        os.utime(cache.path(name), (1.0, 1.0))


def kept_young(cache: Cache) -> None:
    wait_for(lambda: min(cache.path(name).stat().st_mtime for name in names(cache)) > 1.0, 30)


def test_what_is_in_use_stays_however_long_the_rest_takes_to_come(cache, caplog):
    """A training opens all its shards before it reads one; all of them take an hour to fetch."""
    with cache.keeping():
        for name in "abc":
            fetch(cache, name)
            grow_old(cache)
            kept_young(cache)
        assert names(cache) == ["a", "b", "c"]
        assert not fetch(cache, "a")
    assert caplog.text.count("IGDIT_CACHE_GIB") == 1
    wait_for(lambda: cache._keeper is None, 30)
    grow_old(cache)
    fetch(cache, "d")
    assert names(cache) == ["d"]


def test_blocks_in_one_another_keep_what_the_outer_one_uses(cache):
    with cache.keeping():
        with cache.keeping():
            fetch(cache, "a")
        grow_old(cache)
        kept_young(cache)
        fetch(cache, "b")
        assert names(cache) == ["a", "b"]


def test_after_a_block_the_next_one_is_kept_as_well(cache):
    with cache.keeping():
        fetch(cache, "a")
    wait_for(lambda: cache._keeper is None, 30)
    with cache.keeping():
        fetch(cache, "b")
        grow_old(cache)
        wait_for(lambda: cache._used("b") > 1.0, 30)
        fetch(cache, "c")
        assert names(cache) == ["b", "c"]


def test_without_a_block_what_was_used_longest_ago_goes_first(cache, caplog):
    fetch(cache, "a")
    grow_old(cache)
    fetch(cache, "b")
    assert names(cache) == ["b"]
    assert caplog.text == ""


def test_what_several_want_at_once_is_fetched_once(tmp_path):
    started, filled = threading.Event(), []

    def fill(folder):
        started.set()
        time.sleep(0.2)
        filled.append(folder)

    def want():
        return Cache(tmp_path / "cache", 1500).fetch("a", fill)  # as a process of its own

    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(want)
        started.wait()
        others = [threads.submit(want) for _ in range(2)]
        assert [first.result(), *(other.result() for other in others)] == [True, False, False]
    assert len(filled) == 1


def test_whatever_a_worker_opens_it_uses_until_it_is_done(store, monkeypatch):
    """Training, sampling and evaluation."""
    blocks, opened = [], []
    real = FolderStore.open

    class Block:
        def __enter__(self):
            blocks.append(self)

        def __exit__(self, *_):
            blocks.remove(self)

    def note(store, ref):
        opened.append((ref.kind, bool(blocks)))
        return real(store, ref)

    for artifact in store.list():
        if artifact.ref.kind not in ("data", "extractor", "reference"):
            store.delete(artifact)
    monkeypatch.setattr(FolderStore, "using", lambda store: Block())
    monkeypatch.setattr(FolderStore, "open", note)
    run_inline(store, tiny())
    used = {kind for kind, within in opened if within}
    assert used >= {"data", "checkpoint", "images", "features", "extractor", "reference"}
    assert {kind for kind, within in opened if not within} <= {"evaluate", "sample"}
