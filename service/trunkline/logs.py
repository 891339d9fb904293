"""Log lines: one event each, with fields; JSON or `key=value`. Never a body, never a secret."""

import asyncio
import contextlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO, TypeAlias

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("json", "text")
Fields: TypeAlias = Callable[[], Mapping[str, Any]]
_Event: TypeAlias = tuple[float, int, str, Fields]
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_NAMES = {getattr(logging, name.upper()): name for name in LEVELS}
_FRAMES_MAX = 30
LINES_HELD_MAX = 1000
HELD_SECONDS_MAX = 0.02
"""How many lines may wait to be made and written together, and for how long."""
_encode = json.JSONEncoder(default=str).encode


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send the process's log to standard error.

    What no line has is not collected for it: where in the code, in which thread and process.
    """
    logging._srcfile = None  # noqa: SLF001 - what logging's documentation says to do
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = _Handler(stream or sys.stderr, as_json=form == "json")
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # other people's libraries: what goes wrong
    logging.getLogger("trunkline").setLevel(level.upper())
    logging.captureWarnings(capture=True)


def event(logger: logging.Logger, level: int, name: str, fields: Fields) -> None:
    """Log one event, as `logger.log` does, with its fields, which are asked for a moment later.

    Where nobody but this module listens, no record is made: it costs more than the line.
    """
    if not logger.isEnabledFor(level):
        return
    handlers = logging.getLogger().handlers
    if len(handlers) == 1 and isinstance(handlers[0], _Handler):
        handlers[0].tell(level, name, fields)
    else:
        logger.log(level, name, extra=fields())


def frames(error: BaseException) -> list[str]:
    """Where an error came from, outermost first, without the values that it may carry."""
    stack = traceback.extract_tb(error.__traceback__)[-_FRAMES_MAX:]
    return [f"{f.filename}:{f.lineno} {f.name}" for f in stack]


class _Handler(logging.Handler):
    """Makes and writes the lines of HELD_SECONDS_MAX together, and what goes wrong at once.

    A write lets other threads run before it comes back, which costs more than the line itself; and
    a line between calls is made in five times the time of one among lines.
    """

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        super().__init__()
        self.setFormatter(_Formatter(as_json=as_json))
        self._shown = _encode if as_json else _as_text
        self._stream = stream
        self._held: list[_Event | str] = []
        self._second, self._written = -1, ""

    def tell(self, level: int, name: str, fields: Fields) -> None:
        """Hold an event of ours."""
        with self.lock or contextlib.nullcontext():
            self._hold((time.time(), level, name, fields), level)

    def _made(self, at: float, level: int, name: str, fields: Fields) -> str:
        try:
            return self._line(at, level, name, fields)
        except Exception as error:  # of this line, not of those beside it
            failed = {"error_class": type(error).__name__, "frames": frames(error)}
            return self._line(at, level, name, lambda: failed)

    def _line(self, at: float, level: int, name: str, fields: Fields) -> str:
        line = {"time": self._clock(at), "level": _NAMES[level], "event": name}
        line.update({k: v for k, v in fields().items() if v is not None})
        return self._shown(line)

    def _clock(self, at: float) -> str:
        """As `_time` has it; the second in it is written anew when it is another one."""
        second = int(at)
        if second != self._second:
            self._second = second
            self._written = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._written}.{int((at - second) * 1000):03}+00:00"

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._hold(line, record.levelno)

    def _hold(self, line: _Event | str, level: int) -> None:
        self._held.append(line)
        if level > logging.INFO or len(self._held) >= LINES_HELD_MAX:
            self.flush()
        elif len(self._held) == 1:
            try:
                asyncio.get_running_loop().call_later(HELD_SECONDS_MAX, self.flush)
            except RuntimeError:  # no loop in this thread
                self.flush()

    def flush(self) -> None:
        """Write what is held."""
        with self.lock or contextlib.nullcontext():
            held, self._held = self._held, []
            if not held:
                return
            lines = [one if isinstance(one, str) else self._made(*one) for one in held]
            with contextlib.suppress(OSError, ValueError):  # there is nowhere to say it
                self._stream.write("\n".join([*lines, ""]))
                self._stream.flush()


class _Formatter(logging.Formatter):
    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if not record.name.startswith("trunkline"):
            fields["logger"] = record.name
        fields |= {k: v for k, v in record.__dict__.items() if v is not None and k not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            fields["error_class"] = type(record.exc_info[1]).__name__
            fields["frames"] = frames(record.exc_info[1])
        return _encode(fields) if self._as_json else _as_text(fields)


def _as_text(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={_shown(v)}" for k, v in fields.items())


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _shown(value: Any) -> str:
    text = str(value)
    plain = text and text.isprintable() and not set(text) & set(' "=')
    return text if plain else json.dumps(text)
