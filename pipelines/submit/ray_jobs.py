"""Ray's job server, and the files of a folder that Ray uploads.

Import it when a job is to be submitted: it takes seconds, and reads Ray's variables.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import ClientError
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env import packaging
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pipelines.common.errors import JobServerError
from pipelines.common.redaction import redact
from pipelines.common.settings import override, upload_obeys_gitignore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

TIMEOUT_SECONDS = (10.0, 120.0)
"""Seconds to connect, and to wait for an answer."""
QUIET_SECONDS = 20.0
"""Seconds without a line of the log after which the server is asked whether the job still runs."""
NO_AGENT, AGENT_SECONDS = "No available agent", 60.0
"""Message of a head that has just started, and the seconds in which it may send it."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""Statuses of a job that is over."""
VERBOSE_LOGGERS = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.job.utils",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.working_dir",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray that report every upload; `igdit submit` prints what matters of it."""
TOKEN_ADVICE = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) to its token"


@dataclass(frozen=True)
class Job:
    """Job as the server describes it."""

    submission_id: str
    status: str
    metadata: dict[str, str] = field(default_factory=dict)
    message: str = ""
    exit_code: int | None = None

    @property
    def ended(self) -> bool:
        """True if the job is over."""
        return self.status in ENDED


class JobExistsError(JobServerError):
    """Raised where a submission id was used before."""


class _Client(JobSubmissionClient):
    """Ray's client with a timeout."""

    def _do_request(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return super()._do_request(*args, **{"timeout": TIMEOUT_SECONDS, **kwargs})


class JobServer:
    """Job server of a cluster, at the address of its dashboard."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            JobServerError: If nothing answers, what answers is not Ray, or it refuses the token.
        """
        self.address = address
        # Ray prefers this variable to the address that it is given.
        override({"RAY_API_SERVER_ADDRESS": address})
        for name in VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        self._client: Any = self._ask(lambda: _Client(address))

    def jobs(self) -> list[Job]:
        """Return all jobs that were ever submitted to this cluster."""
        listed = self._ask(self._client.list_jobs)
        return [_job(details) for details in listed if details.submission_id]

    def job(self, submission_id: str) -> Job:
        """Return one job."""
        return _job(self._ask(lambda: self._client.get_job_info(submission_id)))

    def submit(
        self,
        submission_id: str,
        entrypoint: str,
        runtime_env: dict[str, Any],
        metadata: dict[str, str],
    ) -> None:
        """Upload the folder if the cluster does not have it, and start the job.

        Raises:
            JobExistsError: If the submission id was used before.
            JobServerError: If the server refuses the job, or does not answer any more.
        """

        def send() -> None:
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=submission_id,
                runtime_env=runtime_env,
                metadata=metadata,
                entrypoint_num_cpus=0,
            )

        end = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                return self._ask(send)
            except JobExistsError:
                raise
            except JobServerError as error:
                if NO_AGENT not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(1.0)

    def follow(self, submission_id: str, write: Callable[[str], None], skip: int = 0) -> int:
        """Write the job's log until it ends or the connection is lost.

        Args:
            submission_id: The job.
            write: Called with each piece of text.
            skip: Characters at the beginning of the log that were written before.

        Returns:
            Characters of the log that were written so far, including those skipped.
        """
        reader = _LogReader(write, skip)
        try:
            asyncio.run(reader.read(self, submission_id))
        except BrokenPipeError:  # the reader of our output is gone
            raise
        except (OSError, RuntimeError, ClientError) as error:
            # The connection is lost; the caller asks for the state of the job.
            logging.getLogger(__name__).debug("the log was lost: %s", redact(error))
        return max(reader.seen, skip)

    def tail(self, submission_id: str) -> Any:  # noqa: ANN401
        """Return the log in pieces, as an asynchronous iterator."""
        return self._client.tail_job_logs(submission_id)

    def _ask(self, act: Callable[[], Any]) -> Any:  # noqa: ANN401
        try:
            return act()
        except AuthenticationError as error:
            raise JobServerError(_refused(str(error), self.address)) from None
        except OSError as error:
            raise JobServerError(
                f"the cluster's dashboard must answer at {self.address}, but it does not "
                f"({_reason(error)}): is that the address of the dashboard (port 8265 if nothing "
                f"else was chosen), is the tunnel to it open?"
            ) from None
        except (RuntimeError, ValueError, KeyError) as error:
            text = redact(error)
            if "already exists" in text:
                raise JobExistsError(text) from None
            if "Version check returned" in text or isinstance(error, KeyError):
                raise JobServerError(
                    f"the address must be that of a Ray dashboard, but what "
                    f"answers at {self.address} is none"
                ) from None
            raise JobServerError(f"Ray at {self.address} refuses: {_last_line(text)}") from None


class _LogReader:
    """Reader that goes on with a log where it was left."""

    def __init__(self, write: Callable[[str], None], skip: int) -> None:
        self._write, self._skip, self.seen = write, skip, 0

    async def read(self, server: JobServer, submission_id: str) -> None:
        pieces = server.tail(submission_id).__aiter__()
        while True:
            waiting = asyncio.ensure_future(anext(pieces, None))
            # A machine that is gone sends nothing: without asking for the job this would never end.
            while not (await asyncio.wait([waiting], timeout=QUIET_SECONDS))[0]:
                job = await asyncio.to_thread(server.job, submission_id)
                if job.ended:
                    waiting.cancel()
                    return
            piece = waiting.result()
            if piece is None:
                return
            new = piece[max(self._skip - self.seen, 0) :]
            self.seen += len(piece)
            if new:
                self._write(new)


def files_to_upload(root: Path, excludes: Sequence[str]) -> dict[str, int]:
    """List the files of a folder that Ray would upload, with their bytes, by Ray's own rules.

    Ray packs without compressing, so the sum is the size of the upload.
    """
    sizes: dict[str, int] = {}

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root).as_posix()] = path.stat().st_size

    patterns = [*get_runtime_env_default_excludes(), *excludes]
    packaging._dir_travel(
        root,
        [packaging._get_excludes(root, patterns)],
        add,
        include_gitignore=upload_obeys_gitignore(),
        logger=logging.getLogger(__name__),
    )
    return sizes


def _job(details: Any) -> Job:  # noqa: ANN401
    return Job(
        submission_id=details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        metadata=dict(details.metadata or {}),
        message=details.message or "",
        exit_code=details.driver_exit_code,
    )


def _refused(text: str, address: str) -> str:
    if "invalid" in text.lower() or "Forbidden" in text:
        return f"Ray at {address} refuses the token (403): {TOKEN_ADVICE}"
    return f"Ray at {address} wants a token (401): {TOKEN_ADVICE}"


def _reason(error: OSError) -> str:
    text = str(error.__context__ or error)  # Ray's own message says only that it failed
    for known in (
        "Connection refused",
        "timed out",
        "Name or service not known",
        "No route to host",
        "CERTIFICATE_VERIFY_FAILED",
    ):
        if known in text:
            return known
    return _last_line(redact(text))


def _last_line(text: str) -> str:
    """Return the last line of a traceback."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "without a message"
