import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.http.trunks import created, userpass
from tests.support import SEEN, TOKEN
from trunkline.gateway.routes import bindings

SEED = 20260
EXAMPLES_PER_OPERATION = 60
CASES_MIN = 1000
TRUNKS_THERE = 3
NUMBERS_THERE = 60
NEEDS_WHAT_STAYS = {
    "DeletePhoneNumber",
    "BatchDeletePhoneNumbers",
    "MovePhoneNumbers",
    "BatchUpdateSipTrunks",
    "RemoveGateways",
    "RemoveIpIdentifiers",
}
# Its reply does not end; tests/http/test_watch.py has it.
ENDLESS = "WatchSipTrunks"
CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "left_out",
    # A trunk takes its numbers along, so that none is left to be deleted on its own.
    [None, "DeleteSipTrunk"],
    ids=["every operation", "trunks stay"],
)
async def test_generated_requests_get_only_what_the_document_allows(
    http: httpx.AsyncClient, address: str, tmp_path: Path, left_out: str | None
) -> None:
    excluded = [ENDLESS, *([left_out] if left_out else [])]
    operations = [b for b in bindings() if b.method not in excluded]
    har = tmp_path / "report.har"
    output, code = await _schemathesis(
        *("run", f"{address}/openapi.json", "--header", f"Authorization: Bearer {TOKEN}"),
        *("--checks", "all", "--continue-on-failure", "--seed", str(SEED)),
        *("--max-examples", str(EXAMPLES_PER_OPERATION), "--generation-database", "none"),
        *("--report", "har", "--report-har-path", str(har)),
        *(part for name in excluded for part in ("--exclude-operation-id", name)),
        directory=tmp_path,
        config=await _config(http),
    )
    print(output)  # with the seed
    assert code == 0, output
    assert re.search(rf"^ +Tested: {len(operations)}$", output, re.MULTILINE), output
    exchanges = json.loads(har.read_text())["log"]["entries"]
    SEEN.add(json.dumps([e["response"] for e in exchanges]).encode())
    assert len(exchanges) >= CASES_MIN
    assert [e for e in exchanges if e["response"]["status"] >= 500] == []
    # Or the checks would have judged refusals alone.
    needed = {b.method for b in operations} - (NEEDS_WHAT_STAYS if left_out is None else set())
    accepted = {_method(e) for e in exchanges if e["response"]["status"] < 300}
    assert needed - accepted == set()


async def _config(http: httpx.AsyncClient) -> str:
    """The configuration, with the ids of what is there."""
    trunks = []
    for number in range(TRUNKS_THERE):
        digits = [f"+1555{number}{n:03}" for n in range(NUMBERS_THERE)]
        body = userpass(phone_numbers=[{"phone_number": one} for one in digits])
        trunks.append(await created(http, body))
    numbers = [n["id"] for trunk in trunks for n in trunk["phone_numbers"]]
    text = CONFIG.read_text("utf-8").replace('["TRUNKS"]', json.dumps([t["id"] for t in trunks]))
    return text.replace('["NUMBERS"]', json.dumps(numbers))


async def _schemathesis(*arguments: str, directory: Path, config: str) -> tuple[str, int | None]:
    file = directory / "schemathesis.toml"
    file.write_text(config, "utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(file)),
        *(*arguments, "--no-color"),
        cwd=directory,
        env=os.environ | {"NO_PROXY": "*"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        return (await process.communicate())[0].decode(), process.returncode
    finally:
        if process.returncode is None:
            process.kill()


def _method(exchange: dict[str, Any]) -> str:
    """The RPC behind a request."""
    verb, path = exchange["request"]["method"], urlsplit(exchange["request"]["url"]).path
    for binding in bindings():
        pattern = re.sub(r"\{[a-z_]+\}", "[^/]+", binding.route)
        if verb == binding.verb and re.fullmatch(pattern, path.rstrip("/")):
            return binding.method
    return ""
