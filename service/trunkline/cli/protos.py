"""`trunkline protos`: what clients in any language are generated from, out of an installation."""

import argparse
import importlib.resources
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from siptrunk.v1 import sip_trunk_service_pb2
from trunkline.config import Settings

DESCRIPTORS = "descriptors.binpb"
_WITH_EVERY_COMPILER = "google/protobuf/"
# What an error's details are made of, and the service that is asked for health.
_BESIDE_THE_API = (code_pb2, error_details_pb2, status_pb2, health_pb2)
_CHECKOUT = Path(__file__).parents[3] / "protos"


def run(_: Settings, parsed: argparse.Namespace) -> int:
    """Write the .proto files and the descriptor set into a directory; print their paths."""
    directory = Path(parsed.directory)
    files = descriptors()
    for file in files.file:
        text = source(file.name)
        if text is not None:
            _write(directory / file.name, text)
    _write(directory / DESCRIPTORS, files.SerializeToString(deterministic=True))
    return 0


def descriptors() -> descriptor_pb2.FileDescriptorSet:
    """The API's files with their comments and everything that they import, imports first."""
    raw = importlib.resources.files("siptrunk").joinpath("comments.binpb").read_bytes()
    commented = {f.name: f for f in descriptor_pb2.FileDescriptorSet.FromString(raw).file}
    roots = [sip_trunk_service_pb2.DESCRIPTOR.name, *sorted(commented)]
    roots += [module.DESCRIPTOR.name for module in _BESIDE_THE_API]
    return descriptor_pb2.FileDescriptorSet(file=_in_order(roots, commented, set()))


def source(name: str) -> bytes | None:
    """The text of a .proto file; None for one that comes with every compiler or has none here."""
    if name.startswith(_WITH_EVERY_COMPILER):
        return None
    package, _, file = name.rpartition("/")
    found = importlib.resources.files(package.replace("/", ".")).joinpath(file)
    if not found.is_file():  # an editable installation has the API's where people write them
        found = _CHECKOUT / name
    return found.read_bytes() if found.is_file() else None


def _in_order(
    names: Iterable[str], commented: dict[str, descriptor_pb2.FileDescriptorProto], seen: set[str]
) -> Iterator[descriptor_pb2.FileDescriptorProto]:
    for name in names:
        if name in seen:
            continue
        seen.add(name)
        file = commented.get(name) or _compiled(name)
        yield from _in_order(file.dependency, commented, seen)
        yield file


def _compiled(name: str) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    descriptor_pool.Default().FindFileByName(name).CopyToProto(file)
    return file


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(path)
