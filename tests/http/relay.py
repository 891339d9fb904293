"""Stands between a gateway and a service, hands every call on, and tells what it carried."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.http.clients import client
from trunkline.config import Settings
from trunkline.gateway import http as gateway
from trunkline.gateway.edge import Load


@dataclass(frozen=True)
class Carried:
    """One call: its method, its metadata, and how many seconds it had."""

    method: str
    metadata: dict[str, Any]
    seconds: float | None


@dataclass
class Relay:
    """The relay's address, and the calls that went over it."""

    address: str = ""
    calls: list[Carried] = field(default_factory=list)


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, channel: grpc.aio.Channel, relay: Relay) -> None:
        self._channel = channel
        self._relay = relay

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        if method.rpartition("/")[2].startswith("Watch"):
            return grpc.unary_stream_rpc_method_handler(self._stream(method))
        return grpc.unary_unary_rpc_method_handler(self._unary(method))

    def _unary(self, method: str) -> Any:
        call: Any = self._channel.unary_unary(method)

        async def hand_on(request: bytes, context: Any) -> bytes:
            handed = call(request, metadata=self._carried(method, context))
            try:
                answer: bytes = await handed
            except grpc.aio.AioRpcError as error:
                await self._end(error, context)
                raise
            trailers = await handed.trailing_metadata()
            context.set_trailing_metadata(tuple(trailers))
            return answer

        return hand_on

    def _stream(self, method: str) -> Any:
        call: Any = self._channel.unary_stream(method)

        async def hand_on(request: bytes, context: Any) -> AsyncIterator[bytes]:
            handed = call(request, metadata=self._carried(method, context))
            try:
                async for answer in handed:
                    yield answer
            except grpc.aio.AioRpcError as error:
                await self._end(error, context)
            finally:
                handed.cancel()

        return hand_on

    def _carried(self, method: str, context: Any) -> list[tuple[str, Any]]:
        """Note a call; the metadata that it hands on."""
        metadata = tuple(context.invocation_metadata())
        carried = Carried(method.rpartition("/")[2], dict(metadata), context.time_remaining())
        self._relay.calls.append(carried)
        return [(k, v) for k, v in metadata if not k.startswith(("user-agent", "grpc-"))]

    async def _end(self, error: grpc.aio.AioRpcError, context: Any) -> None:
        trailers = tuple(error.trailing_metadata() or ())
        await context.abort(error.code(), error.details() or "", trailers)


@asynccontextmanager
async def relayed(target: str) -> AsyncIterator[tuple[Relay, Any]]:
    """A relay to a service, and a client of a gateway whose calls go over it."""
    relay = Relay()
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        server = grpc.aio.server(handlers=(_Handler(channel, relay),))
        relay.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            with gateway.bound("127.0.0.1:0") as listener:
                load = Load(100, 100)
                front = gateway.serving(listener, relay.address, Settings(drain_seconds=1), load)
                async with front, client(gateway.address_of(listener)) as made:
                    yield relay, made
        finally:
            await asyncio.shield(server.stop(None))
