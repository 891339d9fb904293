"""A client in another language: explicit false, 0, "" and an empty list from JavaScript."""

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.support import TOKEN, IpIdentifier, userpass

ROOT = Path(__file__).parents[2]
CLIENT = Path(sys.prefix) / "tools" / "node"
PACKAGES = ("@grpc/grpc-js@1.14.0", "@grpc/proto-loader@0.8.0")
SECONDS_MAX = 170
SCRIPT = """
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const [address, token, id, protos] = process.argv.slice(2);
const loaded = loader.loadSync("siptrunk/v1/sip_trunk_service.proto", {
  includeDirs: [protos], keepCase: true,
});
const { siptrunk } = grpc.loadPackageDefinition(loaded);
const client = new siptrunk.v1.SipTrunkService(address, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${token}`);
client.UpdateSipTrunk({
  sip_trunk: {
    id, rtp_symmetric: false, qualify_frequency: 0, description: "", ip_identifiers: [],
  },
  update_mask: { paths: ["rtp_symmetric", "qualify_frequency", "description", "ip_identifiers"] },
}, metadata, { deadline: Date.now() + 20000 }, (error, trunk) => {
  if (error) { console.error(error.message); process.exit(1); }
  console.log(JSON.stringify({
    rtp_symmetric: trunk.rtp_symmetric, qualify_frequency: trunk.qualify_frequency,
    description: trunk.description, ip_identifiers: trunk.ip_identifiers || [],
  }));
  client.close();
});
"""


async def run(*command: str | Path, cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(SECONDS_MAX):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.fixture(scope="module")
async def client() -> Path:
    """A script beside the packages that it needs; npm fetches them once."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("node and npm are not installed")
    CLIENT.mkdir(parents=True, exist_ok=True)
    if not (CLIENT / "node_modules" / "@grpc" / "proto-loader").is_dir():
        await run(npm, "install", "--no-audit", "--no-fund", "--prefix", ".", *PACKAGES, cwd=CLIENT)
    script = CLIENT / "update.js"
    script.write_text(SCRIPT)
    return script


async def test_explicit_false_zero_and_empty_take_effect_from_javascript(
    client: Path, service: str, stub: Any
) -> None:
    sent = userpass(
        description="to be emptied", ip_identifiers=[IpIdentifier(ip_address="203.0.113.5")]
    )
    before = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=sent))
    output = await run("node", client, service, TOKEN, before.id, ROOT / "protos", cwd=CLIENT)
    assert json.loads(output) == {
        "rtp_symmetric": False,
        "qualify_frequency": 0,
        "description": "",
        "ip_identifiers": [],
    }
    after = await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=before.id))
    assert (after.rtp_symmetric, after.qualify_frequency, after.description) == (False, 0, "")
    assert after.HasField("description")
    assert not after.ip_identifiers
    assert after.name == before.name
