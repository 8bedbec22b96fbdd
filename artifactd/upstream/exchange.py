"""Single requests: counted, and not made while whom they would go to is down."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from artifactd.upstream.breaker import CircuitBreaker
from artifactd.upstream.errors import Unreachable
from artifactd.upstream.http import Http, HttpResponse
from artifactd.upstream.interfaces import UpstreamWatch
from artifactd.upstream.refusal import refusal
from artifactd.upstream.retries import DEFINITE


@frozen
class Exchanges:
    """Requests to a registry, or to whoever gives tokens for it."""

    http: Http
    breaker: CircuitBreaker
    watch: UpstreamWatch

    async def ask(
        self, method: str, url: str, headers: Mapping[str, str], *secrets: str
    ) -> HttpResponse:
        """
        Its answer, whatever it is as long as it is not a failure of the server's.

        :param secrets: what of ``headers`` nobody else may read.
        :raises Unreachable: if there is none; also if it is a 5xx other than 501 and 505.
        """
        trial = self.breaker.admit()
        try:
            response = await self.http.request(method, url, headers)
        except Unreachable as error:
            self.breaker.failed(trial, error.reason)
            self.watch.requested(method, None)
            raise
        except BaseException:
            self.breaker.abandoned(trial)
            raise
        self.watch.requested(method, response.status)
        if response.status < 500 or response.status in DEFINITE:
            self.breaker.answered()
            return response
        self.breaker.failed(trial, f"{response.host} answers {response.status}")
        raise await refusal(response, *secrets)
