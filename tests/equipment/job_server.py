"""A job server as Ray's dashboard has one, in a thread: takes jobs, says what it was told to."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from aiohttp import WSCloseCode, web


@dataclass
class FakeJobServer:
    """Its jobs and what happened; tests change both while it serves."""

    token: str = ""
    jobs: dict[str, dict] = field(default_factory=dict)
    sent: list[dict] = field(default_factory=list)
    packages: dict[str, int] = field(default_factory=dict)
    logs: list[list[str]] = field(default_factory=list)
    """What each connection to a log is told, the last one for all later ones."""
    ends: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    """Job -> status and exit code that it has once its last log was read."""
    taken: set[str] = field(default_factory=set)
    """Ids that somebody else takes before they are listed."""
    port: int = 0

    def __enter__(self) -> FakeJobServer:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, submission_id: str, status: str, **metadata: str) -> None:
        """A job that was there before."""
        self.jobs[submission_id] = {
            "type": "SUBMISSION",
            "submission_id": submission_id,
            "status": status,
            "entrypoint": "x",
            "metadata": {f"igdit.{k}": v for k, v in metadata.items()},
        }

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(middlewares=[self._check_token], client_max_size=2**27)
        app.add_routes(
            [
                web.get("/api/version", self._version),
                web.get("/api/jobs/", self._list),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/{id}", self._info),
                web.get("/api/jobs/{id}/logs/tail", self._tail),
                web.get("/api/packages/gcs/{name}", self._has),
                web.put("/api/packages/gcs/{name}", self._put),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._over.wait()
        await runner.cleanup()

    @web.middleware
    async def _check_token(self, request, handler):
        given = request.headers.get("authorization", "")
        if self.token and not given:
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        if self.token and given != f"Bearer {self.token}":
            return web.Response(status=403, text="Forbidden: Invalid authentication token")
        return await handler(request)

    async def _version(self, request):
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})

    async def _list(self, request):
        return web.json_response(list(self.jobs.values()))

    async def _submit(self, request):
        job = await request.json()
        if job["submission_id"] in {*self.jobs, *self.taken}:
            text = f"ValueError: Job with submission_id {job['submission_id']} already exists."
            return web.Response(status=400, text=text)
        self.sent.append(job)
        self.jobs[job["submission_id"]] = {
            "type": "SUBMISSION",
            "status": "RUNNING",
            "entrypoint": job["entrypoint"],
            "submission_id": job["submission_id"],
            "metadata": job["metadata"],
        }
        return web.json_response({"job_id": "", "submission_id": job["submission_id"]})

    async def _info(self, request):
        job = self.jobs.get(request.match_info["id"])
        return web.json_response(job) if job else web.Response(status=404, text="no such job")

    async def _tail(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        last = len(self.logs) <= 1
        for piece in self.logs[0] if last else self.logs.pop(0):
            await socket.send_str(piece)
        if last:
            status, code = self.ends.get(request.match_info["id"], ("SUCCEEDED", 0))
            self.jobs[request.match_info["id"]] |= {"status": status, "driver_exit_code": code}
        else:
            await socket.close(code=WSCloseCode.GOING_AWAY)
        return socket

    async def _has(self, request):
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _put(self, request):
        self.packages[request.match_info["name"]] = len(await request.read())
        return web.Response()
