"""Images made on the spot: a program that needs no library, and files of any size."""

from __future__ import annotations

import io
import json
import os
import platform
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest

from artifactd.oci.manifest import OCI_INDEX, OCI_MANIFEST
from artifactd.oci.names import Digest
from tests.api.served import CONFIG_TYPE, LAYER_TYPE, descriptor

_MIB = 1024 * 1024
_ADDRESS = 0x400000
_HEADERS = 64 + 56  # of the file, and of its one segment
_UNCOMPRESSED = LAYER_TYPE.removesuffix("+gzip")


def native_architecture() -> str:
    """
    The architecture of this machine, as image-spec names it.

    :raises SkipTest: if :func:`program` can't be made for it.
    """
    machine = platform.machine()
    try:
        return {"x86_64": "amd64", "aarch64": "arm64"}[machine]
    except KeyError:
        raise SkipTest(f"no program for {machine}") from None


def program(architecture: str, says: str) -> bytes:
    """
    A static ELF executable for Linux that writes the line ``says`` and exits with 0.

    :param architecture: ``amd64`` or ``arm64``.
    """
    line = says.encode() + b"\n"
    machine, code = {"amd64": _amd64, "arm64": _arm64}[architecture](len(line))
    size = _HEADERS + len(code) + len(line)
    ident = b"\x7fELF\x02\x01\x01"  # 64 bits, little-endian
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(ident, 2, machine, 1, _ADDRESS + _HEADERS, 64, 0, 0, 64, 56, 1, 64, 0, 0),
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 0x10000)
    return header + segment + code + line


def _amd64(length: int) -> tuple[int, bytes]:
    return (
        62,
        (
            b"\xb8\x01\x00\x00\x00"  # mov eax, 1 (write)
            b"\xbf\x01\x00\x00\x00"  # mov edi, 1
            b"\x48\x8d\x35\x10\x00\x00\x00"  # lea rsi, [rip + 16]: behind the code
            b"\xba" + struct.pack("<I", length) + b"\x0f\x05"  # mov edx, length; syscall
            b"\xb8\x3c\x00\x00\x00"  # mov eax, 60 (exit)
            b"\x31\xff"  # xor edi, edi
            b"\x0f\x05"  # syscall
        ),
    )


def _arm64(length: int) -> tuple[int, bytes]:
    return 183, struct.pack(
        "<8I",
        0xD2800020,  # mov x0, #1
        0x100000E1,  # adr x1, #28: behind the code
        0xD2800002 | length << 5,  # mov x2, #length
        0xD2800808,  # mov x8, #64 (write)
        0xD4000001,  # svc #0
        0xD2800000,  # mov x0, #0
        0xD2800BA8,  # mov x8, #93 (exit)
        0xD4000001,  # svc #0
    )


async def build_context(folder: Path, architecture: str, says: str, sizes: Sequence[int]) -> Path:
    """
    Make ``folder`` what an image is built from, by its Dockerfile; ``folder``, absolute.

    The image says a line when it runs.  Its layers are a file each: the program, and for each of
    ``sizes`` a file of so many bytes that don't compress.
    """
    folder.mkdir(parents=True)
    executable = folder / "hello"
    executable.write_bytes(program(architecture, says))
    executable.chmod(0o755)
    steps = ["FROM scratch", "COPY hello /"]
    for size in sizes:
        await deferToThread(_write_random, folder / f"bytes-{size}", size)
        steps.append(f"COPY bytes-{size} /")
    steps.append('CMD ["/hello"]')
    (folder / "Dockerfile").write_text("\n".join(steps) + "\n")
    return folder.absolute()


def _write_random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size, _MIB):
            file.write(os.urandom(min(_MIB, size - start)))


def image(says: str, *sizes: int) -> tuple[bytes, ...]:
    """
    The config and the layers of an image for this machine, as :func:`build_context` would have it.
    """
    layers = [layer_bytes("hello", program(native_architecture(), says))]
    layers += [layer_bytes(f"bytes-{size}", os.urandom(size)) for size in sizes]
    return config_bytes(native_architecture(), *layers), *layers


def layer_bytes(name: str, content: bytes) -> bytes:
    """A layer of one file, which may be run."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        file = tarfile.TarInfo(name)
        file.size, file.mode = len(content), 0o755
        tar.addfile(file, io.BytesIO(content))
    return packed.getvalue()


def config_bytes(architecture: str, *layers: bytes) -> bytes:
    """The config of an image that runs ``/hello``; its layers are not compressed."""
    digests = [str(Digest.of(layer)) for layer in layers]  # of what is not compressed
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": digests},
    }
    return json.dumps(document).encode()


def manifest_bytes(config: bytes, *layers: bytes) -> bytes:
    """The manifest of an image with such layers."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, CONFIG_TYPE),
        "layers": [descriptor(layer, _UNCOMPRESSED) for layer in layers],
    }
    return json.dumps(document).encode()


def packed(manifest: bytes, *blobs: bytes) -> bytes:
    """An image of the tag ``1`` as an image layout in an archive."""
    named = descriptor(manifest, OCI_MANIFEST)
    named["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [named]}
    files = {f"blobs/sha256/{Digest.of(each).encoded}": each for each in (manifest, *blobs)}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps(index).encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            file = tarfile.TarInfo(name)
            file.size = len(content)
            tar.addfile(file, io.BytesIO(content))
    return archive.getvalue()
