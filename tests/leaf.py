"""A Klein app as the resource of a site, for tests of the site and not of the routes."""

from __future__ import annotations

from typing import cast
from urllib.parse import unquote_to_bytes

from klein import Klein, KleinRenderable
from klein.resource import KleinResource
from twisted.web.iweb import IRequest
from twisted.web.server import Request


class _Leaf(KleinResource):
    def render(self, request: IRequest) -> KleinRenderable:
        # The site leaves these out, since no resource of its own looks at them.
        asked = cast(Request, request)
        asked.prepath = []
        asked.postpath = [unquote_to_bytes(each) for each in asked.path[1:].split(b"/")]
        return super().render(request)


def leaf(app: Klein) -> KleinResource:
    """Return the resource that answers with the routes of ``app``."""
    return _Leaf(app)
