"""The gRPC service as the gateway calls it: headers carried over, numbers put with their trunks."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from siptrunk.v1 import phone_number_pb2, sip_trunk_pb2, sip_trunk_service_pb2_grpc
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline.gateway.forms import NUMBERS_SHOWN_MAX

SipTrunk = sip_trunk_pb2.SipTrunk
PhoneNumber = phone_number_pb2.PhoneNumber
Ready = Callable[[], Awaitable[bool]]
Numbers = tuple[list[PhoneNumber], bool]

CARRIED = ("authorization", "x-request-id", "traceparent", "tracestate")
MESSAGE_BYTES_MAX = 8 << 20


class Upstream:
    """One caller's view of the service, for the length of a request.

    Args:
        stub: of the service.
        metadata: what the caller's headers say to it.
        seconds: the deadline of each call.
    """

    def __init__(self, stub: Any, metadata: Sequence[tuple[str, str]], seconds: float) -> None:
        self._stub = stub
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
        self._asked = True
        return await getattr(self._stub, method)(
            request, metadata=self._metadata, timeout=self._seconds
        )

    async def numbers(self, trunk: SipTrunk) -> Numbers:
        """The first numbers of a trunk, and whether it has more than are shown."""
        if not trunk.phone_number_count:
            return [], False
        page = await self.call(
            "ListPhoneNumbers",
            pb.ListPhoneNumbersRequest(trunk_id=trunk.id, page_size=NUMBERS_SHOWN_MAX),
        )
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


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the service at an address."""
    options = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield channel


def stub(channel: grpc.aio.Channel) -> Any:
    """A stub of the service."""
    return sip_trunk_service_pb2_grpc.SipTrunkServiceStub(channel)
