"""All studies in a storage, as they are, for those who only look."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.study import Study
from pipelines.study.book import STORE
from pipelines.study.storage import open_storage
from pipelines.study.trials import SPEC, read_trial

if TYPE_CHECKING:
    from pathlib import Path

    from pipelines.study.trials import Trial


def stored_studies(url: str, folder: Path) -> list[tuple[Study, list[Trial]]]:
    """Studies whose work lies in a store, with their trials.

    Args:
        url: Database, as SQLAlchemy writes it.
        folder: Where drivers of the store keep their locks, and its name.

    Raises:
        ValueError: the database cannot be reached.
    """
    path = folder / "store-id"
    store = path.read_text() if path.exists() else None
    storage = open_storage(url)
    try:
        found = []
        for entry in storage.get_all_studies():
            known = entry.user_attrs
            if SPEC in known and known.get(STORE, store) == store:
                trials = storage.get_all_trials(entry._study_id)
                found.append((Study.from_fixed(entry.study_name, known[SPEC]),
                              [read_trial(trial) for trial in trials if trial.params]))  # fmt: skip
        return found
    finally:
        storage.remove_session()
