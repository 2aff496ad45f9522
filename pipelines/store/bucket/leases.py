"""Locks in a bucket: leases that their holders renew, by the clock of the bucket's server.

    .locks/NAME/x-000007   held by one process; the number grows when a dead one is succeeded
    .locks/NAME/s-ID       held by one of the processes that share it

An object that was not written for `LEASE_SECONDS`, by the server's time, belongs to a dead
process, provided that it was seen twice at an interval in which its holder could have reached
the bucket: after an outage every lease looks old. Whoever takes a lock first writes its own
object and then looks whether it is alone, so that of two one at least sees the other. A holder
that sleeps longer than its lease may find itself with a rival; that costs work, never a result,
since publishing is decided by the server.
"""

from __future__ import annotations

import json
import os
import platform
import random
import threading
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

from pipelines.common.errors import ArtifactError
from pipelines.store.bucket.objects import OUTAGE_SECONDS
from pipelines.store.locks import Holder

if TYPE_CHECKING:
    from pipelines.store.bucket.objects import Bucket

LEASE_SECONDS = 60.0
"""Seconds without renewal after which the holder of a lock may be dead."""
FOLDER = ".locks"


class Leases:
    """All locks of a bucket as one process sees them; a thread renews those that it holds.

    The thread ends with the last of them: it would keep some 25 MB, the bucket's client, in memory.
    """

    def __init__(self, bucket: Bucket, seconds: float = LEASE_SECONDS) -> None:
        self.bucket, self.seconds = bucket, seconds
        self._held: dict[str, bytes] = {}
        self._old: dict[str, tuple[float, float]] = {}
        """Object -> (time of writing, time when it was first seen to be old)."""
        self._guard = threading.Lock()
        self._writing = threading.Lock()
        """Lock of a renewal: an object that was released must not be written again."""
        self._renewer: threading.Thread | None = None

    def live(self, name: str) -> dict[str, bool]:
        """Return the objects of a lock -> True if the process behind it may be alive."""
        folder = f"{FOLDER}/{name}"
        found = self.bucket.list(folder)
        return {
            entry: self._may_live(f"{folder}/{entry}", written) for entry, written in found.items()
        }

    def live_below(self, prefix: str) -> dict[str, list[str]]:
        """Return the live objects of the locks of a prefix, by the rest of the locks' names."""
        folder, _, begin = prefix.rpartition("/")
        locks: dict[str, list[str]] = {}
        for path, written in self.bucket.list(f"{FOLDER}/{folder}").items():
            name = path.rpartition("/")[0]
            if name.startswith(begin):
                known = locks.setdefault(name[len(begin) :], [])
                full = f"{FOLDER}/{folder}/{path}"
                if self._may_live(full, written):
                    known.append(full)
        return locks

    def _may_live(self, path: str, written: float) -> bool:
        age = self.bucket.now() - written
        with self._guard:
            if path in self._held:
                return True
            if age <= self.seconds:
                self._old.pop(path, None)
                return True
            if age > max(5 * self.seconds, OUTAGE_SECONDS + 2 * self.seconds):
                return False  # no outage that is waited out is as long
            first = self._old.get(path)
            if first is None or first[0] != written:
                self._old[path] = written, time.monotonic()
                return True
            return time.monotonic() - first[1] < self.seconds / 4

    def hold(self, path: str, content: bytes) -> None:
        """Renew an object from now on."""
        with self._guard:
            self._held[path] = content
            if self._renewer is None:
                self._renewer = threading.Thread(target=self._renew, name="leases", daemon=True)
                self._renewer.start()

    def release(self, path: str) -> None:
        """Stop renewing an object, and delete it; in a bucket that is away it gets too old."""
        with self._writing, self._guard:
            self._held.pop(path, None)
        with suppress(ArtifactError, OSError):
            self.bucket.delete(path)

    def _renew(self) -> None:
        while True:
            time.sleep(self.seconds / 6)
            with self._guard:
                held = dict(self._held)
                if not held:
                    self._renewer = None
                    return
            for path, content in held.items():
                with self._writing, suppress(ArtifactError, OSError):  # the next time, then
                    if path in self._held:
                        self.bucket.write(path, content)


class BucketLock:
    """Lock in a bucket, held by this object."""

    def __init__(self, leases: Leases, name: str, *, shared: bool = False) -> None:
        self._leases, self._name, self._shared = leases, name, shared
        self._path: str | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; False if somebody holds it."""
        there = self._leases.live(self._name)
        if any(alive and self._excludes(entry) for entry, alive in there.items()):
            return False
        last = max((int(e[2:]) for e in there if e.startswith("x-") and e[2:].isdigit()), default=0)
        entry = f"s-{uuid.uuid4().hex}" if self._shared else f"x-{last + 1:06d}"
        path = f"{FOLDER}/{self._name}/{entry}"
        content = json.dumps(
            {
                "id": uuid.uuid4().hex,
                "host": platform.node(),
                "pid": os.getpid(),
                "since": self._leases.bucket.now(),
            }
        ).encode()
        if not self._leases.bucket.create(path, content):
            return False
        self._leases.hold(path, content)
        try:
            alone = self._is_alone(entry)
        except BaseException:
            self._leases.release(path)
            raise
        if not alone:
            self._leases.release(path)
            time.sleep(random.uniform(0, 0.2))  # so that rivals do not meet again
            return False
        self._path = path
        return True

    def _is_alone(self, entry: str) -> bool:
        """Return True if no live entry excludes this one; then delete the entries of the dead."""
        others = {e: alive for e, alive in self._leases.live(self._name).items() if e != entry}
        if any(alive and self._excludes(other) for other, alive in others.items()):
            return False
        dead = [f"{FOLDER}/{self._name}/{other}" for other, alive in others.items() if not alive]
        self._leases.bucket.delete(*dead)
        return True

    def _excludes(self, entry: str) -> bool:
        return not (self._shared and entry.startswith("s-"))

    def release(self, *, delete: bool = False) -> None:  # noqa: ARG002 - it leaves no trace
        """Release the lock."""
        if self._path is not None:
            self._leases.release(self._path)
            self._path = None


def read_holder(text: bytes) -> Holder:
    """Return the holder that wrote the object of a lock."""
    try:
        values = json.loads(text)
        return Holder(str(values["host"]), int(values["pid"]), float(values["since"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return Holder("unknown", 0, 0.0)
