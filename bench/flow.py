#!/usr/bin/env python3
"""
How far a request goes: the modules, functions and thread turns that it passes.

usage: flow.py [--list]

Runs the daemon in this process, on a free port and a temporary data folder, and traces three flows
over a real socket:

* GET of a manifest by tag that has been asked for before;
* a push of a 4 KiB blob by POST, PATCH and PUT, and then of a manifest that holds it;
* a pull of a 20 MiB blob that is not cached yet, by three clients at once: one begins the fill, and
  two follow it.

Each flow is traced twice: by clients that log in with Basic, and without accounts (the default).
The look at the gauges, once a second, is no part of a flow and is left out.

Printed for each: the modules of artifactd that are entered, the distinct functions, the calls, and
the turns from the reactor to a thread and back.  ``--list`` prints the modules and functions too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, ParamSpec
from unittest.mock import patch

import bcrypt
from images import MANIFEST, described, digest_of
from twisted.internet import reactor as _reactor
from twisted.internet.defer import DeferredList
from twisted.internet.threads import blockingCallFromThread

import artifactd
from artifactd.daemon.service import RegistryService
from artifactd.kit.deferreds import Threads
from artifactd.settings.settings import Settings

reactor: Any = _reactor
_P = ParamSpec("_P")

SOURCES = str(Path(artifactd.__file__).parent) + os.sep
SMALL = os.urandom(4096)
BIG = os.urandom(1 << 20) * 20
LOGIN = {"Authorization": "Basic " + b64encode(b"alice:secret").decode()}
# Comprehensions are part of the function that they stand in.
INNER = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}


class Trace:
    """What of artifactd is called while :meth:`on` holds, in the reactor and its threads."""

    def __init__(self) -> None:
        self.calls: Counter[CodeType] = Counter()
        self.turns = 0
        self.is_on = False
        self._give_to_thread = Threads.callInThreadWithCallback

    def install(self) -> None:
        """Count calls in this thread, the reactor's, and in every thread that it hands work to."""
        trace = self

        def give(
            self: Threads,
            finished: Callable[[bool, Any], object],
            function: Callable[_P, object],
            *args: _P.args,
            **kwargs: _P.kwargs,
        ) -> None:
            def traced() -> object:
                sys.setprofile(trace._called)
                return function(*args, **kwargs)

            trace.turns += trace.is_on
            trace._give_to_thread(self, finished, traced)

        Threads.callInThreadWithCallback = give  # type: ignore[method-assign]
        sys.setprofile(self._called)

    def _called(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and self.is_on and frame.f_code.co_filename.startswith(SOURCES):
            self.calls[frame.f_code] += 1

    @contextmanager
    def on(self) -> Iterator[None]:
        """Count from here on, until the reactor has done what the flow began."""
        self.calls.clear()
        self.turns = 0
        settle()
        self.is_on = True
        yield
        settle()
        self.is_on = False

    def report(self, name: str, *, listed: bool) -> None:
        """Print what was counted."""
        codes = [code for code in self.calls if code.co_name not in INNER]
        modules = sorted({code.co_filename.removeprefix(SOURCES) for code in codes})
        calls = sum(self.calls[code] for code in codes)
        print(f"{name:<44}{len(modules):>8}{len(codes):>11}{calls:>8}{self.turns:>7}", flush=True)
        for module in modules if listed else ():
            names = sorted(
                f"{code.co_qualname} {self.calls[code]}"
                for code in codes
                if code.co_filename == SOURCES + module
            )
            print(f"    {module}: {', '.join(names)}")


class Client(HTTPConnection):
    """A client, and the headers that it logs in with."""

    def __init__(self, port: int, login: dict[str, str]) -> None:
        super().__init__("127.0.0.1", port)
        self.login = login


def settle() -> None:
    """Let the reactor turn a few times: an answer's end is logged after the client has it."""
    for _ in range(20):
        blockingCallFromThread(reactor, lambda: None)


def ask(
    connection: Client,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    wanted: int = 200,
) -> tuple[dict[str, str], bytes]:
    """The headers and the body of the answer, whose status has to be ``wanted``."""
    connection.request(method, path, body, {**connection.login, **(headers or {})})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == wanted, (method, path, answer.status, content[:300])
    return dict(answer.headers), content


def manifest_of(blob: bytes) -> bytes:
    """A manifest whose config and only layer is ``blob``."""
    entry = described("application/octet-stream", blob)
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": entry, "layers": [entry]}
    return json.dumps(document).encode()


def push(connection: Client, image: str, blob: bytes) -> None:
    """Push ``blob`` by POST, PATCH and PUT."""
    headers, _ = ask(connection, "POST", f"/v2/{image}/blobs/uploads/", wanted=202)
    octets = {"Content-Type": "application/octet-stream"}
    headers, _ = ask(connection, "PATCH", headers["Location"], blob, octets, 202)
    joint = "&" if "?" in headers["Location"] else "?"
    ask(connection, "PUT", f"{headers['Location']}{joint}digest={digest_of(blob)}", wanted=201)


class Upstream(BaseHTTPRequestHandler):
    """A registry with one image: a manifest, and :data:`BIG`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        content, kind = BIG, "application/octet-stream"
        if "/manifests/" in self.path:
            content, kind = manifest_of(BIG), MANIFEST
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Docker-Content-Digest", digest_of(content))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Serves :class:`Upstream`."""

    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """Say nothing of a connection that the daemon drops when it stops."""


def settings(folder: Path, upstream: int, *, accounts: bool) -> Settings:
    """A registry with one upstream; with one user, who may do everything, or without accounts."""
    users = folder / "users"
    users.write_text(f"alice:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n")
    file = folder / "artifactd.toml"
    rules = f"""
        [auth]
        htpasswd = "{users}"
        [[access]]
        who = ["user:alice"]
        may = ["pull", "push", "delete", "administer"]
        images = ["*"]
        """
    file.write_text(
        f"""
        listen = ["tcp:0:interface=127.0.0.1"]
        data = "{folder}/{"guarded" if accounts else "open"}"
        {rules if accounts else ""}
        [repository.local]
        kind = "local"
        [repository.up]
        kind = "remote"
        upstream = "http://127.0.0.1:{upstream}"
        [default]
        pull = ["local"]
        """
    )
    return Settings.load(file, {})


def flows(port: int, login: dict[str, str], trace: Trace, *, listed: bool) -> None:
    """Trace each flow, and print it."""
    suffix = ", Basic" if login else ""
    connection = Client(port, login)
    manifest = manifest_of(SMALL)
    push(connection, "warm", SMALL)
    typed = {"Content-Type": MANIFEST}
    ask(connection, "PUT", "/v2/warm/manifests/1", manifest, typed, 201)
    for _ in range(5):
        ask(connection, "GET", "/v2/warm/manifests/1")

    with trace.on():
        ask(connection, "GET", "/v2/warm/manifests/1")
    trace.report(f"manifest GET by tag{suffix}", listed=listed)

    blob = os.urandom(4096)
    with trace.on():
        push(connection, "cold", blob)
        settle()
        blob_turns = trace.turns
        ask(connection, "PUT", "/v2/cold/manifests/1", manifest_of(blob), typed, 201)
    trace.report(f"chunked push of 4 KiB{suffix} (blob: {blob_turns} turns)", listed=listed)

    ask(connection, "GET", "/v2/up/big/manifests/1")
    clients = [Client(port, login) for _ in range(3)]
    with trace.on(), ThreadPoolExecutor(len(clients)) as pool:
        path = f"/v2/up/big/blobs/{digest_of(BIG)}"
        pulls = [pool.submit(ask, client, "GET", path) for client in clients]
        assert all(pull.result()[1] == BIG for pull in pulls)
    trace.report(f"cold pull of 20 MiB, two followers{suffix}", listed=listed)
    for client in (connection, *clients):
        client.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print the modules and functions")
    options = parser.parse_args()
    trace = Trace()
    failed: list[BaseException] = []
    with tempfile.TemporaryDirectory(prefix="artifactd-flow-") as folder:
        upstream = Server(("127.0.0.1", 0), Upstream)
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        services = [
            (
                RegistryService(
                    settings(Path(folder), upstream.server_port, accounts=bool(login)), reactor
                ),
                login,
            )
            for login in (LOGIN, {})
        ]

        def run() -> None:
            try:
                print(f"{'':<44}{'modules':>8}{'functions':>11}{'calls':>8}{'turns':>7}")
                for service, login in services:
                    port = service.ports[0].getHost().port  # type: ignore[attr-defined]
                    flows(port, login, trace, listed=options.list)
            except BaseException as error:
                failed.append(error)
            finally:
                reactor.callFromThread(stop)

        def start() -> None:
            for service, _ in services:
                service.startService()
            trace.install()
            # The client's thread is not one of the pool's, so it is not counted.
            threading.Thread(target=run).start()

        def stop() -> None:
            ends = [service.stopService() for service, _ in services]
            DeferredList(ends).addBoth(lambda _: reactor.stop())

        reactor.callWhenRunning(start)
        with patch("artifactd.daemon.service.BEAT", 3600.0):
            reactor.run()
        upstream.shutdown()
    if failed:
        raise failed[0]


if __name__ == "__main__":
    main()
