"""Probe of a bucket: it can hold a store if of many concurrent creations exactly one succeeds."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.store.bucket.objects import Bucket

WRITERS, ROUNDS = 8, 4


def require_atomic_create(bucket: Bucket) -> None:
    """Check that the server decides who creates an object.

    Every guarantee of a shared store rests on that. Only concurrent writes show it: a server that
    looks first and then writes does well with one writer.

    Raises:
        ValueError: If the server does not: runs could overwrite each other's results.
        ArtifactError: If the bucket cannot be used.
    """
    if bucket.checks_before_it_writes:
        raise ValueError(
            _refusal(
                bucket,
                "its library looks whether an object is there and then writes it, in two steps",
            )
        )
    for _ in range(ROUNDS):
        name = f".clock/probe-{uuid.uuid4().hex}"
        try:
            created = _race(bucket, name)
            again = bucket.create(name, b"late")
        finally:
            bucket.delete(name)
        if again:
            raise ValueError(_refusal(bucket, "its server does not heed If-None-Match"))
        if created != 1:
            raise ValueError(
                _refusal(bucket, f"of {WRITERS} that created one object at once {created} did")
            )


def _race(bucket: Bucket, name: str) -> int:
    """Return how many of `WRITERS` concurrent writers created an object."""
    start = threading.Barrier(WRITERS)

    def create(number: int) -> bool:
        start.wait()
        return bucket.create(name, f"{number} {uuid.uuid4().hex}".encode())

    with ThreadPoolExecutor(WRITERS, "probe") as threads:
        return sum(threads.map(create, range(WRITERS)))


def _refusal(bucket: Bucket, reason: str) -> str:
    return (
        f"the store {bucket.uri} cannot be used: {reason}, so that two runs could overwrite "
        f"each other's results. Use an S3 with conditional writes (If-None-Match), or a "
        f"folder"
    )
