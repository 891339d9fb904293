import asyncio
import io
import logging
import re
import threading
from collections.abc import Iterator

import pytest

from trunkline import logs

log = logging.getLogger("trunkline.test")
SECONDS_MAX = 60


class Writes(io.StringIO):
    """A stream that keeps what each write had."""

    def __init__(self) -> None:
        super().__init__()
        self.each: list[str] = []

    def write(self, text: str) -> int:
        self.each.append(text)
        return len(text)

    def events(self) -> list[list[str]]:
        """The events of each write."""
        return [[line.split()[2] for line in text.splitlines()] for text in self.each]


class Broken(io.StringIO):
    """A stream whose other end has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture
def root() -> Iterator[None]:
    """Puts the process's log back as it was."""
    kept, root_log = logging.getLogger("trunkline"), logging.getLogger()
    before = root_log.handlers[:], root_log.level, kept.level
    yield
    root_log.handlers[:] = before[0]
    root_log.setLevel(before[1])
    kept.setLevel(before[2])


async def written(stream: Writes, count: int) -> None:
    """Wait for so many writes."""
    async with asyncio.timeout(SECONDS_MAX):
        while len(stream.each) < count:  # noqa: ASYNC110 - a list
            await asyncio.sleep(logs.HELD_SECONDS_MAX / 4)


@pytest.mark.usefixtures("root")
async def test_lines_of_a_while_are_one_write() -> None:
    stream = Writes()
    logs.configure("info", "text", stream)
    log.info("a")
    await asyncio.sleep(0)
    log.info("b")
    assert stream.each == []
    await written(stream, 1)
    log.info("c")
    await written(stream, 2)
    assert stream.events() == [["event=a", "event=b"], ["event=c"]]
    assert all(text.endswith("\n") for text in stream.each)


@pytest.mark.usefixtures("root")
def test_what_is_held_when_the_loop_ends_is_written_at_the_end() -> None:
    stream = Writes()
    logs.configure("info", "text", stream)

    async def work() -> None:
        log.info("a")

    asyncio.run(work())
    assert stream.each == []
    logging.shutdown()
    assert stream.events() == [["event=a"]]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
async def test_what_goes_wrong_is_written_at_once_after_what_came_before(level: int) -> None:
    stream = Writes()
    logs.configure("info", "text", stream)
    log.info("a")
    log.log(level, "b")
    assert stream.events() == [["event=a", "event=b"]]
    await asyncio.sleep(2 * logs.HELD_SECONDS_MAX)
    assert len(stream.each) == 1


@pytest.mark.usefixtures("root")
async def test_no_more_lines_are_held_than_may_be() -> None:
    stream = Writes()
    logs.configure("info", "text", stream)
    for _ in range(logs.LINES_HELD_MAX):
        log.info("a")
    assert len(stream.events()[0]) == logs.LINES_HELD_MAX


@pytest.mark.usefixtures("root")
def test_line_without_a_loop_is_written_at_once() -> None:
    stream = Writes()
    logs.configure("info", "text", stream)
    log.info("a")
    assert stream.events() == [["event=a"]]


@pytest.mark.usefixtures("root")
async def test_lines_of_another_thread_are_written() -> None:
    stream = Writes()
    logs.configure("info", "text", stream)
    log.info("a")
    thread = threading.Thread(target=log.info, args=("b",))
    thread.start()
    thread.join()
    await written(stream, 1)
    await asyncio.sleep(2 * logs.HELD_SECONDS_MAX)
    assert [event for write in stream.events() for event in write] == ["event=a", "event=b"]


@pytest.mark.usefixtures("root")
async def test_stream_that_is_gone_ends_nothing() -> None:
    logs.configure("info", "text", Broken())
    log.info("a")
    await asyncio.sleep(2 * logs.HELD_SECONDS_MAX)
    log.warning("b")


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("form", logs.FORMATS)
@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING])
def test_event_is_written_as_the_same_record_is(form: str, level: int) -> None:
    stream = Writes()
    logs.configure("info", form, stream)
    fields = {"method": 'a "b"', "status": 404, "ms": 0.5, "reason": None, "peer": "unix:"}
    log.log(level, "call", extra=fields)
    logs.event(log, level, "call", lambda: fields)
    lines = [re.sub(r"[0-9-]+T[0-9:.]+\+00:00", "TIME", text) for text in stream.each]
    assert lines == ([] if level == logging.DEBUG else [lines[0]] * 2)
    assert all("TIME" in line for line in lines)


@pytest.mark.usefixtures("root")
def test_event_reaches_those_who_listen_beside(caplog: pytest.LogCaptureFixture) -> None:
    logs.configure("info", "text", Writes())
    logging.getLogger().addHandler(caplog.handler)
    logs.event(log, logging.INFO, "call", lambda: {"status": 200})
    assert [(r.message, r.__dict__["status"]) for r in caplog.records] == [("call", 200)]


@pytest.mark.usefixtures("root")
async def test_event_that_can_not_be_told_takes_no_other_with_it() -> None:
    stream = Writes()
    logs.configure("info", "text", stream)

    def fields() -> dict[str, object]:
        raise KeyError("a value of theirs")

    log.info("before")
    logs.event(log, logging.INFO, "call", fields)
    log.info("after")
    await written(stream, 1)
    assert stream.events() == [["event=before", "event=call", "event=after"]]
    assert "error_class=KeyError" in stream.each[0]
    assert "theirs" not in stream.each[0]
