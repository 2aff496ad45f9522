"""Submit a job to a cluster, or find the one that is running; follow its log to the end."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipelines.common.errors import JobServerError, UsageError
from pipelines.common.redaction import redact
from pipelines.common.settings import all_variables, has_ray_token, ray_token_path, set_defaults
from pipelines.console.console import log
from pipelines.submit.uploads import check_no_secrets

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.submit.job import Submission
    from pipelines.submit.ray_jobs import Job, JobServer

MAX_UPLOAD_BYTES = 50 * 2**20
"""Largest upload in bytes: half of what the dashboard takes; more means data in the folder."""
SHOWN_FILES = 10
"""Files that are listed where an upload is too large."""
MAX_NUMBERS_TRIED = 20
"""Largest number of attempts' numbers that others may take first."""
RECONNECT_SECONDS = 300.0
"""Seconds that a lost connection to the cluster is tried again while a log is followed."""


def submit(
    submission: Submission,
    address: str,
    console: Console,
    *,
    detach: bool,
    again: bool,
    dry_run: bool,
) -> int:
    """Submit a job, unless one that does the same is running; return the job's exit code.

    Raises:
        UsageError: If the folder is too large, or lacks a file that the job needs.
        JobServerError: If the cluster cannot be reached, or refuses the job.
    """
    _prepare_authentication()
    from pipelines.submit.ray_jobs import JobServer, files_to_upload

    files = files_to_upload(submission.root, submission.excludes)
    check_upload(files, submission)
    check_no_secrets(submission.root, files, all_variables() | submission.environment)
    if dry_run:
        describe(submission, files, address, console)
        return 0
    _warn_of_plain_http(address, console)
    server = JobServer(address)
    running, others = find_running(server, submission)
    for other in others:
        _log(
            console,
            f"Note: {other.submission_id} is {other.status.lower()} under the same name with "
            f"another home, store, database or other settings; it is not followed",
        )
    if again:
        running = None
    if running is not None:
        _log(
            console,
            f"{running.submission_id} is already {running.status.lower()}: nothing was submitted "
            f"(--again submits another attempt)",
        )
        submission_id = running.submission_id
    else:
        submission_id = send(server, submission)
        size = sum(files.values()) / 2**20
        _log(
            console, f"Submitted {submission_id} to {address} ({len(files)} files, {size:.1f} MiB)"
        )
    if detach:
        _log(console, follow_up_commands(submission_id, address))
        return 0
    return watch(server, submission_id, console)


def _prepare_authentication() -> None:
    """Make Ray's client send a token if the environment names one: by default it sends none."""
    path = ray_token_path()
    if has_ray_token() or path:
        set_defaults({"RAY_AUTH_MODE": "token"})
    if path and not has_ray_token() and not Path(path).is_file():
        raise UsageError(f"RAY_AUTH_TOKEN_PATH must be a file, but got {path!r}")


def _warn_of_plain_http(address: str, console: Console) -> None:
    parts = urlsplit(address)
    host = parts.hostname or ""
    if parts.scheme == "http" and host not in ("localhost", "::1") and not host.startswith("127."):
        _log(
            console,
            f"Note: {address} is not encrypted; on a network that others share, open a "
            f"tunnel (ssh -L 8265:127.0.0.1:8265 HEAD) and submit to it",
        )


def check_upload(files: dict[str, int], submission: Submission) -> None:
    """Check that a folder may be uploaded.

    Raises:
        UsageError: If the folder is too large, with its largest files; or if it lacks the
            experiment's file.
    """
    total = sum(files.values())
    if total > MAX_UPLOAD_BYTES:
        largest = sorted(files.items(), key=lambda item: -item[1])[:SHOWN_FILES]
        lines = "\n".join(f"  {size / 2**20:8.1f} MiB  {name}" for name, size in largest)
        raise UsageError(
            f"{submission.root} must be at most {MAX_UPLOAD_BYTES // 2**20} MiB to be uploaded, "
            f"but has {total / 2**20:.1f} MiB in {len(files)} files; name what the job does not "
            f"need in .rayignore or .gitignore. Largest:\n{lines}"
        )
    word = submission.words[0]
    if word.endswith(".json") and word not in files:
        raise UsageError(
            f"{word} must be among the files that are uploaded, but .gitignore, "
            f".rayignore or a rule of igdit leaves it out: copy it to {submission.root}"
        )


def describe(submission: Submission, files: dict[str, int], address: str, console: Console) -> None:
    """Print what would be submitted."""
    size = sum(files.values()) / 2**20
    _log(
        console,
        f"To          {address}\n"
        f"Id          {submission.prefix}N, N the next free number\n"
        f"Command     {submission.entrypoint}\n"
        f"Folder      {submission.root}: {len(files)} files, {size:.1f} MiB",
    )
    for name, value in sorted(submission.environment.items()):
        _log(console, f"Environment {name}={value}")
    _log(console, "Nothing was submitted (--dry-run).")


def find_running(server: JobServer, submission: Submission) -> tuple[Job | None, list[Job]]:
    """Return the newest running attempt at the same job, and other jobs of the same name."""
    jobs = [job for job in server.jobs() if not job.ended]
    same = [job for job in jobs if submission.matches(job.metadata)]
    others = [job for job in jobs if job not in same and _attempt(job, submission)]
    return max(same, key=lambda job: _attempt(job, submission), default=None), others


def _attempt(job: Job, submission: Submission) -> int:
    number = job.submission_id.removeprefix(submission.prefix)
    same = job.submission_id.startswith(submission.prefix) and number.isdecimal()
    return int(number) if same else 0


def send(server: JobServer, submission: Submission) -> str:
    """Submit the job under the next free number; return the submission id."""
    from pipelines.submit.ray_jobs import JobExistsError

    number = max((_attempt(job, submission) for job in server.jobs()), default=0)
    for attempt in range(number + 1, number + 1 + MAX_NUMBERS_TRIED):
        submission_id = f"{submission.prefix}{attempt}"
        try:
            server.submit(
                submission_id,
                submission.entrypoint,
                submission.runtime_env,
                submission.metadata(attempt),
            )
        except JobExistsError:
            continue
        return submission_id
    raise JobServerError(
        f"{MAX_NUMBERS_TRIED} submission ids from {submission.prefix}{number + 1} on were "
        f"taken by others; submit the same command again"
    )


def watch(server: JobServer, submission_id: str, console: Console) -> int:
    """Follow a job to its end; return its exit code, or 130 after Ctrl-C, which stops nothing."""
    try:
        job = _follow_to_the_end(server, submission_id, console)
    except KeyboardInterrupt:
        _log(
            console,
            f"\n{submission_id} keeps running; its log is no longer followed.\n"
            + follow_up_commands(submission_id, server.address),
        )
        return 130
    _log(console, f"{submission_id}: {job.status}")
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        _log(console, "The job was stopped; submit the same command to continue it.")
        return 130
    if job.message and job.exit_code is None:  # else its log shows the reason
        _log(console, job.message.strip())
    return job.exit_code or 1


def _follow_to_the_end(server: JobServer, submission_id: str, console: Console) -> Job:
    """Follow the log of a job, also through lost connections.

    Raises:
        JobServerError: If the cluster cannot be reached for `RECONNECT_SECONDS`.
    """

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    seen, lost_at = 0, None
    while True:
        before = seen
        seen = server.follow(submission_id, write, seen)
        try:
            job = server.job(submission_id)
        except JobServerError as error:
            now = time.monotonic()
            if lost_at is None:
                lost_at = now
                _log(console, f"(lost the connection to the cluster: {error}; trying again)")
            if now - lost_at > RECONNECT_SECONDS:
                raise
            time.sleep(2.0)
            continue
        if lost_at is not None:
            _log(console, f"(reconnected to {submission_id})")
        lost_at = None
        if job.ended:
            # The end of its log, written since it was last read.
            server.follow(submission_id, write, seen)
            return job
        if seen == before:
            time.sleep(1.0)


def follow_up_commands(submission_id: str, address: str) -> str:
    """Return the commands that follow and stop a job."""
    at = f"--address {shlex.quote(address)}"
    return (
        f"Follow it: the same command again, or ray job logs --follow {at} {submission_id}\n"
        f"Stop it:   ray job stop {at} {submission_id}"
    )


def _log(console: Console, text: str) -> None:
    log(console, redact(text))
