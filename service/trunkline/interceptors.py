"""What happens to every call: errors mapped, the call logged, the caller known, the time bounded.

A handler is wrapped once per method, not once per call. The order in `_answer` is a contract:
authenticate, authorise, then validate, then look.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from trunkline import errors, statuses, tls
from trunkline.auth import Identity, Verifier, require_scope, set_caller
from trunkline.readiness import Readiness
from trunkline.ulids import Ulids

log = logging.getLogger("trunkline.call")

CALL_SECONDS_MAX = 30.0
REQUEST_ID_KEY = "x-request-id"
UNKNOWN_FIELDS_MAX = 20
_REQUEST_ID = re.compile(r"[!-~]{1,128}", re.ASCII)
_OPEN_SERVICES = ("/grpc.health.v1.", "/grpc.reflection.v1.", "/grpc.reflection.v1alpha.")
_HEALTH = "/grpc.health.v1."


class _Undecodable:
    """Stands for a request that is not a message of its type."""


@dataclass(slots=True)
class _Call:
    """One call as the log tells of it."""

    method: str
    request_id: str
    peer: str
    client_certificate: str | None = None
    started: float = field(default_factory=time.perf_counter)
    identity: Identity | None = None
    code: str = "OK"
    reason: str | None = None

    def log(self) -> None:
        quiet = self.method.startswith(_HEALTH)
        log.log(
            logging.DEBUG if quiet else logging.INFO,
            "call",
            extra={
                "method": self.method,
                "code": self.code,
                "reason": self.reason,
                "ms": round((time.perf_counter() - self.started) * 1000, 2),
                "request_id": self.request_id,
                "account_id": self.identity.account_id if self.identity else None,
                "token_id": self.identity.token_id if self.identity else None,
                "peer": self.peer,
                "client_certificate": self.client_certificate,
            },
        )


class Boundary(grpc.aio.ServerInterceptor):
    """The one interceptor: around each handler, everything that all calls share.

    Args:
        verifier: tells who calls.
        readiness: tells whether calls can be answered.
        scopes: the scope that each method needs, by its full name (`/package.Service/Method`).
        ids: makes request ids for callers that send none in `x-request-id`.
        names_clients: whether clients have certificates, whose names are logged.
    """

    def __init__(
        self,
        verifier: Verifier,
        readiness: Readiness,
        scopes: Mapping[str, str],
        ids: Ulids,
        *,
        names_clients: bool = False,
    ) -> None:
        self._verifier = verifier
        self._readiness = readiness
        self._scopes = scopes
        self._ids = ids
        self._names_clients = names_clients
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """The wrapped handler of a method; of an unknown one, a handler that says so."""
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
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

        async def answer(request: Any, context: Any) -> Any:
            call = self._call(method, context)
            try:
                async with asyncio.timeout(CALL_SECONDS_MAX):
                    await self._admit(call, request, context)
                    return await behaviour(request, context)
            except BaseException as error:
                del request  # may be large, and what is raised keeps this frame for a while
                await self._fail(call, error, context)
            finally:
                call.log()

        return grpc.unary_unary_rpc_method_handler(
            answer, _lenient(handler.request_deserializer), handler.response_serializer
        )

    def _stream(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        behaviour: Any = handler.unary_stream or handler.stream_stream

        async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
            call = self._call(method, context)
            try:
                await self._admit(call, request, context)
                async for response in behaviour(request, context):
                    yield response
            except GeneratorExit:
                raise
            except BaseException as error:
                await self._fail(call, error, context)
            finally:
                call.log()

        deserializer = handler.request_deserializer
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                answer, deserializer, handler.response_serializer
            )
        return grpc.unary_stream_rpc_method_handler(
            answer, _lenient(deserializer), _serialised_once(handler.response_serializer)
        )

    def _unknown(self, method: str) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(_: Any, context: Any) -> Any:
            call = self._call(method, context)
            error = errors.UnimplementedError("METHOD_UNKNOWN", "the server has no such method")
            try:
                await self._fail(call, error, context)
            finally:
                call.log()

        return answer

    def _call(self, method: str, context: Any) -> _Call:
        sent = _metadata(context, REQUEST_ID_KEY)
        known = sent is not None and _REQUEST_ID.fullmatch(sent)
        client = tls.client_name(context.auth_context()) if self._names_clients else None
        return _Call(method, sent if sent and known else self._ids.new(), context.peer(), client)

    async def _admit(self, call: _Call, request: Any, context: Any) -> None:
        if not call.method.startswith(_OPEN_SERVICES):
            self._readiness.check()
            call.identity = await self._verifier.identify(_metadata(context, "authorization"))
            require_scope(call.identity, self._scopes[call.method])
            set_caller(call.identity, self._recheck(context))
        if isinstance(request, _Undecodable):
            what = "is not a message of the method's type (bad wire format or text not in UTF-8)"
            raise errors.InvalidError([errors.Violation("request", "UNDECODABLE", what)])
        if isinstance(request, Message):
            _refuse_unknown_fields(request)

    def _recheck(self, context: Any) -> Callable[[], Awaitable[None]]:
        async def recheck() -> None:
            await self._verifier.identify(_metadata(context, "authorization"))

        return recheck

    async def _fail(self, call: _Call, error: BaseException, context: Any) -> None:
        """Answer with an error. Raises always."""
        known = _known(error)
        if known is not None:
            error.__traceback__ = None  # nobody asks for it, and its frames have the request
        if isinstance(error, asyncio.CancelledError) and known is None:
            call.code = "CANCELLED"
            raise error
        if known is None:
            log.error(
                "failed",
                extra={"method": call.method, "request_id": call.request_id},
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
                (REQUEST_ID_KEY, call.request_id),
            ),
        )


def _known(error: BaseException) -> errors.TrunklineError | None:
    """What a caller is told of an error; None where it is nobody's business."""
    if isinstance(error, errors.TrunklineError):
        return error
    if isinstance(error, TimeoutError):
        return errors.DeadlineError(
            "CALL_TOO_LONG", f"the call took more than {CALL_SECONDS_MAX:.0f} s"
        )
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling() == 0:
            # Something inside was cancelled, not the call: without an answer the caller would hang.
            return errors.UnavailableError(
                "INTERRUPTED", "the work of the call was interrupted", retry_seconds=1.0
            )
    return None


def _metadata(context: Any, key: str) -> str | None:
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else None
    return None


def _serialised_once(serializer: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """Let a response pass that is bytes already, since many streams send the same one."""
    if serializer is None:
        return None
    return lambda response: response if isinstance(response, bytes) else serializer(response)


def _lenient(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Hand a request that can't be decoded on, so that it too gets an answer of ours."""
    if deserializer is None:
        return None

    def decoded(data: bytes) -> Any:
        try:
            return deserializer(data)
        except Exception:
            return _Undecodable()

    return decoded


def _refuse_unknown_fields(request: Message) -> None:
    known = type(request)()
    known.CopyFrom(request)
    known.DiscardUnknownFields()
    if known.ByteSize() == request.ByteSize():
        return
    raise errors.InvalidError(
        [
            errors.Violation(
                path, "UNKNOWN_FIELD", "is a field that this server does not know; is it older?"
            )
            for path in _unknown_paths(request, "")[:UNKNOWN_FIELDS_MAX]
        ]
    )


def _unknown_paths(message: Message, prefix: str) -> list[str]:
    unknown: Any = UnknownFieldSet(message)  # iterable, which the stubs do not know
    numbers = sorted({f.field_number for f in unknown})
    found = [f"{prefix}{number}" for number in numbers]
    for descriptor, value in message.ListFields():
        if len(found) >= UNKNOWN_FIELDS_MAX:
            break
        if descriptor.type != descriptor.TYPE_MESSAGE:
            continue
        if not descriptor.is_repeated:
            found += _unknown_paths(value, f"{prefix}{descriptor.name}.")
            continue
        for position, item in enumerate(value):
            found += _unknown_paths(item, f"{prefix}{descriptor.name}[{position}].")
            if len(found) >= UNKNOWN_FIELDS_MAX:
                break
    return found
