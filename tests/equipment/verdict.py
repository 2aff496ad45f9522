"""Whether a study that was disturbed ended as if it had not been."""

from __future__ import annotations

import collections
import json
import urllib.request
from typing import TYPE_CHECKING, Any

from pipelines.store.keys import Ref

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.store.base import Store
    from pipelines.study.trials import Trial


def published(store: Store) -> list[dict[str, Any]]:
    """What was published, in the order of time."""
    return _published(store.events())


def _published(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "published"]


def findings(store: Store, got: Sequence[Trial], wanted: Sequence[Trial]) -> list[str]:
    """What is not as it should be; empty: all is well."""
    wrong = []
    results = [(t.number, t.point, t.state, t.fid) for t in got]
    expected = [(t.number, t.point, t.state, t.fid) for t in wanted]
    wrong += [f"trial {a} should be {b}" for a, b in zip(results, expected, strict=False) if a != b]
    if len(results) != len(expected):
        wrong.append(f"{len(results)} trials instead of {len(expected)}")
    events = store.events()  # from a bucket, an object each: read once
    made = _published(events)
    often = collections.Counter(Ref(e["kind"], e["key"]) for e in made)
    wrong += [f"{ref} was published {count} times" for ref, count in often.items() if count > 1]
    for event in events:
        if event["event"] == "execute" and event["kind"] == "checkpoint":
            ready = [
                Ref(e["kind"], e["key"]).step
                for e in made
                if e["kind"] == "checkpoint"
                and e["key"].startswith(event["key"])
                and e["time"] < event.get("decided", event["time"]) - 1
            ]
            if max(ready, default=0) > event["from_step"]:
                wrong.append(
                    f"a training began at step {event['from_step']} though "
                    f"{max(ready)} was published"
                )
    return wrong + half_published(store)


def half_published(store: Store) -> list[str]:
    """Files in the bucket that no manifest names."""
    store.sweep()
    bucket = store.bucket  # type: ignore[attr-defined]  # it is one
    manifests = {
        f"{a.ref}/{a.manifest['attempt']}/{name}"
        for a in store.list()
        for name in a.manifest["files"]
    }
    files = set(bucket.list("files"))
    return [f"{name} belongs to nothing" for name in sorted(files - manifests)] + [
        f"{name} is missing" for name in sorted(manifests - files)
    ]


def runs_in_mlflow(url: str) -> int:
    """Trials that the MLflow server shows."""
    body = {"experiment_ids": ["1"], "filter": "tags.`igdit.trial` LIKE '%'", "max_results": 1000}
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/runs/search",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return len(json.load(answer).get("runs", []))
