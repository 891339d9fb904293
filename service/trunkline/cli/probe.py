"""`trunkline probe`: asks a server for its health, for where nothing else can ask."""

import argparse

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from trunkline.cli import remote
from trunkline.config import Settings, SettingsError

SECONDS = 5.0
_EVERYWHERE = ("0.0.0.0", "[::]")  # noqa: S104 - what a server on this machine is reached by
_HERE = ("127.0.0.1", "[::1]")


def run(settings: Settings, parsed: argparse.Namespace) -> int:
    """Print what grpc.health.v1 says; 0 if that is SERVING, else 1."""
    try:
        answer = _asked(settings, parsed.address or _own(settings), parsed.service, parsed.timeout)
    except grpc.RpcError as error:
        return remote.failed(error)
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else remote.FAILED


def _own(settings: Settings) -> str:
    """Where a server with these settings is reached from its own machine."""
    if settings.grpc_socket:  # plaintext always, so no certificate has to fit
        return f"unix:{settings.grpc_socket}"
    if settings.tls_cert and not settings.tls_ca and not settings.grpc_address.startswith("unix:"):
        raise SettingsError(
            "TRUNKLINE_TLS_CA: is needed to ask a port with TLS; or set TRUNKLINE_GRPC_SOCKET"
        )
    host, _, port = settings.grpc_address.rpartition(":")
    if host in _EVERYWHERE:
        return f"{_HERE[_EVERYWHERE.index(host)]}:{port}"
    return settings.grpc_address


def _asked(
    settings: Settings, address: str, service: str, seconds: float
) -> health_pb2.HealthCheckResponse:
    with remote.channel(settings, address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=seconds)
        assert isinstance(answer, health_pb2.HealthCheckResponse)
        return answer
