"""The register of what was run in a store: one kind of record, one reader.

    STORE/.runs/KEY.DIGEST.json     something that was run
    STORE/.runs/KEY.START           a command that had something to build was started
    STORE/.runs/KEY.START-END       the same command has ended (times in milliseconds)

Everything with the same KEY is one root of garbage collection, which is forgotten as a whole: a
run, a study with all that it trained, a table, an evaluation of images that another program made.
A record is written once and never changed, so that every process tells the same of a run. What
MLflow and Optuna know (pages, trials and their FIDs) is not recorded here.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from experiments import Experiment  # noqa: TC001 - `read_dataclass` resolves types of fields
from experiments.schema import read_dataclass
from pipelines.store.keys import check_name, content_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipelines.store.base import Store

logger = logging.getLogger(__name__)

FOLDER, SUFFIX = ".runs/", ".json"
_warned: set[tuple[str, str]] = set()
"""Addresses of stores with the warnings of their records that were given: each is given once."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Something that was run: a root of garbage collection, or a part of one."""

    kind: Literal["run", "study", "table", "evaluation"]
    name: str
    """Name of the experiment, the study, the table, or the images."""
    key: str
    """Key of the root: of a run its run key, of a study its identity."""
    experiment: Experiment | None = None
    """Experiment that was run; None for a table, and for the study itself beside its runs."""
    run: str | None = None
    """Run key of the experiment, or of the run that was named for a row of the table."""
    row: str | None = None
    """Row of the table for which the run was named; None: MLflow is to have the table."""
    images: str | None = None
    """Digest of the images that were evaluated."""
    in_order: bool = False
    """Any run of these images is a fair sample of all."""

    def __post_init__(self) -> None:
        check_name(self.key)

    @classmethod
    def of_run(cls, experiment: Experiment, run_key: str) -> Record:
        """Return the record of an experiment that is run by itself, under its name."""
        return cls(
            kind="run", name=experiment.name, key=run_key, experiment=experiment, run=run_key
        )

    @classmethod
    def of_study(
        cls, name: str, identity: str, experiment: Experiment | None = None, run: str | None = None
    ) -> Record:
        """Return the record of a study, or of a training that it runs, with its run key."""
        return cls(kind="study", name=name, key=identity, experiment=experiment, run=run)

    @property
    def file(self) -> str:
        """Name of the record in the register; records of the same thing share it."""
        digest = content_key([self.kind, self.name, self.run, self.row])
        return f"{self.key}.{digest}{SUFFIX}"


@dataclass(frozen=True)
class Register:
    """Everything that was run in a store."""

    records: tuple[Record, ...]
    unreadable: dict[str, str]
    """Names of records that cannot be read, with the reasons: nobody knows what they need."""

    @cached_property
    def experiments(self) -> dict[str, Experiment]:
        """Experiments by run key: those of runs and of studies."""
        # Of one that was run by itself and in a study, the former counts.
        ordered = sorted(self.records, key=lambda record: record.kind == "run")
        found = {r.run: r.experiment for r in ordered if r.run and r.experiment}
        return dict(sorted(found.items()))

    @property
    def runs(self) -> list[tuple[str, Experiment]]:
        """Run key and experiment of what was run by itself, under each of its names."""
        return [(r.key, r.experiment) for r in self.records if r.kind == "run" and r.experiment]

    @property
    def unreadable_keys(self) -> tuple[str, ...]:
        """Keys of the roots of which a record cannot be read."""
        return tuple(dict.fromkeys(map(_key_of, self.unreadable)))

    def roots(self, words: Iterable[str]) -> dict[str, str]:
        """Find the roots that are named.

        Args:
            words: Each NAME or KIND/NAME of one root, or the first characters of its key.

        Returns:
            Key of each root, and what it is, in words.

        Raises:
            ValueError: If a word names no root, or several.
        """
        titles = self._titles()
        found = {}
        for word in words:
            named = {r.key for r in self.records if word in (r.name, f"{r.kind}/{r.name}")}
            matching = sorted(named or {key for key in titles if key.startswith(word)})
            if len(matching) != 1:
                raise ValueError(
                    f"--forget must name one recorded run, study, table or evaluation "
                    f"({', '.join(titles.values()) or 'there is none'}), but got {word!r}"
                )
            found[matching[0]] = titles[matching[0]]
        return found

    def _titles(self) -> dict[str, str]:
        """Return the title of every root by its key."""
        names: dict[str, dict[str, None]] = {}
        for record in self.records:
            names.setdefault(record.key, {})[f"{record.kind}/{record.name}"] = None
        for key in self.unreadable_keys:
            names.setdefault(key, {"unreadable record": None})
        return {key: f"{', '.join(names[key])} {key}" for key in sorted(names)}


def read_register(store: Store) -> Register:
    """Read the register of a store; warn of records that cannot be read, once a process."""
    records, unreadable = [], {}
    for name, text in store.records(FOLDER, SUFFIX).items():
        try:
            records.append(_read(name, text))
        except ValueError as error:
            unreadable[name] = str(error)
            _warn(store, name, error)
    return Register(tuple(records), unreadable)


def remember(store: Store, record: Record) -> None:
    """Record something before it is run; an unreadable record of the same is replaced.

    Args:
        store: Store in which it is run.
        record: Its record. Recorded again, also with other resources, it changes nothing.
    """
    # All records of a run's key recorded the same experiment.
    same = f"{record.key}." if record.kind == "run" else record.file
    for rest, text in store.records(FOLDER + same, SUFFIX).items():
        try:
            _read(same + rest, text)
        except ValueError:
            store.delete_record(FOLDER + same + rest)
    store.write_record(FOLDER + record.file, json.dumps(dataclasses.asdict(record), indent=2))


def record_times(store: Store) -> dict[str, float]:
    """Return when each record was written, by its name, in seconds since the epoch."""
    return store.record_times(FOLDER)


def forget_root(store: Store, key: str) -> None:
    """Delete the records of a root and the times of its commands."""
    for rest in store.record_times(f"{FOLDER}{key}."):
        store.delete_record(f"{FOLDER}{key}.{rest}")


def _read(name: str, text: str) -> Record:
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    record: Record = read_dataclass(Record, values, "record")
    if record.file != name:
        raise ValueError(f"it records something else, which {record.file} would")
    return record


def _warn(store: Store, name: str, reason: object) -> None:
    text = (
        f"the record {store.uri}/{FOLDER}{name} cannot be read and is passed over: {reason}. "
        f"Run that again to write it anew, or remove it: igdit store gc --forget {_key_of(name)} "
        f"--delete"
    )
    if (store.uri, text) not in _warned:
        _warned.add((store.uri, text))
        logger.warning("%s", text)


def _key_of(name: str) -> str:
    return name.partition(".")[0]


# Times of commands


@dataclass(frozen=True)
class CommandTimes:
    """Times of the commands of a run or a study, in milliseconds since the epoch."""

    started_ms: int | None = None
    """Start of the first; None if none was recorded."""
    ended_ms: int | None = None
    """End of the last that ended; None if none did."""
    is_open: bool = False
    """True if the last started command has not ended: it runs, or was killed."""


def record_start(store: Store, key: str, started: float) -> None:
    """Record that a command was started, at a time in seconds since the epoch."""
    _write_time(store, key, f"{_ms(started)}")


def record_end(store: Store, key: str, started: float) -> None:
    """Record that the command that was started at a time has now ended."""
    _write_time(store, key, f"{_ms(started)}-{_ms(time.time())}")


def command_times(store: Store, key: str) -> CommandTimes:
    """Return the times of the commands of a run or a study."""
    names = [name.split("-") for name in store.record_times(f"{FOLDER}{key}.")]
    times = [tuple(map(int, parts)) for parts in names if all(map(str.isdigit, parts))]
    if not times:
        return CommandTimes()
    ended = {started: end for started, *rest in times for end in rest}
    starts = [started for started, *_ in times]
    return CommandTimes(min(starts), max(ended.values(), default=None), max(starts) not in ended)


def _write_time(store: Store, key: str, name: str) -> None:
    store.write_record(f"{FOLDER}{key}.{name}", f"{name}\n")


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
