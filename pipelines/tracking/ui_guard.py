"""Run a server until it ends, or until the process that started this program ends.

    python -I ui_guard.py COMMAND ...

The starting process holds the other end of standard input, which the kernel closes when that
process ends, also by SIGKILL. Then, and on SIGTERM, all processes of the group that this program
leads are ended. It is run as a file and imports no module of the project.
"""

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 10.0
"""Seconds between SIGTERM and SIGKILL."""


def main() -> int:
    """Run the command given by the arguments; returns its exit code."""
    over = threading.Event()
    # With a handler: a signal that is ignored here would be ignored by the server, too.
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def await_starter() -> None:
        sys.stdin.buffer.read()
        over.set()

    def end() -> None:
        over.wait()
        os.killpg(0, signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.killpg(0, signal.SIGKILL)

    for target in (await_starter, end):
        threading.Thread(target=target, daemon=True).start()
    return server.wait()


if __name__ == "__main__":
    sys.exit(main())
