"""Logging in with an upstream's credential."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from artifactd.auth.logins import Slowing
from artifactd.auth.visitors import Visitors
from artifactd.oci.errors import Unauthorized
from artifactd.oci.name import ImageName
from artifactd.presented import Presented

HOME = "192.0.2.1"


class Refusing:
    """
    An upstream to which every password is wrong, once it answers.

    :ivar asked: those that it has been shown.
    :ivar waiting: the answers to come.
    """

    def __init__(self) -> None:
        self.asked: list[Presented] = []
        self.waiting: list[Deferred[None]] = []

    def present(self, user: str, password: str) -> Presented:
        return Presented("ghcr.io", user, password.encode(), password)

    async def log_in(self, presented: Presented) -> bool:
        self.asked.append(presented)
        answer: Deferred[None] = Deferred()
        self.waiting.append(answer)
        await answer
        presented.failed()
        raise Unauthorized("wrong")

    async def prove(self, image: ImageName, presented: Presented) -> bool:
        return await self.log_in(presented)


class PresentedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.visitors = Visitors({"ghcr.io": Refusing()}, "", Clock(), Slowing())

    def test_a_colon_in_a_password_is_part_of_it(self) -> None:
        presented = self.visitors.present("ghcr.io/alice", "a:b", HOME)
        assert presented is not None
        self.assertEqual((presented.user, presented.password), ("alice", "a:b"))

    def test_what_basic_can_not_carry_is_shown_to_no_upstream(self) -> None:
        for user, password in (("a:b", "x"), ("a\nb", "x"), ("a", "x\r\ny"), ("a", "\x7f")):
            self.assertIsNone(self.visitors.present(f"ghcr.io/{user}", password, HOME))
