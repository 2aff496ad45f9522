"""Studies that are killed, again and again, in processes of their own."""

from __future__ import annotations

import collections
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.services import Postgres
from experiments import PruningConfig
from pipelines.store.folder import FolderStore
from pipelines.study.ledger import StudyLedger
from tests.equipment.processes import kill_tree, wait_for
from tests.pipelines.study.conftest import small_study

SCRIPT = """
import sys
from pathlib import Path
from pipelines.console.console import make_console
from pipelines.store.home import Home
from pipelines.commands.study import run_study
from pipelines.commands.study import StudyOptions
import pipelines.study.watch
from experiments import PruningConfig
from tests.pipelines.study.conftest import small_study
import signal
def interrupt(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, interrupt)
options = StudyOptions(trials=sys.argv[2], parallel=int(sys.argv[3]), yes=True,
                       storage=sys.argv[4] or None)
study = small_study()
if sys.argv[5]:
    # The noise of so few samples hides every difference: give up whatever is not the best so far.
    study = small_study(pruning=PruningConfig(warmup_trainings=2, patience=1))
    pipelines.study.watch.should_prune = lambda curve, finished, config: (
        len(finished) >= 2 and curve[2].fid > min(other[2].fid for other in finished))
sys.exit(run_study(study, options, Home(Path(sys.argv[1])), make_console()))
"""


WANTED = 24
"""Trials of the studies that are disturbed."""


class Driver:
    """A study's driver in a process of its own."""

    def __init__(
        self, home: Path, trials: int, parallel: int = 1, storage: str = "", pruning: str = ""
    ) -> None:
        self.log = home.with_suffix(".log").open("a")
        command = [
            sys.executable,
            "-c",
            SCRIPT,
            str(home),
            str(trials),
            str(parallel),
            storage,
            pruning,
        ]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("IGDIT")}
        self.process = subprocess.Popen(
            command, env=environment, stdout=self.log, stderr=self.log, cwd=Path.cwd()
        )

    def finish(self, seconds: float = 240) -> None:
        code = self.process.wait(timeout=seconds)
        assert code == 0, Path(self.log.name).read_text()[-4000:]

    def end(self, signal_number: int) -> None:
        self.process.send_signal(signal_number)
        self.process.wait(timeout=60)


def trials_of(home: Path, url: str = "", study=None):
    store = FolderStore(home / "store")
    ledger = StudyLedger(study or small_study(), url or f"sqlite:///{home / 'study.db'}", store)
    try:
        return ledger.trials()
    finally:
        ledger.close()


def assert_nothing_was_done_twice(home: Path, kills: int) -> None:
    """Each artifact was published once; a kill costs at most what was being built then."""
    events = FolderStore(home / "store").events()
    published = collections.Counter(
        (e["kind"], e["key"]) for e in events if e["event"] == "published"
    )
    assert set(published.values()) == {1}
    executed = [e for e in events if e["event"] == "execute" and e["kind"] != "checkpoint"]
    assert len(executed) <= len(published) + kills


def published(home: Path, kind: str) -> list[dict]:
    return [
        e
        for e in FolderStore(home / "store").events()
        if e["event"] == "published" and e["kind"] == kind
    ]


def shown(trials):
    return [(t.number, t.point, t.state, t.fid) for t in trials]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A study that nobody disturbs."""
    home = tmp_path_factory.mktemp("whole") / "home"
    Driver(home, WANTED).finish()
    return trials_of(home)


@pytest.mark.slow
def test_killed_at_ten_moments_it_ends_as_if_undisturbed(tmp_path, undisturbed):
    home, chance = tmp_path / "home", random.Random(0)
    for kill in range(10):
        driver = Driver(home, WANTED)
        # The first moments are those of setting up; the others fall where it works.
        time.sleep(chance.uniform(1.0, 4.0) if kill < 3 else chance.uniform(3.5, 6.5))
        assert driver.process.poll() is None, "the study was over before it could be disturbed"
        driver.end(chance.choice([signal.SIGKILL, signal.SIGTERM]))
    Driver(home, WANTED).finish()
    trials = trials_of(home)
    assert shown(trials) == shown(undisturbed)
    assert len({t.fid for t in trials}) == WANTED
    assert {t.state for t in trials} == {"COMPLETE"}
    assert_nothing_was_done_twice(home, 10)
    trainings = {t.point.training for t in trials}
    starts = [
        e
        for e in FolderStore(home / "store").events()
        if e["event"] == "execute" and e["kind"] == "checkpoint"
    ]
    # A training that was killed goes on from its last checkpoint; none that was over is begun.
    assert len({e["key"] for e in starts}) == len(trainings)


@pytest.mark.slow
def test_killed_while_trainings_are_pruned_it_ends_as_if_undisturbed(tmp_path):
    chance, rule = random.Random(5), PruningConfig(warmup_trainings=2, patience=1)
    whole, home = tmp_path / "whole", tmp_path / "home"
    Driver(whole, WANTED, pruning="on").finish()
    for _ in range(5):
        driver = Driver(home, WANTED, pruning="on")
        time.sleep(chance.uniform(3.5, 6.0))
        if driver.process.poll() is None:
            driver.end(chance.choice([signal.SIGKILL, signal.SIGTERM]))
    Driver(home, WANTED, pruning="on").finish()
    study = small_study(pruning=rule)
    expected = trials_of(whole, study=study)
    assert "PRUNED" in {t.state for t in expected}
    assert shown(trials_of(home, study=study)) == shown(expected)
    assert_nothing_was_done_twice(home, 5)


def several_drivers(home: Path, storage: str, count: int, wanted: int, seed: int) -> None:
    """Several drivers serve one study; one after the other is killed and started again."""
    chance = random.Random(seed)
    drivers = [Driver(home, wanted, storage=storage) for _ in range(count)]
    try:
        for _ in range(6):
            time.sleep(chance.uniform(3.0, 6.0))
            number = chance.randrange(count)
            if drivers[number].process.poll() is None:
                drivers[number].end(chance.choice([signal.SIGKILL, signal.SIGTERM]))
            drivers[number] = Driver(home, wanted, storage=storage)
        for driver in drivers:
            driver.process.wait(timeout=400)
        Driver(home, wanted, storage=storage).finish()
    finally:
        for driver in drivers:
            if driver.process.poll() is None:
                kill_tree(driver.process.pid)
    trials = trials_of(home, storage)
    assert collections.Counter(t.state for t in trials) == {"COMPLETE": wanted}
    assert len({t.point for t in trials}) == wanted
    assert_nothing_was_done_twice(home, 6)


@pytest.mark.slow
def test_three_drivers_on_one_file_while_they_are_killed(tmp_path):
    several_drivers(tmp_path / "home", "", 3, 20, seed=2)


@pytest.fixture
def postgres(short_folder, monkeypatch):
    pytest.importorskip("psycopg")
    if shutil.which("initdb") is None:
        pytest.skip("no PostgreSQL here")
    monkeypatch.setenv("PGPASSWORD", "of this test")
    server = Postgres(short_folder, password="of this test")
    server.start()
    yield server
    server.close()


@pytest.mark.slow
def test_four_drivers_on_one_postgresql_while_they_are_killed(tmp_path, postgres):
    several_drivers(tmp_path / "home", postgres.url, 4, 20, seed=3)


@pytest.mark.slow
def test_a_database_that_restarts_in_the_middle_is_outlasted(tmp_path, postgres, undisturbed):
    home = tmp_path / "home"
    driver = Driver(home, WANTED, storage=postgres.url)
    for _ in range(2):
        before = len(published(home, "evaluate"))
        wait_for(lambda before=before: len(published(home, "evaluate")) > before)
        postgres.stop()
        time.sleep(3)
        postgres.start()
    driver.finish()
    assert shown(trials_of(home, postgres.url)) == shown(undisturbed)


@pytest.mark.slow
def test_a_locked_database_is_outlasted(tmp_path, undisturbed):
    home = tmp_path / "home"
    driver = Driver(home, WANTED)
    wait_for(lambda: published(home, "evaluate"))
    with sqlite3.connect(home / "study.db", timeout=60) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(8)
        other.rollback()
    driver.finish()
    assert shown(trials_of(home)) == shown(undisturbed)


@pytest.mark.slow
def test_a_full_disk_stops_the_study_with_a_message_and_room_lets_it_go_on(tmp_path, undisturbed):
    home = tmp_path / "home"
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2500k", "none", str(home)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        driver = Driver(home, WANTED)
        assert driver.process.wait(timeout=240) != 0
        text = Path(driver.log.name).read_text()
        assert "No space left on device" in text or "full" in text, text[-3000:]
        subprocess.run(["mount", "-o", "remount,size=200m", str(home)], check=True)
        Driver(home, WANTED).finish()
        assert [t.point for t in trials_of(home)] == [t.point for t in undisturbed]
        assert {t.state for t in trials_of(home)} == {"COMPLETE"}
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True)
