"""`trunkline serve`: runs the service until a signal."""

import argparse
import asyncio
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import uvloop

from trunkline import config, logs
from trunkline.config import Settings
from trunkline.server import Running, serving

TOKEN_FILE = "token"  # noqa: S105 - a file's name
_FIRST_TRUNK = (
    '{"sip_trunk":{"name":"Acme Mumbai","provider":"plivo","auth_type":"USERPASS",'
    '"auth_username":"acme","auth_password":"change-me","gateways":[{"gateway_address":'
    '"sip.example.com"}]}}'
)


def run(settings: Settings, parsed: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once."""
    logs.configure(settings.log_level, settings.log_format)
    return uvloop.run(_serve(settings, hints=parsed.try_it))


def try_flags(
    flags: Mapping[str, str | None], environment: Mapping[str, str]
) -> dict[str, str | None]:
    """The bootstrap token of a service that is tried: made once, kept in the data directory."""
    found, _ = config.load(environment, flags)
    if found.bootstrap_token or found.database_url:
        return {}
    path = Path(found.data_dir) / TOKEN_FILE
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    return {"bootstrap_token": path.read_text("utf-8").strip()}


async def _serve(settings: Settings, *, hints: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with serving(settings) as running:
        stopping = asyncio.create_task(stop.wait())
        ready = asyncio.create_task(running.ready.wait())
        try:
            await asyncio.wait(
                (stopping, ready, running.failed), return_when=asyncio.FIRST_COMPLETED
            )
            if ready.done() and not stopping.done():
                _announce(settings, running, hints=hints)
            await asyncio.wait((stopping, running.failed), return_when=asyncio.FIRST_COMPLETED)
            if running.failed.done():
                running.failed.result()
        finally:
            stopping.cancel()
            ready.cancel()
    return 0


def _announce(settings: Settings, running: Running, *, hints: bool) -> None:
    address = running.grpc_address
    if hints:
        token = shlex.quote(str(Path(settings.data_dir) / TOKEN_FILE))
        if not running.bootstrap:
            token = "FILE-WITH-A-TOKEN"  # noqa: S105 - the one in the data directory is over
        trunkline = shlex.quote(os.path.relpath(Path(sys.argv[0])))
        print(
            "\nA first trunk, with grpcurl:\n\n"
            f'  grpcurl -plaintext -H "authorization: Bearer $(cat {token})" \\\n'
            f"    -d '{_FIRST_TRUNK}' \\\n"
            f"    {address} siptrunk.v1.SipTrunkService/CreateSipTrunk\n\n"
            "or with nothing but this installation:\n\n"
            f"  {trunkline} call --token-file {token} --grpc-address {address} CreateSipTrunk \\\n"
            f"    '{_FIRST_TRUNK}'\n"
        )
    print(f"trunkline ready grpc={address}", flush=True)
