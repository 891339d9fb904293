"""Whether the server can do its work, and grpc.health.v1, which tells the world.

`""` and `siptrunk.v1.SipTrunkService` are readiness; `liveness` is the process alone, so that a
database that is away never gets servers restarted.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from trunkline.errors import NotFoundError, TrunklineError, UnavailableError

SERVICE = "siptrunk.v1.SipTrunkService"
LIVENESS = "liveness"
WATCHERS_MAX = 1000
START_SECONDS_MAX = 5.0
"""How long a call waits for the server to start."""
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Readiness:
    """The server's state: starting, ready, not ready for a reason, or draining."""

    def __init__(self) -> None:
        self.ready = False
        self.draining = self.leaving = False
        self._starting = UnavailableError("STARTING", "the server is starting", retry_seconds=1.0)
        self._refusal: TrunklineError | None = self._starting
        self._changed = asyncio.Event()

    def serve(self) -> None:
        """The database answers and has the schema that this server knows."""
        self._set(ready=True, refusal=None)

    def suspend(self, refusal: TrunklineError | None) -> None:
        """Not ready. With a refusal calls get that; without one they are tried all the same."""
        self._set(ready=False, refusal=refusal)

    def drain(self) -> None:
        """Not ready any more: the process is about to end. Calls are still taken."""
        self.draining = True
        self._set(ready=False, refusal=self._refusal)

    def leave(self) -> None:
        """No more calls are taken. Health streams end only now: clients begin ended ones anew."""
        self.leaving = True
        self._set(ready=False, refusal=self._refusal)

    async def check(self) -> None:
        """Let a call pass; one that comes while the server starts waits for it, for a while.

        A server listens before it has seen its database, so clients find it before it is ready.

        Raises:
            UnavailableError: the server has not started, or the schema is not what it knows.
        """
        if self._refusal is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS_MAX):
                while self._refusal is self._starting:
                    await self._changed.wait()
        if self._refusal is not None:
            raise self._refusal

    def next_change(self) -> asyncio.Event:
        """Set when the state next changes. Take it before looking at the state."""
        return self._changed

    def _set(self, *, ready: bool, refusal: TrunklineError | None) -> None:
        self.ready, self._refusal = ready and not self.draining, refusal
        self._changed.set()
        self._changed = asyncio.Event()


class HealthService(health_pb2_grpc.HealthServicer):
    """grpc.health.v1.Health. Each watcher keeps one value only, the latest."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._watchers = 0

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status == _UNKNOWN:
            raise NotFoundError("SERVICE_UNKNOWN", "the server has no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: Any, context: Any) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(
            statuses={
                name: health_pb2.HealthCheckResponse(status=self._status(name))
                for name in ("", SERVICE, LIVENESS)
            }
        )

    async def Watch(
        self, request: Any, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        if self._watchers >= WATCHERS_MAX:
            raise UnavailableError("TOO_MANY_WATCHERS", "too many health watchers")
        self._watchers += 1
        try:
            told = None
            while True:
                change = self._readiness.next_change()
                status = self._status(request.service)
                if status != told:
                    told = status
                    yield health_pb2.HealthCheckResponse(status=status)
                if self._readiness.leaving:
                    return
                await change.wait()
        finally:
            self._watchers -= 1

    def _status(self, name: str) -> Any:
        if name == LIVENESS:
            return _SERVING
        if name in ("", SERVICE):
            return _SERVING if self._readiness.ready else _NOT_SERVING
        return _UNKNOWN
