"""What is wrong with HTTP itself, and what may come in how many pieces."""

import asyncio

import pytest

from tests.http.clients import SECONDS_MAX, Answer, Connection
from tests.http.trunks import TRUNKS
from tests.support import TOKEN
from trunkline.gateway.edge import HEADER_BYTES_MAX

PIECE = 1000


async def ended(connection: Connection) -> bytes:
    """What comes yet, until the gateway closes the connection."""
    async with asyncio.timeout(SECONDS_MAX):
        return await connection.reader.read()


async def written(connection: Connection, *pieces: bytes) -> None:
    for piece in pieces:
        connection.writer.write(piece)
        await connection.writer.drain()
        await asyncio.sleep(0.001)


def reason(answer: Answer) -> str:
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"] == answer.status
    return str(answer.json()["reason"])


@pytest.mark.parametrize(
    "sent",
    [
        b"BREW /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nBad header: y\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_told_so(address: str, sent: bytes) -> None:
    async with Connection(address.removeprefix("http://")) as connection:
        await written(connection, sent)
        answer = await connection.answer()
        assert (answer.status, reason(answer)) == (400, "NOT_HTTP")
        assert await ended(connection) == b""


@pytest.mark.parametrize(
    "first",
    [
        b"GET /",
        b"GET /healthz HTTP/1.1\r\nX-Long: ",
        b"GET /healthz HTTP/1.1\r\n",
    ],
)
async def test_a_head_without_an_end_is_refused_at_its_bound(address: str, first: bytes) -> None:
    piece = b"X: " + b"x" * (PIECE - 5) + b"\r\n" if first.endswith(b"\n") else b"x" * PIECE
    async with Connection(address.removeprefix("http://")) as connection:
        await written(connection, first, *[piece] * (HEADER_BYTES_MAX // PIECE - 1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await connection.reader.read(1)
        await written(connection, piece, piece)
        answer = await connection.answer()
        assert (answer.status, reason(answer)) == (431, "HEADER_TOO_LARGE")
        assert await ended(connection) == b""


async def test_what_follows_a_body_is_bounded_and_no_header(address: str) -> None:
    head = (
        f"PATCH {TRUNKS}/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    body, token = b"2\r\n{}\r\n0\r\n", f"Authorization: Bearer {TOKEN}\r\n".encode()
    async with Connection(address.removeprefix("http://")) as connection:
        await written(connection, head, body + token + b"\r\n")
        answer = await connection.answer()
        assert (answer.status, answer.json()["reason"]) == (401, "TOKEN_MISSING")
        await written(connection, head, body, *[token] * (HEADER_BYTES_MAX // len(token) + 2))
        assert (await connection.answer()).status == 431
        assert await ended(connection) == b""


async def test_many_small_pieces_of_a_body_are_one_body(address: str) -> None:
    text = b'{"name": "' + b"x" * (2 * HEADER_BYTES_MAX) + b'"}'
    head = (
        f"POST {TRUNKS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
    chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
    async with Connection(address.removeprefix("http://")) as connection:
        await written(connection, head, *chunks, b"0\r\n\r\n")
        answer = await connection.answer()
        assert answer.status == 400
        assert "name" in {v["field"] for v in answer.json()["violations"]}
        assert (await connection.ask("GET", "/healthz")).status == 200


async def test_an_answer_comes_in_one_piece(address: str) -> None:
    async with Connection(address.removeprefix("http://")) as connection:
        for _ in range(5):
            await connection.send("GET", "/healthz")
            async with asyncio.timeout(SECONDS_MAX):
                assert (await connection.reader.read(1 << 16)).endswith(b'{"status":"alive"}')


async def test_requests_that_come_together_are_answered_in_turn(address: str) -> None:
    async with Connection(address.removeprefix("http://")) as connection:
        for path in ("/healthz", "/nowhere", TRUNKS, "/readyz"):
            await connection.send("GET", path)
        assert [(await connection.answer()).status for _ in range(2)] == [200, 404]
        head = await connection.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        await connection.reader.readuntil(b"0\r\n\r\n")  # a list without a page is a stream
        assert (await connection.answer()).json() == {"status": "ready"}
