"""What `igdit study` takes besides the study itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experiments.study import Study
    from pipelines.study.trials import Trial


@dataclass(frozen=True)
class StudyOptions:
    """How `igdit study` goes about it; changes no result."""

    trials: str | None = None
    """Completed trials wanted in all, or +N for N more than were asked for before; None: as many as
    were asked for, at first the study's number."""
    parallel: int | None = None
    """Trainings at a time; None: as many as this machine has cores for."""
    storage: str | None = None
    """Database of the study (SQLAlchemy URL); None: that of IGDIT_STUDY_STORAGE, or study.db."""
    hours: float | None = None
    """Begin nothing new after so many hours."""
    target_fid: float | None = None
    """Begin nothing new once a trial is as good."""
    confirm_seeds: int = 0
    """Afterwards train the best point of each layer, and the model without auxiliary loss, from so
    many other seeds (at least 2 give intervals)."""
    ask_above: float = 1.0
    """Ask before work of more worker-hours than this, where it can be foreseen."""
    yes: bool = False
    """Ask nothing."""

    def __post_init__(self) -> None:
        if self.trials is not None:
            digits = self.trials.removeprefix("+")
            if not (digits.isascii() and digits.isdigit() and int(digits) > 0):
                raise ValueError(
                    f"trials must be a number, or +NUMBER, of at least 1, but got {self.trials!r}"
                )
        if self.parallel is not None and self.parallel < 1:
            raise ValueError(f"parallel must be at least 1, but got {self.parallel}")
        if self.confirm_seeds < 0 or self.confirm_seeds == 1:
            raise ValueError(f"confirm_seeds must be 0 or at least 2, but got {self.confirm_seeds}")
        for name in ("hours", "target_fid"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, but got {value}")
        if not self.ask_above >= 0:
            raise ValueError(f"ask_above must be at least 0, but got {self.ask_above}")

    def wanted(self, study: Study, trials: Sequence[Trial], goal: int = 0) -> int:
        """Completed trials that there are to be.

        Args:
            study: The study.
            trials: What is there.
            goal: The most that was asked for before. Until it is reached, +N asks for nothing more:
                it is the same command again, after an interruption.
        """
        if self.trials is None:
            return goal or study.default_trials
        complete = sum(trial.state == "COMPLETE" for trial in trials)
        if not self.trials.startswith("+"):
            return int(self.trials)
        return goal if goal > complete else complete + int(self.trials)
