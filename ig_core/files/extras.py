"""Libraries beyond the package's own requirements: each comes with an extra of the package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "igdit"


class MissingLibraryError(ImportError):
    """Raised where a library is not installed; the message names the extra that brings it."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Guard the import of libraries that an extra of the package brings.

    Used as `with extra("metrics"): import torch_fidelity`.

    Raises:
        MissingLibraryError: If one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        # A module that a library which is installed lacks is no matter of an extra.
        if not library or importlib.util.find_spec(library) is not None:
            raise
        raise MissingLibraryError(
            f"{library} is not installed; it comes with the extra {name!r}: "
            f"pip install '{_requirement(name)}'",
            name=library,
        ) from error


def _requirement(extra_name: str) -> str:
    """Name the package with an extra as pip takes it; without an installation, its folder."""
    try:
        importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return f".[{extra_name}]"
    return f"{PACKAGE}[{extra_name}]"
