"""A process group whose store listens on one address.

`init_process_group` with an `env://` or `tcp://` address has torch open its key-value store on all
interfaces of the machine. Here the store gets a socket that is bound to the given address, so that
a laptop's training is reachable from the laptop alone and a node's from its cluster network.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

from torch import distributed

TCPStore: Any = distributed.TCPStore  # type: ignore[attr-defined]  # public, undeclared
_served: list[Any] = []
"""The store this process serves; it lives as long as the group does."""


def serve_store(host: str, world_size: int) -> tuple[str, int]:
    """Serve the group's store from this process (rank 0); returns its address."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.bind((host, 0))
    listener.listen(max(world_size, 128))
    port = listener.getsockname()[1]
    store = TCPStore(
        host,
        port,
        world_size,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    _served[:] = [store]
    return host, port


def join_group(
    address: tuple[str, int], rank: int, world_size: int, backend: str, timeout_seconds: float
) -> None:
    """Join the default process group through the store that rank 0 serves.

    Args:
        address: What `serve_store` returned on rank 0.
        rank: This process's number.
        world_size: Processes in the group.
        backend: "gloo" or "nccl".
        timeout_seconds: After which a collective without answer fails.
    """
    timeout = timedelta(seconds=timeout_seconds)
    store = (
        _served[0]
        if rank == 0
        else TCPStore(*address, world_size, is_master=False, timeout=timeout)
    )
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timeout
    )
