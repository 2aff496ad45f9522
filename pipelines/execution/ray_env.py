"""Environment that Ray reads when it is imported."""

from __future__ import annotations

import sys

from pipelines.common.settings import ray_address, set_defaults

RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A group that was sized with a lost node's resources is given up then, and sized again.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Else Ray aborts with a stack trace where SIGTERM is to end a run cleanly.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
}
"""Variables that Ray reads when it is imported, on this machine and on nodes."""


def prepare_ray_environment() -> None:
    """Set the variables that Ray reads when it is imported; without RAY_ADDRESS use loopback."""
    settings = dict(RAY_SETTINGS)
    if not ray_address():
        # Without the first Ray replaces 127.0.0.1 by the host's outward address, whatever it is
        # told; without the last gloo listens where the host's name resolves to.
        settings |= {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        }
    set_defaults(settings)
