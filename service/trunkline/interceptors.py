"""What happens to every call: errors mapped, the call logged, the caller known, the time bounded.

A handler is wrapped once per method, not once per call. The order in `answer` is a contract:
authenticate, authorise, then validate, then look.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc

from trunkline import errors, request_ids, statuses, tls, unknown_fields
from trunkline.admission import TURNED_AWAY, Gate
from trunkline.auth import Verifier, require_scope, set_caller, set_recheck
from trunkline.bounds import Bounds
from trunkline.calls import HEALTH, Call
from trunkline.readiness import Readiness
from trunkline.request_ids import RequestIds
from trunkline.tallies import Tally
from trunkline.tracing import CARRIED, Tracing

log = logging.getLogger("trunkline.call")

CALL_SECONDS_MAX = 30.0
DEADLINE_SECONDS_MIN = 0.005
"""A caller who waits for less than that has no use for the answer, and the database has none for
the question."""
OPEN_STREAMS_MAX = 100
REFLECTION_SECONDS_MAX = 60.0
"""How long a stream may last that anybody may open."""
UNKNOWN_METHOD = "unknown"
"""What calls of methods that there are not are counted as: their names are the callers'."""
_OPEN_SERVICES = (HEALTH, "/grpc.reflection.v1.", "/grpc.reflection.v1alpha.")


class _Unreadable:
    """Stands for a request that is no message of its method's type, or one of another version.

    Args:
        known: the request, with fields that this server does not know; None where it is no message.
    """

    __slots__ = ("_known",)

    def __init__(self, known: Any = None) -> None:
        self._known = known

    def refusal(self) -> errors.InvalidError:
        """What it is answered with."""
        if self._known is not None:
            return unknown_fields.refusal(self._known)
        what = "is not a message of the method's type (bad wire format or text not in UTF-8)"
        return errors.InvalidError([errors.Violation("request", "UNDECODABLE", what)])


class Boundary(grpc.GenericRpcHandler):
    """Around each handler, everything that all calls share.

    Services are added to it as they would be to a server, and it is the server's one handler. An
    interceptor of grpc.aio is asked for each call again, in a coroutine of its own.

    Args:
        verifier: tells who calls.
        readiness: tells whether calls can be answered.
        scopes: the scope that each method needs, by its full name (`/package.Service/Method`).
        calls: how many calls are answered at once; those to the health service are not counted.
        streams: likewise for streams.
        tally: what was answered.
        names_clients: whether clients have certificates, whose names are logged.
        tracing: makes a span of each call; None where nobody wants one.
    """

    def __init__(
        self,
        verifier: Verifier,
        readiness: Readiness,
        scopes: Mapping[str, str],
        calls: Gate,
        streams: Gate,
        tally: Tally,
        *,
        names_clients: bool = False,
        tracing: Tracing | None = None,
    ) -> None:
        self._verifier = verifier
        self._readiness = readiness
        self._scopes = scopes
        self._request_ids = RequestIds()
        self._calls = calls
        self._streams = streams
        self._bounds = Bounds()
        self._parting: set[asyncio.Timeout] = set()
        self._open_streams = Gate(OPEN_STREAMS_MAX, "reflection streams")
        self._tally = tally
        self._names_clients = names_clients
        self._tracing = tracing
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Take in a service."""
        self._handlers += handlers

    def add_registered_method_handlers(self, *_: Any) -> None:
        """What generated code tells a server besides: the same handlers, by their methods."""

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The wrapped handler of a method; of an unknown one, a handler that says so."""
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        found = (inner.service(handler_call_details) for inner in self._handlers)
        handler = next(filter(None, found), None)
        if handler is None:
            return grpc.unary_unary_rpc_method_handler(self._unknown(method))
        if handler.response_streaming:
            wrapped = self._stream(method, handler)
        else:
            wrapped = self._unary(method, handler)
        self._wrapped[method] = wrapped
        return wrapped

    def _unary(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        behaviour: Any = handler.unary_unary
        gate = None if method.startswith(HEALTH) else self._calls
        scope = self._scope(method)

        async def answer(request: Any, context: Any) -> Any:
            call = self._call(method, context)
            try:
                call.enter(gate)
                with self._bounds.within(_within(call, context.time_remaining())):
                    if scope is not None:
                        await self._admit(call, scope)
                    if isinstance(request, _Unreadable):
                        raise request.refusal()
                    return await behaviour(request, context)
            except BaseException as error:
                del request  # may be large, and what is raised keeps this frame for a while
                await self._fail(call, error, context)
            finally:
                self._end(call)

        return grpc.unary_unary_rpc_method_handler(
            answer, _lenient(handler.request_deserializer), handler.response_serializer
        )

    def _stream(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        behaviour: Any = handler.unary_stream or handler.stream_stream
        scope = self._scope(method)
        gate: Gate | None = self._open_streams if scope is None else self._streams
        seconds = REFLECTION_SECONDS_MAX if scope is None else None
        if method.startswith(HEALTH):
            gate = seconds = None

        async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
            call = self._call(method, context)
            try:
                # Places that last are for those who may have them.
                if scope is not None:
                    await self._admit(call, scope)
                    set_recheck(self._recheck(call.authorization))
                if isinstance(request, _Unreadable):
                    raise request.refusal()
                call.enter(gate)
                async with self._bounded(seconds):
                    async for response in behaviour(request, context):
                        yield response
            except GeneratorExit:  # the caller has gone while a response was on its way
                call.code = _gone(context)
                raise
            except BaseException as error:
                await self._fail(call, error, context)
            finally:
                self._end(call, endless=True)

        deserializer = handler.request_deserializer
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                answer, deserializer, handler.response_serializer
            )
        return grpc.unary_stream_rpc_method_handler(
            answer, _lenient(deserializer), _serialised_once(handler.response_serializer)
        )

    @contextlib.asynccontextmanager
    async def _bounded(self, seconds: float | None) -> AsyncIterator[None]:
        """End a stream that anybody may open after some seconds, or well when the server parts."""
        if seconds is None:
            yield
            return
        try:
            async with asyncio.timeout(seconds) as bound:
                self._parting.add(bound)
                try:
                    yield
                finally:
                    self._parting.discard(bound)
        except TimeoutError:
            if not self._readiness.leaving:
                raise

    def part(self) -> None:
        """End the streams that anybody may open: the server is about to end."""
        now = asyncio.get_running_loop().time()
        for bound in self._parting:
            bound.reschedule(now)

    def _unknown(self, method: str) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(_: Any, context: Any) -> Any:
            call = self._call(method, context, known=False)
            error = errors.UnimplementedError("METHOD_UNKNOWN", "the server has no such method")
            try:
                await self._fail(call, error, context)
            finally:
                self._end(call, known=False)

        return answer

    def _call(self, method: str, context: Any, *, known: bool = True) -> Call:
        metadata = context.invocation_metadata() or ()  # made anew each time it is asked for
        request_id = self._request_ids.of(_metadata(metadata, request_ids.KEY))
        client = tls.client_name(context.auth_context()) if self._names_clients else None
        call = Call(method, request_id, context.peer(), client)
        call.authorization = _metadata(metadata, "authorization")
        if self._tracing is not None:
            call.trace(self._tracing, _carried(metadata), known=known)
        return call

    def _end(self, call: Call, *, known: bool = True, endless: bool = False) -> None:
        """Let go of a call, log it and count it; how long a stream lasted says nothing."""
        if call.gate is not None:
            call.gate.leave()
        seconds = time.perf_counter() - call.started
        call.end(seconds, known=known)
        method = call.method if known else UNKNOWN_METHOD
        # What was turned away took no time, and would make the others look faster than they are.
        untold = endless or call.reason == TURNED_AWAY
        self._tally.add(method, call.code, None if untold else seconds)

    def _scope(self, method: str) -> str | None:
        """The scope that a method needs; None where it is open to all."""
        return None if method.startswith(_OPEN_SERVICES) else self._scopes[method]

    async def _admit(self, call: Call, scope: str) -> None:
        await self._readiness.check()
        call.identity = await self._verifier.identify(call.authorization)
        require_scope(call.identity, scope)
        set_caller(call.identity)

    def _recheck(self, authorization: str | None) -> Callable[[], Awaitable[None]]:
        async def recheck() -> None:
            await self._verifier.identify(authorization)

        return recheck

    async def _fail(self, call: Call, error: BaseException, context: Any) -> None:
        """Answer with an error. Raises always."""
        known = _known(error, call)
        if known is not None:
            error.__traceback__ = None  # nobody asks for it, and its frames have the request
        if isinstance(error, asyncio.CancelledError) and known is None:
            call.code = _gone(context)
            raise error
        if known is None:
            log.error(
                "failed",
                extra={
                    "method": call.method,
                    "request_id": call.request_id,
                    "trace_id": call.span.trace_id if call.span else None,
                    "span_id": call.span.span_id if call.span else None,
                },
                exc_info=error,
            )
            known = errors.InternalError(
                "INTERNAL",
                "the server failed; its log has the request id",
                requestId=call.request_id,
            )
        call.code, call.reason = known.code.name, known.reason
        status = statuses.status(known)
        await context.abort(
            known.code,
            status.message,
            (
                (statuses.DETAILS_KEY, status.SerializeToString()),
                (request_ids.KEY, call.request_id),
            ),
        )


def _within(call: Call, deadline: float | None) -> float:
    """The seconds that a call may take, by its caller's deadline.

    Raises:
        DeadlineError: they are too few.
    """
    if deadline is None:
        deadline = CALL_SECONDS_MAX
    if deadline < DEADLINE_SECONDS_MIN:
        raise errors.DeadlineError(
            "DEADLINE_TOO_SHORT",
            f"less than {DEADLINE_SECONDS_MIN * 1000:.0f} ms were left of the call's deadline when"
            " it came; nothing was done",
        )
    call.seconds_max = min(deadline, CALL_SECONDS_MAX)
    return call.seconds_max


def _known(error: BaseException, call: Call) -> errors.TrunklineError | None:
    """What a caller is told of an error; None where it is nobody's business."""
    if isinstance(error, errors.TrunklineError):
        return error
    if isinstance(error, TimeoutError):
        if call.seconds_max < CALL_SECONDS_MAX:
            reason, what = "DEADLINE_PASSED", "the call's deadline has passed"
        else:
            reason, what = "CALL_TOO_LONG", f"the call took more than {CALL_SECONDS_MAX:.0f} s"
        return errors.DeadlineError(
            reason, f"{what}; of a change it is not known whether it was written"
        )
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling() == 0:
            # Something inside was cancelled, not the call: without an answer the caller would hang.
            return errors.UnavailableError(
                "INTERRUPTED", "the work of the call was interrupted", retry_seconds=1.0
            )
    return None


def _metadata(metadata: Any, key: str) -> str | None:
    for name, value in metadata:
        if name == key:
            return value if isinstance(value, str) else None
    return None


def _carried(metadata: Any) -> dict[str, str]:
    """What carries a trace on."""
    return {k: v for k, v in metadata if k in CARRIED and isinstance(v, str)}


def _gone(context: Any) -> str:
    """The code of a call whose caller no longer waits."""
    return "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"


def _serialised_once(serializer: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """Let a response pass that is bytes already, since many streams send the same one."""
    if serializer is None:
        return None
    return lambda response: response if isinstance(response, bytes) else serializer(response)


def _lenient(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Hand on what is no request of its method's type, so that it too gets an answer of ours."""
    if deserializer is None:
        return None

    def decoded(data: bytes) -> Any:
        try:
            request = deserializer(data)
            return _Unreadable(deserializer(data)) if unknown_fields.discarded(request) else request
        except Exception:
            return _Unreadable()

    return decoded
