"""Passwords compared with bcrypt hashes: in threads, few at once, and seldom twice."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Iterable
from functools import partial
from hmac import digest
from typing import Any

import bcrypt
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorTime

from artifactd.kit.deferreds import Flights, RunInThread

LONGEST = 72  # bytes: bcrypt looks at no more
COSTS = range(4, 18)  # what Apache's htpasswd makes; each takes twice as long as the one before
_USUAL_COST = 12
_REMEMBERED = 4096
_FORM = re.compile(rb"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def read_cost(hashed: bytes) -> int:
    """
    The cost of a bcrypt hash (``$2a$``, ``$2b$``, ``$2y$``).

    :raises ValueError: if it is none, or of a cost that is not one of :data:`COSTS`.
    """
    match = _FORM.fullmatch(hashed)
    if match is None or int(match[1]) not in COSTS:
        raise ValueError("not a bcrypt hash")
    return int(match[1])


def make_dummy(cost: int) -> bytes:
    """A hash that no password has, and with which comparing one takes as long as with another."""
    checksum = "".join(secrets.choice(_ALPHABET) for _ in range(31))
    return bcrypt.gensalt(cost) + checksum.encode()


def _encode(password: str) -> bytes | None:
    """What bcrypt looks at all of; ``None`` if there is no such thing."""
    try:
        secret = password.encode()
    except UnicodeEncodeError:
        return None
    return secret if 0 < len(secret) <= LONGEST and b"\0" not in secret else None


class Dummies:
    """
    Hashes with which to compare the passwords of accounts there are not, so that these take as long
    to be refused as the others: their costs are as frequent as those of the hashes there are.
    """

    def __init__(self, hashes: Iterable[bytes]) -> None:
        costs = sorted(map(read_cost, hashes))
        made = {cost: make_dummy(cost) for cost in set(costs)}
        self._hashes = [made[cost] for cost in costs] or [make_dummy(_USUAL_COST)]
        self._key = secrets.token_bytes(32)

    def choose(self, account: str) -> bytes:
        """Always the same for the same."""
        chosen = digest(self._key, account.encode(errors="surrogatepass"), "sha256")
        return self._hashes[int.from_bytes(chosen[:8]) % len(self._hashes)]


class Passwords:
    """
    Compares passwords of accounts with hashes.

    What matched is remembered for a short while, by a keyed hash over all three: so a pull
    of many layers costs one bcrypt, a hash that is changed finds nothing remembered, and what is in
    memory tells nobody the password.  Several who ask the same at the same time share one answer.

    :param run: runs in a thread.
    :param parallel: how many such threads there are at most; others wait for their turn.
    :param remember: seconds.
    """

    def __init__(
        self, run: RunInThread, clock: IReactorTime, *, parallel: int, remember: float
    ) -> None:
        self._run = run
        self._clock = clock
        self._turns = DeferredSemaphore(parallel)
        self._remember = remember
        self._key = secrets.token_bytes(32)
        self._matched: dict[bytes, float] = {}  # when, the oldest first
        self._flights: Flights[bytes, bool] = Flights()

    async def match(self, account: str, password: str, hashed: bytes) -> bool:
        """
        Whether ``password`` is that of ``hashed``.

        :param account: whose it is; one answer is for one account.  If those that don't exist
            shared their dummy's answer, they would be told apart by the time it takes.
        One that bcrypt would look at in part only (:data:`LONGEST`, a NUL), is empty, or can't be
        written in UTF-8 is that of no hash; it takes no time, and so tells nothing.
        """
        secret = _encode(password)
        if secret is None:
            return False
        key = self._digest(account, secret, hashed)
        if self._is_remembered(key):
            return True
        return await self._flights.join(key, partial(self._check, key, secret, hashed))

    def recall(self, account: str, password: str, hashed: bytes) -> bool:
        """Whether that has been found to match, and is remembered."""
        secret = _encode(password)
        return secret is not None and self._is_remembered(self._digest(account, secret, hashed))

    def _digest(self, account: str, secret: bytes, hashed: bytes) -> bytes:
        name = hashlib.sha256(account.encode(errors="surrogatepass")).digest()
        return digest(self._key, name + hashed + b"\0" + secret, "sha256")

    def _is_remembered(self, key: bytes) -> bool:
        matched = self._matched.get(key)
        return matched is not None and 0 <= self._clock.seconds() - matched < self._remember

    async def _check(self, key: bytes, secret: bytes, hashed: bytes) -> bool:
        # The turn ends with the thread: nothing cancels a flight.
        check: Callable[[], Deferred[Any]] = partial(self._run, bcrypt.checkpw, secret, hashed)
        matches: bool = await self._turns.run(check)
        if matches and self._remember:
            self._matched.pop(key, None)
            if len(self._matched) >= _REMEMBERED:
                del self._matched[next(iter(self._matched))]
            self._matched[key] = self._clock.seconds()
        return matches
