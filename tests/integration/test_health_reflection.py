from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from tests.conftest import running
from tests.integration.link import linked
from tests.support import refused

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def reflected(address: str, version: str, **request: Any) -> Any:
    """The answer of a reflection service to one request without a token."""
    async with grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        call = method(iter([reflection_pb2.ServerReflectionRequest(**request)]))
        return await call.read()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_the_services_without_a_token(service: str, version: str) -> None:
    answer = await reflected(service, version, list_services="")
    names = {s.name for s in answer.list_services_response.service}
    assert names >= {
        "siptrunk.v1.SipTrunkService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize(
    "symbol", ["siptrunk.v1.SipTrunkService", "siptrunk.v1.SipTrunkService.UpdateSipTrunk"]
)
async def test_reflection_describes_the_service_and_its_methods(
    service: str, version: str, symbol: str
) -> None:
    answer = await reflected(service, version, file_containing_symbol=symbol)
    files = answer.file_descriptor_response.file_descriptor_proto
    names = {descriptor_pb2.FileDescriptorProto.FromString(f).name for f in files}
    assert "siptrunk/v1/sip_trunk_service.proto" in names


async def test_reflection_can_be_switched_off(database: str) -> None:
    async with (
        running(database, reflection=False) as service,
        grpc.aio.insecure_channel(service.grpc_address) as channel,
    ):
        for version in ("v1", "v1alpha"):
            call: Any = channel.unary_unary(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            )
            assert (await refused(call(b""))).code == "UNIMPLEMENTED"


@pytest.mark.parametrize("name", ["", "siptrunk.v1.SipTrunkService", "liveness"])
async def test_health_answers_without_a_token(service: str, name: str) -> None:
    async with grpc.aio.insecure_channel(service) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == SERVING


async def test_health_of_an_unknown_service_is_not_found(service: str) -> None:
    async with grpc.aio.insecure_channel(service) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        error = await refused(health.Check(health_pb2.HealthCheckRequest(service="nope")))
    assert (error.code, error.reason) == ("NOT_FOUND", "SERVICE_UNKNOWN")


async def test_readiness_follows_the_database_and_liveness_does_not(database: str) -> None:
    async with (
        linked(database) as link,
        running(link.url) as service,
        grpc.aio.insecure_channel(service.grpc_address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        await link.cut()
        assert (await watch.read()).status == NOT_SERVING
        alive = await health.Check(health_pb2.HealthCheckRequest(service="liveness"))
        assert alive.status == SERVING
        await link.mend()
        assert (await watch.read()).status == SERVING
        watch.cancel()
