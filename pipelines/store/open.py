"""From an address to a store."""

from __future__ import annotations

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
RAY_PACKAGE = "_ray_pkg_"
"""Ray unpacks what a job uploads into folders that begin with it, and deletes them."""


def make_store(uri: str, *, known: bool = False) -> Store:
    """The store at an address: a folder (also file://), or a bucket such as s3://BUCKET/PREFIX.

    Args:
        uri: The address.
        known: Somebody else uses it already, so that a bucket that does not answer is away for a
            while and not misnamed.

    Raises:
        ValueError: it is no such address, or IGDIT_CACHE_GIB or IGDIT_LEASE_SECONDS is no number
            that can be.
    """
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
    """The path that an address names: /x for file:///x, file:/x and file://localhost/x.

    A path without a scheme is taken as it is.

    Returns:
        None: it is an address of something else.

    Raises:
        ValueError: it is a file of another host.
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
    """The path that a store's or a database's address names; None: it is on no disk of ours."""
    scheme, _, rest = address.partition("://")
    if scheme.startswith("sqlite"):
        return rest.partition("?")[0].removeprefix("/")
    return file_path(address)


def require_lasting(variable: str, address: str) -> None:
    """Refuse a place for results that Ray deletes: the folder that a job was uploaded to.

    Args:
        variable: What names the place, for the message.
        address: A path, or the address of a store or a database.

    Raises:
        ValueError: it lies in such a folder.
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
