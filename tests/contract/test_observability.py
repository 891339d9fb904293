"""deploy/observability.md tells of every log line, metric and attribute that there is."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.http.clients import client
from tests.integration.scraping import counted, scraped
from trunkline import otel

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "deploy" / "observability.md"
SOURCES = sorted((ROOT / "service" / "trunkline").rglob("*.py"))
LEVELS = {"debug", "info", "warning", "error", "exception"}
EVERY_LINE = {"time", "level", "event", "logger"}
FROM_ERRORS = {"error_class", "frames"}
_ATTRIBUTE = re.compile(r"(rpc|http|url|db|server|error|trunkline)(\.[a-z_]+)+")
_SPANS = ("calls.py", "tracing.py", "edge.py")
_NOT_ATTRIBUTES = {"trunkline.call", "trunkline.http", "trunkline.route", "http.response.start"}


class Lines:
    """What a module logs: the levels and fields of each event."""

    def __init__(self, path: Path) -> None:
        self._tree = ast.parse(path.read_text("utf-8"))
        self._functions = [
            node
            for node in ast.walk(self._tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]

    def found(self) -> Iterator[tuple[str, set[str], set[str]]]:
        """Event, levels and fields of each place that logs."""
        for node in ast.walk(self._tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func) == "logs.event":
                _, level, event, told = node.args
                assert isinstance(event, ast.Constant), ast.unparse(node)
                yield str(event.value), set(_levels(level)), self._fields(told, node)
                continue
            if not isinstance(node.func.value, ast.Name) or node.func.value.id != "log":
                continue
            assert node.func.attr in LEVELS | {"log"}, ast.unparse(node)
            levels, event = {node.func.attr}, node.args[0]
            if node.func.attr == "log":
                levels, event = set(_levels(node.args[0])), node.args[1]
            assert isinstance(event, ast.Constant), ast.unparse(node)
            assert isinstance(event.value, str)
            fields = set()
            for keyword in node.keywords:
                if keyword.arg == "extra":
                    fields |= self._fields(keyword.value, node)
            keywords = {keyword.arg for keyword in node.keywords}
            if "exception" in levels or "exc_info" in keywords:
                fields |= FROM_ERRORS
            yield event.value, {"error" if v == "exception" else v for v in levels}, fields

    def _fields(self, value: ast.expr, place: ast.Call) -> set[str]:
        if isinstance(value, ast.Dict):
            keys = [key for key in value.keys if isinstance(key, ast.Constant)]
            assert len(keys) == len(value.keys), ast.unparse(value)
            return {str(key.value) for key in keys}
        if isinstance(value, ast.Lambda):
            return self._fields(value.body, place)
        if isinstance(value, ast.BinOp):
            return self._fields(value.left, place) | self._fields(value.right, place)
        if isinstance(value, ast.Name):
            around = [f for f in self._functions if place in ast.walk(f)][-1]
            return self._assigned(around, value.id, place)
        assert isinstance(value, ast.Call), ast.unparse(value)
        assert isinstance(value.func, ast.Attribute), ast.unparse(value)
        name = value.func.attr
        function = next(f for f in self._functions if f.name == name)
        returned = next(n for n in ast.walk(function) if isinstance(n, ast.Return))
        assert returned.value is not None
        return self._fields(returned.value, place)

    def _assigned(self, around: ast.AST, name: str, place: ast.Call) -> set[str]:
        for node in ast.walk(around):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return self._fields(node.value, place)
        raise AssertionError(f"{name} is assigned elsewhere")


def _levels(chosen: ast.expr) -> Iterator[str]:
    for node in ast.walk(chosen):
        if isinstance(node, ast.Attribute) and node.attr.isupper():
            yield node.attr.lower()


def rows(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, as cells."""
    text = DOCUMENT.read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = text.partition("\n|")[2].partition("\n\n")[0]
    lines = [line.strip().strip("|") for line in table.splitlines()]
    return [[cell.strip() for cell in line.split("|")] for line in lines[2:]]


def named(cell: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`]+)`", cell))


def test_every_log_line_is_in_the_table_and_no_other() -> None:
    levels: dict[str, set[str]] = defaultdict(set)
    fields: dict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        for event, at, told in Lines(path).found():
            levels[event] |= at
            fields[event] |= told
    table = rows("Log lines")
    assert [row[0].strip("`") for row in table] == sorted(fields)
    assert {row[0].strip("`"): set(row[1].split(", ")) for row in table} == levels
    assert {row[0].strip("`"): named(row[2]) for row in table} == fields
    assert all(row[3] for row in table)


def test_every_field_is_explained_once() -> None:
    used = {name for row in rows("Log lines") for name in named(row[2])} | EVERY_LINE
    table = rows("Fields")
    explained = [name for row in table for name in named(row[0])]
    assert sorted(explained) == sorted(used)
    assert all(row[1] for row in table)


async def test_every_metric_is_in_the_table_and_no_other(database: str) -> None:
    async with (
        counted(database, http_address="127.0.0.1:0") as (service, stub),
        client(service.http_address) as http,
    ):
        await stub.ListSipTrunks(pb.ListSipTrunksRequest())
        await http.get("/sip-trunks/trunks")
        page = await scraped(service.metrics_address)
    found = {}
    for family in page.families:
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, labels)
    told = {name: (row[1], named(row[2])) for row in rows("Metrics") for name in named(row[0])}
    assert told == found
    assert all(row[3] for row in rows("Metrics"))


def test_every_attribute_of_a_span_is_in_the_table_and_no_other() -> None:
    used = set()
    for path in SOURCES:
        if path.name in _SPANS:
            constants = (
                n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)
            )
            texts = {n.value for n in constants if isinstance(n.value, str)}
            used |= {text for text in texts if _ATTRIBUTE.fullmatch(text)} - _NOT_ATTRIBUTES
    table = rows("Traces")
    assert sorted(name for row in table for name in named(row[0])) == sorted(used)
    assert all(row[1] and row[2] for row in table)


@pytest.mark.parametrize(
    "name",
    sorted(
        {name for row in rows("Where traces go") for name in named(row[0])}
        - {"OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER_ARG"}
    ),
)
def test_every_variable_in_the_table_is_looked_at(name: str) -> None:
    assert [fault.partition(":")[0] for fault in otel.faults({name: "\N{SNOWMAN} ,"})] == [name]
