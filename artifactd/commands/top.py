"""``artifactd top``: what the daemon does now."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec
from twisted.python import usage

from artifactd.commands.mirror_config import listeners
from artifactd.commands.options import SettingsOptions
from artifactd.commands.table import JSON, Color, aligned, print_json
from artifactd.kit.printable import printable
from artifactd.kit.start import StartError
from artifactd.oci.sizes import shown_bytes
from artifactd.settings.settings import Settings
from artifactd.upstream.http.url import bracketed

_PATH = "/status"
_TIMEOUT = 10.0  # seconds
_INTERVAL = 1.0  # seconds
_UNIX = re.compile(r"unix:(?:address=)?(?P<path>(?:\\:|[^:])+)")
_CLEAR = "\x1b[H\x1b[J"
_Section = tuple[str, Sequence[str], Sequence[Sequence[str]]]


class _UnixConnection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(self._path)


class Top(SettingsOptions):
    """``artifactd top``: transfers, fills and upstreams, each second."""

    longdesc = (
        "Show what the running daemon does: transfers, fills and upstreams, each second until"
        " Ctrl-C.  The daemon answers clients on its own machine only."
    )
    optFlags: ClassVar = [["once", "1", "Show it once."], JSON]
    optParameters: ClassVar = [
        [
            "url",
            "u",
            None,
            "Where to ask, such as http://127.0.0.1:5000 or unix:/run/artifactd.sock (default: the"
            " first listener of the settings that this machine reaches).",
        ]
    ]

    def run(self) -> int:
        url = self["url"] or _local_url(self.load())
        before: Mapping[str, Any] | None = None
        try:
            while True:
                status = _ask(url)
                if self["json"]:
                    print_json(status)
                else:
                    _show(status, before)
                sys.stdout.flush()
                if self["once"]:
                    return 0
                before = status
                time.sleep(_INTERVAL)  # nothing else runs here, and Ctrl-C ends it
        except KeyboardInterrupt:
            return 0


def _local_url(settings: Settings) -> str:
    """
    The URL of the first listener that this machine reaches: one without TLS if there is one.

    :raises StartError: if there is none.
    """
    anywhere = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
    found = []
    for scheme, interface, port in listeners(settings):
        host = anywhere.get(interface, interface)
        if host.startswith("127.") or host in ("::1", "localhost"):
            found.append(f"{scheme}://{bracketed(host)}:{port}")
    sockets = (_UNIX.match(each) for each in settings.listen)
    found += [f"unix:{match['path']}".replace("\\:", ":") for match in sockets if match]
    found.sort(key=lambda url: url.startswith("https:"))
    if not found:
        raise StartError(
            "top: no listener is on a loopback address or a Unix socket: add one to listen, or say"
            " --url"
        )
    return found[0]


def _connection(url: str) -> HTTPConnection:
    if url.startswith("unix:"):
        return _UnixConnection(url.removeprefix("unix:"))
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        raise usage.UsageError(f"--url: expected one such as http://127.0.0.1:5000, got {url}")
    if parts.scheme == "http":
        return HTTPConnection(host, port, timeout=_TIMEOUT)
    # The certificate is for another name than that of loopback.  Nothing secret is sent.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return HTTPSConnection(host, port, timeout=_TIMEOUT, context=context)


def _ask(url: str) -> dict[str, Any]:
    """:raises StartError: if the daemon does not answer, or refuses."""
    connection = _connection(url)
    try:
        connection.request("GET", _PATH)
        response = connection.getresponse()
        body = response.read()
        document = msgspec.json.decode(body)
        if response.status != 200:
            raise StartError(f"{url}: {document['errors'][0]['message']}")
        return dict(document)
    except OSError as error:
        raise StartError(
            f"{url}: {error.strerror or error}: does the daemon run with these settings?"
        ) from None
    except (HTTPException, msgspec.MsgspecError, LookupError, TypeError):
        raise StartError(f"{url}: the answer is not artifactd's") from None
    finally:
        connection.close()


def _show(status: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    sections = [_transfers(status, before), _fills(status, before), _upstreams(status)]
    if not sys.stdout.isatty():
        for name, _, rows in sections:
            for row in rows:
                print("\t".join(map(printable, (name, *row))))
        return
    width, height = shutil.get_terminal_size()
    head = (
        f"artifactd {status['version']}, {_processes(status)}, connections:"
        f" {status['connections']}, requests: {status['requests']}"
    )
    lines = [printable(head)]
    # All upstreams are shown, and as many transfers and fills as there is room for.
    room = max(2, (height - 8 - len(sections[2][2])) // 2)
    for name, columns, rows in sections:
        if rows:
            most = len(rows) if name == "upstream" else room
            head, *body = (line[:width] for line in aligned([columns, *rows[:most]]))
            lines += ["", Color.BOLD.paint(head), *body]
    print(_CLEAR + "\n".join(lines[: height - 1]))


def _processes(status: Mapping[str, Any]) -> str:
    """A process, or how many of one daemon."""
    count = status["processes"]
    return f"process {status['pid']}" if count == 1 else f"{count} processes"


def _rate(now: int, before: int | None, seconds: float) -> str:
    """Bytes a second since the look before, or over all ``seconds`` of a transfer that is new."""
    if before is None:
        return f"{shown_bytes(round(now / seconds))}/s" if seconds > 0 else "-"
    return f"{shown_bytes(round(max(0, now - before) / _INTERVAL))}/s"


def _transfers(status: Mapping[str, Any], before: Mapping[str, Any] | None) -> _Section:
    known = {e["request"]: e["received"] + e["sent"] for e in (before or {}).get("transfers", ())}
    rows = []
    for each in status["transfers"]:
        moved = each["received"] + each["sent"]
        rate = _rate(moved, known.get(each["request"]), each["seconds"])
        bytes_ = [shown_bytes(each["received"]), shown_bytes(each["sent"])]
        seconds = f"{each['seconds']:.0f} s"
        what = [each["client"], each["user"], f"{each['method']} {each['path']}"]
        rows.append([seconds, *bytes_, rate, *what])
    return "transfer", ["TIME", "RECEIVED", "SENT", "RATE", "CLIENT", "USER", "REQUEST"], rows


def _fills(status: Mapping[str, Any], before: Mapping[str, Any] | None) -> _Section:
    def fills(of: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [fill for remote in of["remotes"] for fill in remote["fills"]]

    known = {(e["image"], e["digest"]): e["written"] for e in (fills(before) if before else ())}
    rows = []
    for each in fills(status):
        here, size = each["written"], each["size"]
        share = f"{100 * here / size:.0f} %" if size else "-"
        earlier = known.get((each["image"], each["digest"]))
        rate = "-" if earlier is None else _rate(here, earlier, 0)
        told = [shown_bytes(here), "-" if size is None else shown_bytes(size), share, rate]
        rows.append([*told, str(each["clients"]), each["image"], each["digest"]])
    return "fill", ["HERE", "SIZE", "SHARE", "RATE", "CLIENTS", "IMAGE", "DIGEST"], rows


def _upstreams(status: Mapping[str, Any]) -> _Section:
    rows = []
    for each in status["remotes"]:
        upstream = each["upstream"]
        state = "ok"
        if upstream["throttled"]:
            state = f"throttles us for {upstream['throttled']:.0f} s"
        elif each.get("stale_tags"):  # a daemon of an older release does not tell
            state = f"stale tags: {each['stale_tags']}"
        if upstream["trouble"]:
            state = f"not asked for {upstream['pause']:.0f} s: {upstream['trouble']}"
        asked = each["hits"] + each["misses"]
        left = upstream["remaining"]
        rows.append(
            [
                each["repository"],
                f"{100 * each['hits'] / asked:.0f} %" if asked else "-",
                str(each["stale"]),
                shown_bytes(each["upstream_bytes"]),
                shown_bytes(each["client_bytes"]),
                "-" if left is None else f"{100 * left:.0f} %",
                state,
            ]
        )
    return (
        "upstream",
        ["UPSTREAM", "HITS", "STALE", "FETCHED", "ANSWERED", "LIMIT LEFT", "STATE"],
        rows,
    )
