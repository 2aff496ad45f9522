"""When a run's commands ran: one start, the last end, and whether one is still open."""

from __future__ import annotations

import time

from ig_core.config import Guidance
from pipelines.common.revision import code_commit, commit_of, split_commit
from pipelines.common.settings import COMMIT
from pipelines.graph.garbage import collect_garbage
from pipelines.graph.graph import Graph
from pipelines.reports.blocks import provenance
from pipelines.results.measurements import collect
from pipelines.store.folder import FolderStore
from pipelines.store.register import (
    CommandTimes,
    Record,
    command_times,
    record_end,
    record_start,
    remember,
)
from pipelines.tracking.metrics import commit_tags, run_ended_ms, started_ms
from tests.pipelines.conftest import run_inline, tiny


def test_a_run_begins_with_its_first_command_and_ends_with_the_last_that_ended(tmp_path):
    store = FolderStore(tmp_path)
    store.prepare()
    assert command_times(store, "ab") == CommandTimes(None, None, False)
    record_start(store, "ab", 10.0)
    record_start(store, "cd", 5.0)
    assert command_times(store, "ab") == CommandTimes(10_000, None, True)
    record_start(store, "ab", 20.0)  # the first was killed
    before = round(1000 * time.time())
    record_end(store, "ab", 20.0)
    found = command_times(store, "ab")
    assert (found.started_ms, found.is_open) == (10_000, False)
    assert before <= found.ended_ms <= round(1000 * time.time())


def test_the_times_of_a_run_are_those_of_its_command_and_go_with_its_record(store, finished):
    results = collect(store, finished.graph)
    times = command_times(store, finished.graph.run_key)
    assert (started_ms(results), run_ended_ms(results)) == (times.started_ms, times.ended_ms)
    stamps = [1000 * m.artifact.manifest["created"] for m in results.measurements]
    assert times.started_ms <= min(stamps)
    assert max(stamps) <= times.ended_ms
    collect_garbage(store, (finished.graph.run_key,))
    assert command_times(store, finished.graph.run_key).started_ms is None


def test_artifacts_name_the_code_that_made_them(store, monkeypatch):
    """On a node, where the code came without its repository, by a variable."""
    monkeypatch.setattr("pipelines.stages.context.code_commit", lambda: "0123456789abcdef+")
    graph = run_inline(store, tiny(ig_scales=(1.25,)))
    results = collect(store, graph)
    tags = commit_tags(results)
    assert tags["mlflow.source.git.commit"] == tags["igdit.git.commit"] == "0123456789abcdef"
    assert tags["igdit.git.dirty"] == "yes"
    page = str(provenance([results.final[Guidance(ig_scale=1.25)].artifact]))
    assert "0123456789ab with uncommitted changes" in page


def test_a_repository_around_the_installed_code_is_not_its_own(tmp_path, monkeypatch):
    code_commit.cache_clear()
    monkeypatch.setattr("pipelines.common.revision.CODE", tmp_path)
    monkeypatch.setattr("pipelines.common.revision.commit_of", lambda _: "of somebody else")
    monkeypatch.setenv(COMMIT, "sent")
    assert code_commit() == "sent"
    code_commit.cache_clear()
    assert commit_of(tmp_path / "nowhere") == ""
    assert split_commit("ab+") == ("ab", True)
    assert split_commit("ab") == ("ab", False)


def test_forgetting_one_run_keeps_the_times_of_others(store, finished):
    other = Graph(tiny(train={"seed": 1}))
    remember(store, Record.of_run(other.experiment, other.run_key))
    record_start(store, other.run_key, 7.0)
    collect_garbage(store, (finished.graph.run_key,))
    assert command_times(store, other.run_key).started_ms == 7_000
