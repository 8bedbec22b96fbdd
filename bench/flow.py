#!/usr/bin/env python3
"""
How far a request goes: the modules, functions and thread turns that it passes.

usage: flow.py [--list]

Runs the daemon in this process, on a free port and a temporary data folder, and traces three flows
over a real socket:

* GET of a manifest by tag, by a client that logs in with Basic and has done so before;
* a push of a 4 KiB blob by POST, PATCH and PUT, and then of a manifest that holds it;
* a pull of a 20 MiB blob that is not cached yet, by three clients at once: one begins the fill, and
  two follow it.

Printed for each: the modules of artifactd that are entered, the distinct functions, the calls, and
the turns from the reactor to a thread and back.  ``--list`` prints the modules and functions too.
"""

from __future__ import annotations

import argparse
import hashlib
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
from typing import Any

import bcrypt
from twisted.internet import reactor as _reactor
from twisted.internet.threads import blockingCallFromThread
from twisted.python.threadpool import ThreadPool

import artifactd
from artifactd.daemon.tap import RegistryService
from artifactd.settings.settings import Settings

reactor: Any = _reactor
SOURCES = str(Path(artifactd.__file__).parent) + os.sep
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
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
        self._give_to_thread = ThreadPool.callInThreadWithCallback

    def install(self) -> None:
        """Count calls in this thread, the reactor's, and in every thread that it hands work to."""
        trace = self

        def give(
            pool: ThreadPool, done: Any, work: Callable[..., Any], *args: Any, **kw: Any
        ) -> Any:
            def traced() -> Any:
                sys.setprofile(trace._called)
                return work(*args, **kw)

            trace.turns += trace.is_on
            return trace._give_to_thread(pool, done, traced)

        ThreadPool.callInThreadWithCallback = give  # type: ignore[method-assign]
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


def settle() -> None:
    """Let the reactor turn a few times: an answer's end is logged after the client has it."""
    for _ in range(20):
        blockingCallFromThread(reactor, lambda: None)


def ask(
    connection: HTTPConnection,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    wanted: int = 200,
) -> tuple[dict[str, str], bytes]:
    """The headers and the body of the answer, whose status has to be ``wanted``."""
    connection.request(method, path, body, {**LOGIN, **(headers or {})})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == wanted, (method, path, answer.status, content[:300])
    return dict(answer.headers), content


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def manifest_of(blob: bytes) -> bytes:
    """A manifest whose config and only layer is ``blob``."""
    described = {"mediaType": "application/octet-stream", "digest": digest(blob), "size": len(blob)}
    return json.dumps(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": [described]}
    ).encode()


def push(connection: HTTPConnection, image: str, blob: bytes) -> None:
    """Push ``blob`` by POST, PATCH and PUT."""
    headers, _ = ask(connection, "POST", f"/v2/{image}/blobs/uploads/", wanted=202)
    octets = {"Content-Type": "application/octet-stream"}
    headers, _ = ask(connection, "PATCH", headers["Location"], blob, octets, 202)
    joint = "&" if "?" in headers["Location"] else "?"
    ask(connection, "PUT", f"{headers['Location']}{joint}digest={digest(blob)}", wanted=201)


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
        self.send_header("Docker-Content-Digest", digest(content))
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


def settings(folder: Path, upstream: int) -> Settings:
    """A registry with one user, who may do everything, and one upstream."""
    users = folder / "users"
    users.write_text(f"alice:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n")
    file = folder / "artifactd.toml"
    file.write_text(
        f"""
        listen = ["tcp:0:interface=127.0.0.1"]
        data = "{folder}/data"
        [auth]
        htpasswd = "{users}"
        [[access]]
        who = ["user:alice"]
        may = ["pull", "push", "delete", "administer"]
        images = ["*"]
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


def flows(port: int, trace: Trace, *, listed: bool) -> None:
    """Trace each flow, and print it."""
    print(f"{'':<44}{'modules':>8}{'functions':>11}{'calls':>8}{'turns':>7}")
    connection = HTTPConnection("127.0.0.1", port)
    manifest = manifest_of(SMALL)
    push(connection, "warm", SMALL)
    typed = {"Content-Type": MANIFEST}
    ask(connection, "PUT", "/v2/warm/manifests/1", manifest, typed, 201)
    for _ in range(5):
        ask(connection, "GET", "/v2/warm/manifests/1")

    with trace.on():
        ask(connection, "GET", "/v2/warm/manifests/1")
    trace.report("manifest GET by tag, with Basic", listed=listed)

    blob = os.urandom(4096)
    with trace.on():
        push(connection, "cold", blob)
        settle()
        blob_turns = trace.turns
        ask(connection, "PUT", "/v2/cold/manifests/1", manifest_of(blob), typed, 201)
    trace.report(f"chunked push of 4 KiB (turns of the blob: {blob_turns})", listed=listed)

    ask(connection, "GET", "/v2/up/big/manifests/1")
    clients = [HTTPConnection("127.0.0.1", port) for _ in range(3)]
    with trace.on(), ThreadPoolExecutor(len(clients)) as pool:
        path = f"/v2/up/big/blobs/{digest(BIG)}"
        pulls = [pool.submit(ask, client, "GET", path) for client in clients]
        assert all(pull.result()[1] == BIG for pull in pulls)
    trace.report("cold pull of 20 MiB with two followers", listed=listed)
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
        service = RegistryService(settings(Path(folder), upstream.server_port), reactor)

        def run() -> None:
            try:
                flows(service.ports[0].getHost().port, trace, listed=options.list)  # type: ignore[attr-defined]
            except BaseException as error:
                failed.append(error)
            finally:
                reactor.callFromThread(stop)

        def start() -> None:
            service.startService()
            trace.install()
            # The client's thread is not one of the pool's, so it is not counted.
            threading.Thread(target=run).start()

        def stop() -> None:
            service.stopService().addBoth(lambda _: reactor.stop())

        reactor.callWhenRunning(start)
        reactor.run()
        upstream.shutdown()
    if failed:
        raise failed[0]


if __name__ == "__main__":
    main()
