import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support import SEEN, TOKEN
from trunkline.gateway.routes import bindings

SEED = 20260
EXAMPLES_PER_OPERATION = 60
CASES_MIN = 1000
CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "left_out",
    # A trunk takes its numbers along, so that none is left to be deleted on its own.
    [None, "DeleteSipTrunk"],
    ids=["every operation", "trunks stay"],
)
async def test_generated_requests_get_only_what_the_document_allows(
    address: str, tmp_path: Path, left_out: str | None
) -> None:
    operations = [b for b in bindings() if b.method != left_out]
    har = tmp_path / "report.har"
    output, code = await _schemathesis(
        *("run", f"{address}/openapi.json", "--header", f"Authorization: Bearer {TOKEN}"),
        *("--checks", "all", "--continue-on-failure", "--seed", str(SEED)),
        *("--max-examples", str(EXAMPLES_PER_OPERATION), "--generation-database", "none"),
        *("--report", "har", "--report-har-path", str(har)),
        *(("--exclude-operation-id", left_out) if left_out else ()),
        directory=tmp_path,
    )
    print(output)  # with the seed
    assert code == 0, output
    assert re.search(rf"^ +Tested: {len(operations)}$", output, re.MULTILINE), output
    exchanges = json.loads(har.read_text())["log"]["entries"]
    SEEN.add(json.dumps([e["response"] for e in exchanges]).encode())
    assert len(exchanges) >= CASES_MIN
    assert [e for e in exchanges if e["response"]["status"] >= 500] == []
    # Or the checks would have judged refusals alone; the numbers' delete needs a trunk that stays.
    needed = {b.method for b in operations} - ({"DeletePhoneNumber"} if left_out is None else set())
    accepted = {_method(e) for e in exchanges if e["response"]["status"] < 300}
    assert needed - accepted == set()


async def _schemathesis(*arguments: str, directory: Path) -> tuple[str, int | None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
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
