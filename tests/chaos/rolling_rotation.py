"""What is changed of servers that run, in the order that the documents give."""

import asyncio
import dataclasses
import time
from pathlib import Path

import grpc

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.certificates import Authority, context, swap, trusting, write
from tests.chaos.rolling_fleet import Rolling
from tests.chaos.rolling_load import CALLERS, Access, Load
from tests.e2e.processes import command
from tests.e2e.sealed import BOTH, counts, rotate
from tests.support import KEYS_NEWER, Stub, refusal
from trunkline import tokens

REVOCATION_SECONDS_MAX = 5
POLL_SECONDS = 0.02


class Certificates:
    """Of servers and of callers, each of two authorities: one now, one later.

    Args:
        directory: takes the files.

    Attributes:
        settings: of the servers.
    """

    def __init__(self, directory: Path) -> None:
        self._servers = [Authority("Now"), Authority("Later")]
        self._callers = [Authority("Now, of callers"), Authority("Later, of callers")]
        self._directory = directory
        self._swap(self._servers[0], self._callers[0])
        served = directory / "served"
        names = {"tls_cert": "tls.crt", "tls_key": "tls.key", "tls_client_ca": "callers.crt"}
        self.settings = {setting: str(served / name) for setting, name in names.items()}

    def access(self, access: Access, place: int) -> Access:
        """For callers that trust both authorities and show a certificate of one of theirs."""
        shown = self._callers[place].issue("a-caller")
        files = write(self._directory / f"shown-{place}", shown)
        return dataclasses.replace(
            access,
            credentials=trusting(*self._servers, client=shown),
            verify=context(*self._servers, client=files),
        )

    async def rotate(self, fleet: Rolling, load: Load) -> None:
        """Servers trust both kinds of callers, callers move over, servers trust the later ones."""
        await self._served(fleet, self._servers[0], *self._callers)
        await load.moved(self.access(load.access, 1))
        await self._served(fleet, self._servers[1], self._callers[1])
        # Once more, so that all have connections that began since.
        await load.moved(self.access(load.access, 1))

    async def _served(self, fleet: Rolling, shown: Authority, *trusted: Authority) -> None:
        serial = self._swap(shown, *trusted)
        await asyncio.gather(*(server.logged(serial) for server in fleet.servers))

    def _swap(self, shown: Authority, *trusted: Authority) -> str:
        issued = shown.server()
        pems = b"".join(authority.pem for authority in trusted)
        swap(self._directory / "served", issued, callers=pems)
        return issued.serial


async def rotate_keys(fleet: Rolling, load: Load) -> None:
    """The newer key goes first into every ring, all is sealed anew, the older one goes out."""
    for keys in (BOTH, KEYS_NEWER):
        for place in range(len(fleet.servers)):
            await fleet.restart(place, secret_keys=keys)
            await fleet.found(place, CALLERS)
        if keys == BOTH:
            done = await rotate(**fleet.variables)
            assert (done.code, done.err) == (0, "")
            assert await counts(load.database) == {"k2": len(load.passwords)}


async def token_made(fleet: Rolling) -> str:
    """A new token of the callers' account."""
    what = ("--account", "default", "--name", "callers", "--scopes", "trunks:read,trunks:write")
    done = await command("tokens", "create", *what, **fleet.variables)
    assert done.code == 0, done.err
    return done.out.strip()


async def rotate_token(fleet: Rolling, load: Load) -> None:
    """A new one is made, callers move over, the old one is revoked and stops at every server."""
    old = load.access
    await load.moved(dataclasses.replace(old, token=await token_made(fleet)))
    name = tokens.token_id(old.token)
    assert name
    done = await command("tokens", "revoke", name, **fleet.variables)
    assert done.code == 0, done.err
    since = time.monotonic()
    alone = [dataclasses.replace(load.access, servers=[one], token=old.token) for one in fleet.grpc]
    assert await asyncio.gather(*(_stopped(access, since) for access in alone)) == [
        "UNAUTHENTICATED TOKEN_UNKNOWN"
    ] * len(alone)


async def _stopped(access: Access, since: float) -> str:
    """What a token is refused with, which it must be in a call begun in time."""
    async with access.channel() as channel:
        stub = Stub(channel)
        while True:
            begun = time.monotonic()
            try:
                await stub.ListSipTrunks(pb.ListSipTrunksRequest(), metadata=access.metadata)
            except grpc.aio.AioRpcError as error:
                found = refusal(error)
                return f"{found.code} {found.reason}"
            assert begun - since < REVOCATION_SECONDS_MAX
            await asyncio.sleep(POLL_SECONDS)
