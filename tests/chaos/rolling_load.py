"""Callers of several servers at a steady pace, and what must hold of all that they did."""

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc
import httpx

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.fleet import RECONNECT_MS, RECONNECT_MS_MAX
from tests.e2e.processes import SECONDS_MAX
from tests.support import SEEN, TOKEN, Stub, refusal, update, userpass

CALLERS = 5
HTTP_CALLERS = 2
WATCHERS = 3
PER_SECOND = 50
UPDATES_MAX = 20_000
CALL_SECONDS = 20.0
CONNECT_MS_MAX = 5000
RESUME_SECONDS = 0.05
POLL_SECONDS = 0.05
TRUNKS = "/sip-trunks/trunks"

SERVICE = "siptrunk.v1.SipTrunkService"
ROUND_ROBIN: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
HEALTHY = ROUND_ROBIN | {"healthCheckConfig": {"serviceName": SERVICE}}
"""No retries: a server that says NOT_SERVING gets no new calls, and nothing else is needed."""
ATTEMPTS_MAX = 5
RETRYING = ROUND_ROBIN | {
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "waitForReady": True,
            "retryPolicy": {
                "maxAttempts": ATTEMPTS_MAX,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # CANCELLED is how gRPC ends a call that comes as its server stops.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}
"""For clients that can't look at health: some calls are sent again."""


@dataclass(frozen=True)
class Access:
    """How the servers are called: where, as whom, over what.

    Attributes:
        servers: the gRPC addresses.
        fronts: the HTTP addresses.
        token: of the callers.
        config: the service config of gRPC channels.
        credentials: of gRPC channels; None for plaintext.
        verify: of HTTP clients; None for plaintext.
    """

    servers: Sequence[str]
    fronts: Sequence[str]
    token: str = TOKEN
    config: dict[str, Any] = field(default_factory=lambda: HEALTHY)
    credentials: grpc.ChannelCredentials | None = None
    verify: Any = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of each call."""
        return (("authorization", f"Bearer {self.token}"),)

    def channel(self) -> grpc.aio.Channel:
        """A channel of its own to all servers."""
        target = "ipv4:" + ",".join(self.servers)
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.default_authority", "localhost"),
            ("grpc.service_config", json.dumps(self.config)),
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
            # It is also the least time that a connection may take to be made.
            ("grpc.min_reconnect_backoff_ms", CONNECT_MS_MAX),
        ]
        if self.credentials is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, self.credentials, options=options)

    def client(self) -> httpx.AsyncClient:
        """An HTTP client that keeps its connections."""
        verify = False if self.verify is None else self.verify
        return httpx.AsyncClient(verify=verify, trust_env=False, timeout=CALL_SECONDS)

    def url(self, place: int, path: str) -> str:
        """Of something at a server, over HTTP."""
        scheme = "http" if self.verify is None else "https"
        return f"{scheme}://{self.fronts[place % len(self.fronts)]}{path}"


@dataclass
class Load:
    """Callers, each with a trunk of its own, over gRPC and over HTTP, and watchers.

    Attributes:
        access: how they call; they move over when it is replaced.
        passwords: of the trunks.
        acknowledged: what was answered with OK, by trunk.
        failed: what was not, and how it ended.
        events: what each watcher was told: trunk and revision.
        ends: how watches ended.
    """

    access: Access
    database: str
    per_second: float = PER_SECOND
    passwords: dict[str, str] = field(default_factory=dict)
    acknowledged: dict[str, list[str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    events: list[list[tuple[str, int]]] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    going: bool = True
    _used: dict[str, Access] = field(default_factory=dict)
    """With what each caller and watcher was answered last."""

    @property
    def answered(self) -> int:
        """How many updates were answered, well or not."""
        return sum(len(texts) for texts in self.acknowledged.values()) + len(self.failed)

    async def moved(self, access: Access) -> None:
        """Have all call in another way, and wait until each was answered so."""
        self.access = access
        async with asyncio.timeout(SECONDS_MAX):
            while any(used is not access for used in self._used.values()):  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)

    async def more(self, count: int) -> None:
        """Wait until so many further updates were answered."""
        wanted = self.answered + count
        async with asyncio.timeout(SECONDS_MAX):
            while self.answered < wanted:  # noqa: ASYNC110 - callers count
                await asyncio.sleep(POLL_SECONDS)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All of them while the block runs; at its end all is answered and told."""
        async with self.access.channel() as channel:
            stub: Any = Stub(channel)
            async with self._watching(), asyncio.TaskGroup() as group:
                for place in range(CALLERS + HTTP_CALLERS):
                    sent = userpass()
                    request = pb.CreateSipTrunkRequest(sip_trunk=sent)
                    trunk = await stub.CreateSipTrunk(request, metadata=self.access.metadata)
                    self.passwords[trunk.id] = sent.auth_password
                    self.acknowledged[trunk.id] = []
                    caller = self._call if place < CALLERS else self._patch
                    group.create_task(caller(trunk.id))
                try:
                    yield
                finally:
                    self.going = False

    async def check(self) -> None:
        """No call has failed, each update is in history once, each watcher was told of each."""
        assert self.failed == [], self.failed
        rows = await self._rows(
            "SELECT trunk_id, trunk ->> 'description' AS text FROM trunk_revisions"
            " WHERE revision > 1"
        )
        for trunk, texts in self.acknowledged.items():
            assert texts
            assert sorted(row["text"] for row in rows if row["trunk_id"] == trunk) == sorted(texts)
        order = await self._order()
        for events in self.events:
            assert _differences(events, order) == []

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        """Watchers from before the block to when all is told."""
        tasks = list[asyncio.Task[None]]()
        try:
            for place in range(WATCHERS):
                begun = asyncio.Event()
                self.events.append([])
                tasks.append(asyncio.create_task(self._watch(place, begun)))
                await begun.wait()
            yield
            async with asyncio.timeout(SECONDS_MAX):
                while not await self._all_is_told():  # noqa: ASYNC110 - others tell
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _all_is_told(self) -> bool:
        """Whether every change has its place, and each watcher was told of the last one."""
        if await self._rows("SELECT FROM feed_pending LIMIT 1"):
            return False
        last = (await self._order())[-1]
        return all(events and events[-1] == last for events in self.events)

    async def _order(self) -> list[tuple[str, int]]:
        rows = await self._rows("SELECT trunk_id, revision FROM feed ORDER BY position")
        return [(row["trunk_id"], row["revision"]) for row in rows]

    async def _rows(self, statement: str) -> list[Any]:
        connection = await asyncpg.connect(self.database)
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    async def _paced(self) -> AsyncIterator[str]:
        """What the updates of one caller say, each when it is due."""
        loop = asyncio.get_running_loop()
        begun, every = loop.time(), (CALLERS + HTTP_CALLERS) / self.per_second
        for number in itertools.count(1):
            await asyncio.sleep(begun + number * every - loop.time())
            if not self.going:
                return
            assert number <= UPDATES_MAX
            yield f"n={number}"

    async def _call(self, trunk: str) -> None:
        """One caller over gRPC. It does not wait for an answer before the next call is due."""
        texts = self._paced()
        while self.going:
            access = self.access
            async with access.channel() as channel, asyncio.TaskGroup() as group:
                stub: Any = Stub(channel)
                async for text in texts:
                    group.create_task(self._update(access, stub, trunk, text))
                    if self.access is not access:
                        break

    async def _update(self, access: Access, stub: Any, trunk: str, text: str) -> None:
        request = update(trunk, "description", description=text)
        request.request_id = f"{trunk}-{text}"
        try:
            answer = await stub.UpdateSipTrunk(
                request, metadata=access.metadata, timeout=CALL_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            self.failed.append(f"{text} {error.code().name} {error.details()}")
            return
        assert answer.description == text
        self._acknowledge(access, trunk, text)

    async def _patch(self, trunk: str) -> None:
        """One caller over HTTP. It keeps its connection while the server does."""
        texts, place = self._paced(), 0
        while self.going:
            access = self.access
            async with access.client() as client:
                async for text in texts:
                    place = await self._patched(access, client, place, trunk, text)
                    if self.access is not access:
                        break

    async def _patched(
        self, access: Access, client: httpx.AsyncClient, place: int, trunk: str, text: str
    ) -> int:
        """One PATCH; the server to ask next. Another is asked where a connection is refused.

        Those who retry ask another one also where it is cut: that is safe, for the key's sake.

        Args:
            access: how it is called.
            client: that calls.
            place: of the server to ask first.
            trunk: that is changed.
            text: to be its description.
        """
        headers = dict(access.metadata) | {"idempotency-key": f"{trunk}-{text}"}
        retries = access.config is RETRYING
        for now in range(place, place + (ATTEMPTS_MAX if retries else len(access.fronts))):
            url = access.url(now, f"{TRUNKS}/{trunk}")
            try:
                answer = await client.patch(url, json={"description": text}, headers=headers)
            except httpx.ConnectError:
                continue
            except httpx.HTTPError as error:
                if retries and isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
                    continue
                self.failed.append(f"{text} {type(error).__name__} {error}")
                return now + 1
            if answer.status_code == 200:
                self._acknowledge(access, trunk, text)
            else:
                self.failed.append(f"{text} {answer.status_code} {answer.text}")
            closes = answer.headers.get("connection") == "close"
            return now + 1 if closes else now
        self.failed.append(f"{text} every server refuses connections")
        return place

    def _acknowledge(self, access: Access, trunk: str, text: str) -> None:
        self.acknowledged[trunk].append(text)
        self._used[trunk] = access

    async def _watch(self, place: int, begun: asyncio.Event) -> None:
        """One watcher. It goes on from its last token, at any server."""
        token = ""
        while True:
            access = self.access
            async with access.channel() as channel:
                stub: Any = Stub(channel)
                while self.access is access:
                    request = pb.WatchSipTrunksRequest(resume_token=token)
                    call = stub.WatchSipTrunks(request, metadata=access.metadata)
                    try:
                        async for response in call:
                            SEEN.add(response.SerializeToString())
                            token = response.resume_token or token
                            found = [(e.sip_trunk.id, e.revision) for e in response.events]
                            self.events[place] += found
                            self._used[f"watcher {place}"] = access
                            begun.set()
                    except grpc.aio.AioRpcError as error:
                        self.ends[_end(error)] += 1
                    await asyncio.sleep(RESUME_SECONDS)


def _differences(told: list[tuple[str, int]], order: list[tuple[str, int]]) -> list[Any]:
    """Where what a watcher was told begins to be other than what there is: both, a few of each."""
    for place, (one, other) in enumerate(itertools.zip_longest(told, order)):
        if one != other:
            return [place, told[place - 1 : place + 3], order[place - 1 : place + 3]]
    return []


def _end(error: grpc.aio.AioRpcError) -> str:
    """How a watch ended: the code, and the reason where the service gives one."""
    with contextlib.suppress(AssertionError):
        return f"{error.code().name} {refusal(error).reason}"
    return error.code().name
