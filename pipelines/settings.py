"""Variables of the environment: an empty one is none, whoever reads it."""

from __future__ import annotations

import os

PREFIXES = ("IGDIT_", "MLFLOW_")


def setting(name: str) -> str | None:
    """Read a variable; one that is not set, is empty or holds nothing but spaces is None."""
    value = os.environ.get(name, "")
    return value if value.strip() else None


def unset_empty_settings() -> None:
    """Remove empty variables of igdit and of MLflow, which takes an empty one for a value."""
    for name in [name for name in os.environ if name.startswith(PREFIXES)]:
        if setting(name) is None:
            del os.environ[name]
