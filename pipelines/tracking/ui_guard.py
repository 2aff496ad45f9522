"""Run a server until it ends, or until whoever started this ends, by whatever signal.

    python -I ui_guard.py COMMAND ...

Whoever starts it holds the other end of its standard input, which the kernel closes when that
process is gone, also after SIGKILL. Then, and on SIGTERM, the server is ended with all processes of
the group that this process leads. It imports nothing of ours: it is run as a file.
"""

import os
import signal
import subprocess
import sys
import threading
import time

SECONDS = 10.0
"""How long processes have to end by themselves."""


def main() -> int:
    """Run the command of the command line; returns its exit code."""
    over = threading.Event()
    # A handler, since what is ignored here would be ignored by the server too.
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def await_starter() -> None:
        sys.stdin.buffer.read()
        over.set()

    def end() -> None:
        over.wait()
        os.killpg(0, signal.SIGTERM)
        time.sleep(SECONDS)
        os.killpg(0, signal.SIGKILL)

    for act in (await_starter, end):
        threading.Thread(target=act, daemon=True).start()
    return server.wait()


if __name__ == "__main__":
    sys.exit(main())
