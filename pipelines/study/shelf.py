"""Studies in a storage, as they are, for those who only look."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import optuna

from experiments.study import Study
from pipelines.study.identity import STORE, identity_of, store_name
from pipelines.study.storage import importances, open_storage, outlast
from pipelines.study.trials import SPEC, own_trials

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from pipelines.artifacts import Store
    from pipelines.study.trials import Trial


logger = logging.getLogger(__name__)


class StoredStudy(NamedTuple):
    """A study as its storage has it."""

    study: Study
    identity: str
    """What it is called elsewhere (`StudyBook.identity`)."""
    trials: list[Trial]
    importances: dict[str, float]


def stored_studies(url: str, store: Store) -> list[StoredStudy]:
    """Studies whose work lies in a store; enters nothing.

    Args:
        url: Database, as SQLAlchemy writes it.
        store: Whose name the studies bear.

    Raises:
        ValueError: the database cannot be reached or used.
        NoStudiesError: it is not there, or new.
    """
    name_of_store = store_name(store)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(url, create=False)
    try:
        names = outlast(lambda: optuna.get_all_study_names(storage))
        studies = [_read(storage, name) for name in names]
    finally:
        storage.remove_session()
    return [
        stored for stored, where in studies if stored is not None and where in (None, name_of_store)
    ]


def _read(storage: RDBStorage, name: str) -> tuple[StoredStudy | None, str | None]:
    """A study, and the store that its work lies in; None: it is none of ours, or is not known."""
    study = outlast(lambda: optuna.load_study(study_name=name, storage=storage))
    known = study.user_attrs
    if SPEC not in known:
        return None, None
    try:
        spec = Study.from_fixed(name, known[SPEC])
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("study %r was written by another version and is left out: %s", name, error)
        return None, None
    own = own_trials(outlast(study.get_trials))
    trials, found = [trial for trial, _ in own], importances([trial for _, trial in own])
    return StoredStudy(spec, identity_of(name, known), trials, found), known.get(STORE)


def stored_study(url: str, store: Store, name: str) -> StoredStudy:
    """One of these, by name.

    Raises:
        ValueError: there is no such study, or the database cannot be reached.
    """
    studies = stored_studies(url, store)
    found = next((stored for stored in studies if stored.study.name == name), None)
    if found is None:
        known = ", ".join(stored.study.name for stored in studies) or "none"
        raise ValueError(f"study must be one that was begun ({known}), but got {name!r}")
    return found
