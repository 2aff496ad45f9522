"""Home: the one folder of all results, `runs/` or `IGDIT_HOME`, and the addresses beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.common import settings
from pipelines.store.open import file_path, open_store, require_lasting
from pipelines.store.rights import require_writable

if TYPE_CHECKING:
    from pipelines.store.base import Store


@dataclass(frozen=True)
class Home:
    """Folder of all results."""

    root: Path

    @classmethod
    def default(cls) -> Home:
        """Return the home: `IGDIT_HOME`, or `runs` in the current directory.

        Raises:
            ValueError: If `IGDIT_HOME` is the address of something that is no folder.
        """
        address = settings.home_address()
        path = file_path(address)
        if path is None:
            raise ValueError(
                f"IGDIT_HOME must be a folder of this machine, but got {address!r}; a "
                f"bucket is named by IGDIT_STORE"
            )
        return cls(Path(path).absolute())

    def prepare(self) -> None:
        """Check that results can be written here, before any work.

        Raises:
            ValueError: If they cannot, or Ray would delete them; the message names the folder or
                file and what mends it.
        """
        for variable, address in (
            ("IGDIT_HOME", str(self.root)),
            ("IGDIT_STORE", self.store.uri),
            ("MLFLOW_TRACKING_URI", self.tracking_uri),
            ("IGDIT_STUDY_STORAGE", self.study_storage),
        ):
            require_lasting(variable, address)
        databases = {self.tracking_uri: "mlflow.db", self.study_storage: "study.db"}
        own = [name for url, name in databases.items() if url == f"sqlite:///{self.root / name}"]
        folders = (self.activity, self.report, self.scratch, self.mlartifacts)
        require_writable(self.root, (*(each.name for each in folders), *own), "home")

    @cached_property
    def store(self) -> Store:
        """Artifact store: `IGDIT_STORE` (a folder or s3://BUCKET/PREFIX), or a folder here."""
        return open_store(settings.store_address() or str(self.root / "store"))

    @property
    def tracking_uri(self) -> str:
        """MLflow's backend: `MLFLOW_TRACKING_URI`, or a SQLite file here."""
        return settings.tracking_uri() or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def study_storage(self) -> str:
        """Database of the studies: `IGDIT_STUDY_STORAGE`, or a SQLite file here."""
        return settings.study_storage() or f"sqlite:///{self.root / 'study.db'}"

    @property
    def has_studies(self) -> bool:
        """True if a database of studies was named, or is here."""
        return settings.study_storage() is not None or (self.root / "study.db").exists()

    @property
    def mlartifacts(self) -> Path:
        """Folder of MLflow's files."""
        return self.root / "mlartifacts"

    @property
    def report(self) -> Path:
        """Folder of plots and tables, with a folder for each experiment."""
        return self.root / "report"

    @property
    def activity(self) -> Path:
        """Folder of what commands report while they run."""
        return self.root / "activity"

    @property
    def scratch(self) -> Path:
        """Folder of files that may be deleted at any time."""
        return self.root / "scratch"

    def run_folder(self, name: str, run_key: str) -> Path:
        """Return the folder of an experiment's report."""
        return self.report / f"{name}-{run_key[:8]}"

    def study_folder(self, name: str) -> Path:
        """Return the folder of a study's report."""
        return self.report / f"study-{name}"

    def table_folder(self, name: str) -> Path:
        """Return the folder of a table's files."""
        return self.report / f"table-{name}"
