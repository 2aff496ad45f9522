"""What a study is, as its storage has it: whether the one there is the one that is meant."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from pipelines.keys import content_key
from pipelines.study.storage import outlast
from pipelines.study.trials import SPEC, differences, point_key, with_defaults

if TYPE_CHECKING:
    import optuna

    from experiments.study import Study
    from pipelines.artifacts import Store

STORE, POINT_KEY, IDENTITY = "igdit.store", "igdit.point_key", "igdit.identity"
GOAL = "igdit.goal"
"""Attributes of the study: whose drivers it has, what a point is, what it is called elsewhere, and
how many trials were asked for."""
DRIVERS, STORE_ID = ".drivers/", "store-id"
"""Where a store keeps the locks of its studies' drivers, and its name."""


def identity_of(name: str, attributes: dict[str, Any]) -> str:
    """What a study is called elsewhere; before it had a name of its own, by what it is."""
    return str(attributes.get(IDENTITY) or content_key([name, attributes[SPEC]]))


def store_name(store: Store) -> str | None:
    """A name of the store that is the same for everyone who shares it; None: it has none yet."""
    return store.records(DRIVERS).get(STORE_ID)


def name_store(store: Store) -> str:
    """The store's name, given now if need be; under the lock of the storage."""
    store.write_record(DRIVERS + STORE_ID, uuid.uuid4().hex)
    return store.records(DRIVERS)[STORE_ID]


def check_same(found: optuna.Study, study: Study, store: str) -> None:
    """Enter what the study is, or compare with what it was; under the lock of the storage.

    Args:
        found: The study of that name in the storage, new or not.
        study: What is meant.
        store: Whose drivers work on it.

    Raises:
        ValueError: it is another one, or somebody else's.
    """
    known, fixed = outlast(lambda: found.user_attrs).get(SPEC), study.fixed()
    if known is None:
        directions = [direction.name for direction in outlast(lambda: found.directions)]
        if directions != ["MINIMIZE"] or outlast(lambda: found.get_trials(deepcopy=False)):
            raise ValueError(
                f"study {study.name!r} in that database is not igdit's: choose "
                f"another name with --name"
            )
        outlast(lambda: found.set_user_attr(SPEC, fixed))
    _check(
        found,
        STORE,
        store,
        "another store (its drivers keep their locks there): use the same "
        "IGDIT_HOME, or another study with --name",
    )
    written = fixed if known is None else with_defaults(known, study.name)
    if written != fixed:
        raise ValueError(
            f"study {study.name!r} was started with other settings: "
            f"{'; '.join(differences(written, fixed)[:8])}. A study compares like with like: "
            f"go on with the old settings, or start another one with --name."
        )
    _check(
        found,
        POINT_KEY,
        point_key(study),
        "code that gives other results: start another study with --name",
    )
    attributes = outlast(lambda: found.user_attrs)
    if IDENTITY not in attributes:
        name = uuid.uuid4().hex if known is None else identity_of(study.name, attributes)
        outlast(lambda: found.set_user_attr(IDENTITY, name))


def _check(found: optuna.Study, name: str, value: str, meaning: str) -> None:
    known = outlast(lambda: found.user_attrs).get(name)
    if known is None:
        outlast(lambda: found.set_user_attr(name, value))
    elif known != value:
        raise ValueError(f"study {found.study_name!r} belongs to {meaning}")
