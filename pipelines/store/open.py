"""Addresses of stores and databases: open a store, and find the path on this machine."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pipelines.common.settings import cache_bytes, cache_folder, lease_seconds
from pipelines.store.folder import FolderStore

if TYPE_CHECKING:
    from pipelines.store.base import Store

BUCKETS = ("s3", "gs", "gcs", "az", "abfs", "abfss", "memory")
"""fsspec's names of file systems that write an object only if it is not there, in one step."""
CACHE_GIB = 50.0
"""Size of a machine's copies of what lies in a bucket, in GiB, unless IGDIT_CACHE_GIB is set."""
RAY_PACKAGE = "_ray_pkg_"
"""Beginning of the folders that Ray unpacks a job's upload into, and deletes."""


def open_store(uri: str, *, in_use: bool = False) -> Store:
    """Open the store at an address: a folder (also file://), or a bucket (s3://BUCKET/PREFIX).

    Args:
        uri: The address.
        in_use: A run that this process works for uses the store already. The process then opens it
            once, so that files are checked once, and a bucket that does not answer is taken to be
            away for a while, not misnamed.

    Raises:
        ValueError: If this is no such address, or IGDIT_CACHE_GIB or IGDIT_LEASE_SECONDS is out of
            range.
    """
    return _open_in_use(uri) if in_use else _open(uri)


@functools.cache
def _open_in_use(uri: str) -> Store:
    return _open(uri, known=True)


def _open(uri: str, *, known: bool = False) -> Store:
    path = file_path(uri)
    if path is not None:
        return FolderStore(Path(path).expanduser())
    scheme, _, rest = uri.partition("://")
    if scheme not in BUCKETS or not rest.strip("/"):
        raise ValueError(
            f"the store must be a folder, or a bucket such as s3://BUCKET/PREFIX "
            f"({', '.join(BUCKETS[:-1])}), but got {uri!r}"
        )
    from pipelines.store.bucket.leases import LEASE_SECONDS
    from pipelines.store.bucket.store import BucketStore

    size, seconds = cache_bytes(CACHE_GIB), lease_seconds(LEASE_SECONDS)
    store = BucketStore(uri.rstrip("/"), cache_folder(), size, seconds)
    store.bucket.answered = known
    return store


def file_path(uri: str) -> str | None:
    """Return the path that an address names: /x for file:///x, file:/x and file://localhost/x.

    A path without a scheme is returned unchanged.

    Returns:
        The path; None if the address names no file.

    Raises:
        ValueError: If the file lies on another host.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or "/" in scheme:
        return uri
    if scheme.lower() in ("file", "local"):
        if not rest.startswith("//"):
            return unquote(rest)
        host, _, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise ValueError(
                f"a file must be one of this machine (file:///PATH), but got {uri!r}, "
                f"which is one of {host!r}"
            )
        return unquote("/" + path.lstrip("/"))
    return None if rest.startswith("//") else uri


def local_path(address: str) -> str | None:
    """Return the path that the address of a store or a database names; None if it is remote."""
    scheme, _, rest = address.partition("://")
    if scheme.startswith("sqlite"):
        return rest.partition("?")[0].removeprefix("/")
    return file_path(address)


def require_lasting(variable: str, address: str) -> None:
    """Check that results do not go to a folder that Ray deletes: that of a job's upload.

    Args:
        variable: Environment variable that sets the place, for the message.
        address: A path, or the address of a store or a database.

    Raises:
        ValueError: If the place lies in such a folder.
    """
    path = local_path(address)
    if path is None:
        return
    parts = Path(path).absolute().parts
    if any(part.startswith(RAY_PACKAGE) for part in parts):
        raise ValueError(
            f"{variable} must be a place that stays, but is {str(Path(path).absolute())!r}, in the "
            f"working directory of a Ray job, which Ray deletes with all results in it. Send "
            f"{variable} with the job: ray job submit --runtime-env-json "
            f'\'{{"env_vars": {{"{variable}": "..."}}}}\' (an absolute path on the nodes, or an '
            f"address), or use igdit submit, which asks for it"
        )
