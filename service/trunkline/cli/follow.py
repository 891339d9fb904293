"""`trunkline watch` and `trunkline history`: changes as a person reads them."""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from datetime import UTC
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from siptrunk.v1 import sip_trunk_event_pb2, sip_trunk_revision_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline.cli import remote
from trunkline.config import Settings
from trunkline.fields import table

SECONDS = 30.0
PAGE = 100
RETRY_SECONDS = 1.0
RETRIES_MAX = 30
"""In a row, without a response between them."""
NUMBERS_SHOWN_MAX = 10
# CANCELLED: what comes just as a server ends may end so.
_AGAIN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
)
_NUMBERS = "phone_numbers"


def watch(settings: Settings, parsed: argparse.Namespace) -> int:
    """Print changes as they come; go on by itself where the stream is cut."""
    try:
        metadata = remote.metadata(parsed.token_file)
    except remote.UsageError as error:
        return remote.usage(error)
    request = pb.WatchSipTrunksRequest(
        resume_token=parsed.resume or "",
        initial_state=parsed.initial,
        filter=parsed.filter or "",
        all_accounts=parsed.all_accounts,
    )
    # Not a blocking stub: Ctrl-C may find it where it holds a lock that closing needs.
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        failure = asyncio.run(_follow(settings, request, metadata, as_json=parsed.json))
        return remote.failed(failure)
    if request.resume_token:
        print(f"go on with: --resume {request.resume_token}", file=sys.stderr)
    return 0


async def _follow(
    settings: Settings,
    request: pb.WatchSipTrunksRequest,
    metadata: list[tuple[str, str]],
    *,
    as_json: bool,
) -> grpc.aio.AioRpcError:
    """Print until the stream can't go on, and keep in the request where it is; why it can't."""
    _heed_one_interrupt()
    retries = 0
    while True:
        try:
            async with remote.following(settings) as stub:
                async for response in stub.WatchSipTrunks(request, metadata=metadata):
                    retries = 0
                    _tell(response, as_json=as_json)
                    if response.resume_token:
                        request.resume_token, request.initial_state = response.resume_token, False
        except grpc.aio.AioRpcError as error:
            again = _may_go_on(error) and bool(request.resume_token) and retries < RETRIES_MAX
            if not again:
                return error
        retries += 1
        await asyncio.sleep(RETRY_SECONDS)


def _heed_one_interrupt() -> None:
    """End this task at the first SIGINT, and let no other into the closing of the channel.

    `timeout` and terminals' wrappers send two at once: one to the process, one to its group.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def interrupted() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        task.cancel()

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGINT, interrupted)


def history(settings: Settings, parsed: argparse.Namespace) -> int:
    """Print the revisions of a trunk, the newest first, each with what it changed."""
    try:
        metadata = remote.metadata(parsed.token_file)
    except remote.UsageError as error:
        return remote.usage(error)
    if parsed.limit < 1:
        return remote.usage("--limit is at least 1")
    request = pb.ListSipTrunkRevisionsRequest(
        trunk_id=parsed.trunk, page_size=min(PAGE, parsed.limit)
    )
    left = parsed.limit
    try:
        with remote.connected(settings) as stub:
            while left:
                page = stub.ListSipTrunkRevisions(request, metadata=metadata, timeout=SECONDS)
                for revision in page.sip_trunk_revisions[:left]:
                    print(_json(revision) if parsed.json else "\n".join(_revision(revision)))
                    left -= 1
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break
    except grpc.RpcError as error:
        return remote.failed(error)
    return 0


def _may_go_on(error: grpc.aio.AioRpcError) -> bool:
    if error.code() not in _AGAIN:
        return False
    info = error_details_pb2.ErrorInfo()
    reasons = [info.reason for detail in remote.details(error) if detail.Unpack(info)]
    return "TOO_MANY_WATCHERS" not in reasons


def _tell(response: pb.WatchSipTrunksResponse, *, as_json: bool) -> None:
    for event in response.events:
        print(_json(event) if as_json else _event(event), flush=True)
    if response.initial_state_complete and not as_json:
        print("-- that is the initial state; changes follow", flush=True)


def _json(message: Message) -> str:
    found = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(found, ensure_ascii=False)


def _event(event: sip_trunk_event_pb2.SipTrunkEvent) -> str:
    kind = sip_trunk_event_pb2.SipTrunkEvent.Kind.Name(event.kind).lower()
    trunk = event.sip_trunk
    parts = [_time(event.changed_at), kind.ljust(7), trunk.account_id, trunk.id]
    parts += [f"revision={event.revision}", f"name={_shown(trunk.name)}"]
    for name in event.changed_fields:
        if name == _NUMBERS:
            continue
        parts.append(f"{name}={_value(trunk, name)}" if name in _plain(trunk) else f"{name}=…")
    parts += _numbers(event.phone_numbers)
    return "  ".join(parts)


def _revision(revision: sip_trunk_revision_pb2.SipTrunkRevision) -> Iterator[str]:
    head = [f"revision {revision.revision}", _time(revision.changed_at)]
    head.append(revision.method or "(before there was history)")
    if revision.token_id:
        head.append(f"token={revision.token_id}")
    if revision.request_id:
        head.append(f"request_id={revision.request_id}")
    yield "  ".join(head)
    if revision.deleted:
        yield f"  deleted: {_shown(revision.sip_trunk.name)}"
    before, after = revision.before, revision.sip_trunk
    for name in revision.changed_fields:
        if name == _NUMBERS:
            continue
        if name not in _plain(after):
            yield f"  {name}: (changed)"
        elif table(after.DESCRIPTOR)[name].repeated:
            yield from _list(name, getattr(before, name), getattr(after, name))
        else:
            known = "?" if not revision.HasField("before") else _value(before, name)
            yield f"  {name}: {known} -> {_value(after, name)}"
    for text in _numbers(revision.phone_numbers):
        yield f"  phone_numbers: {text}"


def _list(name: str, before: Any, after: Any) -> Iterator[str]:
    old, new = ([_item(item) for item in items] for items in (before, after))
    yield from (f"  {name}: - {item}" for item in old if item not in new)
    yield from (f"  {name}: + {item}" for item in new if item not in old)
    if sorted(old) == sorted(new):
        yield f"  {name}: other order: {', '.join(new)}"


def _plain(trunk: Message) -> set[str]:
    """The fields whose values may be shown."""
    return {f.name for f in table(trunk.DESCRIPTOR).values() if not f.secret}


def _value(trunk: Any, name: str) -> str:
    field, value = table(trunk.DESCRIPTOR)[name], getattr(trunk, name)
    if field.repeated:
        return "[" + ", ".join(_item(item) for item in value) + "]"
    if not trunk.HasField(name):
        return "(none)"
    return field.enum_names.get(value, "?") if field.kind == "enum" else _shown(value)


def _item(item: Any) -> str:
    fields = [f for f in table(item.DESCRIPTOR).values() if not f.ignored and item.HasField(f.name)]
    first, *rest = [getattr(item, f.name) for f in fields]
    return str(first) + "".join(
        f" {f.name}={value}" for f, value in zip(fields[1:], rest, strict=True)
    )


def _numbers(changes: sip_trunk_revision_pb2.PhoneNumberChanges) -> list[str]:
    found = []
    for sign, numbers in (("+", changes.added), ("-", changes.removed)):
        found += [f"{sign} {number.phone_number}" for number in numbers[:NUMBERS_SHOWN_MAX]]
        if len(numbers) > NUMBERS_SHOWN_MAX:
            found.append(f"{sign} {len(numbers) - NUMBERS_SHOWN_MAX} more numbers")
    found += [f"{n.phone_number} renamed {_shown(n.name)}" for n in changes.renamed]
    return found


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _time(at: Any) -> str:
    return str(at.ToDatetime(UTC).isoformat(timespec="milliseconds")).replace("+00:00", "Z")
