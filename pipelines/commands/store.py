"""`igdit store`: list artifacts, and delete those that no recorded run needs."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.commands.parse import asks_for_help, parse_options
from pipelines.common.errors import UsageError
from pipelines.console.console import log, make_console
from pipelines.store.home import Home

STORE_HELP = """\
usage: igdit store ls
       igdit store gc [options]

  ls    List the recorded runs, studies, tables and evaluations, and the artifacts of each kind.
  gc    List the artifacts that none of these needs; --delete deletes them. --forget NAME first
        deletes the record of a run, of a study with all its trials, of a table or of an evaluation.
        `igdit store gc --help` lists its options.
"""


@dataclass(frozen=True)
class ListOptions:
    """Options of `igdit store ls`: none."""


@dataclass(frozen=True)
class GarbageOptions:
    """Options of `igdit store gc`."""

    forget: tuple[str, ...] = ()
    """Records to forget, so that their artifacts are not kept: names of runs, studies, tables or
    evaluations as `igdit store ls` lists them (study/NAME if a run has the same name), or the first
    digits of keys."""
    delete: bool = False
    """Delete the artifacts. Without it the command only lists them."""


def store_command(arguments: list[str]) -> int:
    """Run `igdit store ls` and `igdit store gc`."""
    from pipelines.console.results import print_freed, print_garbage, print_store
    from pipelines.graph.garbage import Garbage, collect_garbage, find_garbage

    if asks_for_help(arguments):
        log(make_console(), STORE_HELP.rstrip())
        return 0
    if not arguments or arguments[0] not in ("ls", "gc"):
        raise UsageError(f"igdit store needs ls or gc, but got {' '.join(arguments) or 'nothing'}")
    store, console = Home.default().store, make_console()
    if arguments[0] == "ls":
        parse_options(ListOptions, arguments[1:], "igdit store ls")
        print_store(store, console)
        return 0
    options = parse_options(GarbageOptions, arguments[1:], "igdit store gc")

    def announce(garbage: Garbage) -> None:
        print_garbage(garbage, console)

    if options.delete:
        garbage = collect_garbage(store, options.forget, announce)
    else:
        garbage = find_garbage(store, options.forget)
        announce(garbage)
    print_freed(garbage, console, deleted=options.delete)
    return 0
