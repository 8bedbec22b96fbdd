"""Templates, and the scripts and styles that they name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode

from attrs import field, frozen
from jinja2 import Environment, FunctionLoader, StrictUndefined

from artifactd import __version__
from artifactd.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from artifactd.web.page.views import share

_HERE = Path(__file__).parent
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_KINDS = {
    OCI_MANIFEST: "image",
    OCI_INDEX: "index",
    DOCKER_MANIFEST: "image (Docker)",
    DOCKER_LIST: "index (Docker)",
    "application/vnd.oci.image.config.v1+json": "image",
    "application/vnd.docker.container.image.v1+json": "image (Docker)",
    "application/vnd.cncf.helm.config.v1+json": "Helm chart",
}
STATIC = "/ui/static/"

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


@frozen
class Asset:
    """
    A script, style or picture.

    :ivar path: has the hash of the content, so that browsers may keep it for ever.
    """

    path: str
    media_type: str
    content: bytes = field(repr=False)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read it.  Blocks."""
        content = file.read_bytes()
        named = f"{file.stem}.{hashlib.sha256(content).hexdigest()[:16]}{file.suffix}"
        return cls(STATIC + named, _TYPES[file.suffix], content)


class Rendering:
    """
    Makes HTML of the templates.  Making one blocks: it reads the templates, scripts and styles,
    since a later version may have replaced them when they are needed.  A template is compiled when
    it is first rendered, which takes a few hundredths of a second: a daemon that nobody looks at
    with a browser does not start later for it.

    Every value is escaped but for those that a template marks as safe, and none does.

    :ivar assets: by their paths.
    """

    def __init__(self) -> None:
        files = {each.name: Asset.read(each) for each in (_HERE / "static").iterdir()}
        self.assets = {asset.path: asset for asset in files.values()}
        templates = {
            each.name: (each.read_text("utf-8"), str(each), None)
            for each in (_HERE / "templates").iterdir()
        }
        self._environment = Environment(
            loader=FunctionLoader(templates.get),
            autoescape=True,
            auto_reload=False,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals |= {
            "static": {name: asset.path for name, asset in files.items()},
            "version": __version__,
            "url": url,
            "share": share,
        }
        self._environment.filters |= {
            "bytes": shown_bytes,
            "time": shown_time,
            "datetime": machine_time,
            "digest": short_digest,
            "kind": short_kind,
        }

    def render(self, template: str, values: Mapping[str, Any]) -> bytes:
        """Render a template; can be called in any thread.  Blocks."""
        return self._environment.get_template(template).render(values).encode("utf-8")


def url(path: str, **query: object) -> str:
    """Return a relative URL; parameters that are ``None``, empty or ``False`` are left out."""
    wanted = {name: str(each) for name, each in query.items() if each not in (None, "", False)}
    encoded = quote(path, safe="/:@")
    return f"{encoded}?{urlencode(wanted)}" if wanted else encoded


def shown_bytes(size: float | None) -> str:
    """Return a number of bytes as people read it: ``3.4 MiB``."""
    if size is None:
        return "–"
    if size < 1024:
        return f"{size:.0f} B"
    power = 0
    while size >= 1000 and power < len(_UNITS):
        size /= 1024
        power += 1
    return f"{size:.0f} {_UNITS[power - 1]}" if size >= 100 else f"{size:.1f} {_UNITS[power - 1]}"


def shown_time(at: float | None) -> str:
    """Return a time since the epoch in UTC, to the minute; a dash for ``None``."""
    if at is None:
        return "–"
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def machine_time(at: float) -> str:
    """Return a time since the epoch as the attribute ``datetime`` of HTML has it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def short_digest(digest: object) -> str:
    """Return the algorithm and the first 12 characters of a digest."""
    algorithm, _, encoded = str(digest).partition(":")
    return f"{algorithm}:{encoded[:12]}"


def short_kind(kind: str) -> str:
    """Return what people call a media type: ``image``, ``index``, or the type of an artifact."""
    return _KINDS.get(kind, kind.removeprefix("application/").removeprefix("vnd."))
