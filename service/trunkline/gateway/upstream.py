"""The gRPC service as the gateway calls it: headers carried over, numbers put with their trunks."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import grpc

from siptrunk.v1 import phone_number_pb2, sip_trunk_pb2, sip_trunk_service_pb2_grpc
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline.gateway.forms import NUMBERS_SHOWN_MAX

SipTrunk = sip_trunk_pb2.SipTrunk
PhoneNumber = phone_number_pb2.PhoneNumber
Ready = Callable[[], Awaitable[bool]]
Numbers = tuple[list[PhoneNumber], bool]

CARRIED = ("authorization", "traceparent", "tracestate")
"""Headers that are handed on; those of a trace unless the gateway has a span of its own."""
CHANGED_FIELDS_KEY = "x-changed-fields"
MESSAGE_BYTES_MAX = 8 << 20


@dataclass(slots=True)
class Service:
    """The service, as all requests to a gateway share it.

    Attributes:
        calls: a stub for calls that end by themselves.
        watches: a stub on a connection of its own. A connection carries so many calls at once and
            lets more wait, and a watch does not end.
        watching: how many watches there are now.
        leaving: set when the gateway is about to end.
    """

    calls: Any
    watches: Any
    watching: int = 0
    leaving: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Intent:
    """What a request that changes something says beside the change.

    Attributes:
        request_id: makes it safe to retry; empty for none.
        validate_only: whether it is checked and answered only.
    """

    request_id: str = ""
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """The reply to a change, and the names of the fields that changed, None where none are told."""

    reply: Any
    fields: str | None


class Upstream:
    """One caller's view of the service, for the length of a request.

    Args:
        service: that is called.
        metadata: what the caller's headers say to it.
        seconds: the deadline of each call.

    Attributes:
        intent: what the caller says beside a change.
        service: that is called.
    """

    def __init__(
        self, service: Service, metadata: Sequence[tuple[str, str]], seconds: float
    ) -> None:
        self.intent = Intent()
        self.service = service
        self._metadata = tuple(metadata)
        self._seconds = seconds
        self._asked = False

    async def admit(self, *, reads: bool) -> None:
        """See that the caller may call at all, before it is told what is wrong with its request.

        Asked of the service by a request that it always refuses, unless it was asked already.

        Raises:
            grpc.aio.AioRpcError: the caller is unknown or may not, or the service is away.
        """
        if self._asked:
            return
        try:
            if reads:
                await self.call("GetSipTrunk", pb.GetSipTrunkRequest())
            else:
                await self.call("UpdateSipTrunk", pb.UpdateSipTrunkRequest())
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.INVALID_ARGUMENT:
                raise

    async def call(self, method: str, request: Any) -> Any:
        """Call a method; its errors are grpc.aio.AioRpcError."""
        return await self._call(method, request)

    async def change(self, method: str, request: Any) -> Changed:
        """Call a method that changes something, as the caller intends it."""
        request.request_id = self.intent.request_id
        request.validate_only = self.intent.validate_only
        call = self._call(method, request)
        reply = await call
        trailers = dict(iter(await call.trailing_metadata()))
        return Changed(reply, trailers.get(CHANGED_FIELDS_KEY))

    def watch(self, request: Any) -> Any:
        """Call the method that streams, without a deadline."""
        self._asked = True
        return self.service.watches.WatchSipTrunks(request, metadata=self._metadata)

    def _call(self, method: str, request: Any) -> Any:
        self._asked = True
        return getattr(self.service.calls, method)(
            request, metadata=self._metadata, timeout=self._seconds
        )

    async def numbers(self, trunk: SipTrunk) -> Numbers:
        """The first numbers of a trunk, and whether it has more than are shown.

        None where there is no such trunk: it was not written, or is deleted since, which a retry
        that is answered as the first call was does not mind.
        """
        if not trunk.phone_number_count or not trunk.id:
            return [], False
        try:
            page = await self.call(
                "ListPhoneNumbers",
                pb.ListPhoneNumbersRequest(trunk_id=trunk.id, page_size=NUMBERS_SHOWN_MAX),
            )
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return [], False
        return list(page.phone_numbers), bool(page.next_page_token)

    async def numbers_of(self, trunks: Sequence[SipTrunk]) -> dict[str, Numbers]:
        """The first numbers of each of some trunks, by trunk id, in few calls."""
        found: dict[str, Numbers] = {t.id: ([], False) for t in trunks}
        few = [t.id for t in trunks if 0 < t.phone_number_count <= NUMBERS_SHOWN_MAX]
        token = ""
        while few:
            request = pb.ListPhoneNumbersRequest(
                trunk_id="-", trunk_ids=few, page_size=NUMBERS_SHOWN_MAX, page_token=token
            )
            page = await self.call("ListPhoneNumbers", request)
            for number in page.phone_numbers:
                found[number.byot_trunk_id][0].append(number)
            token = page.next_page_token
            if not token:
                break
        for trunk in trunks:
            if trunk.phone_number_count > NUMBERS_SHOWN_MAX:
                found[trunk.id] = await self.numbers(trunk)
        return found


def connected(
    address: str, credentials: grpc.ChannelCredentials | None = None
) -> AbstractAsyncContextManager[grpc.aio.Channel]:
    """A channel to the service at an address, in plaintext without credentials."""
    options = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def stub(channel: grpc.aio.Channel) -> Any:
    """A stub of the service."""
    return sip_trunk_service_pb2_grpc.SipTrunkServiceStub(channel)
