"""The program `igdit`, also as `python -m pipelines`."""

from __future__ import annotations

import sys

from ig_core.files.extras import MissingLibraryError, extra


def main() -> int:
    """Run a command of `igdit`; returns the exit code, 1 if the libraries of `run` are missing."""
    try:
        with extra("run"):
            from pipelines.commands.main import main as run_command
    except MissingLibraryError as error:
        sys.stderr.write(f"igdit: {error}\n")
        return 1
    return run_command()


if __name__ == "__main__":
    sys.exit(main())
