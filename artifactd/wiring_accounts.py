"""The accounts and the access rules of the settings, put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from artifactd.auth.guessing import Slowing
from artifactd.auth.identity import Groups, Identity
from artifactd.auth.logins import Accounts, PasswordCheck, PasswordLogins
from artifactd.auth.passwords import Htpasswd, Passwords, Robot, Robots
from artifactd.auth.rules import AccessRules, Limit, Rule
from artifactd.kit.deferreds import RunInThread
from artifactd.settings.settings import Settings


@frozen
class AccountsWiring:
    """
    Who may log in with a password, and who may do what.

    :ivar accounts: the kinds of accounts that are listed here.
    """

    groups: Groups
    rules: AccessRules
    accounts: Sequence[Accounts]
    _clock: IReactorTime
    slowing: Slowing

    def logins(self, *more: PasswordCheck) -> PasswordLogins:
        """:param more: what else a password may be, asked before the accounts here."""
        return PasswordLogins(
            [*more, *self.accounts],
            self._clock,
            self.slowing,
            [each.recall for each in self.accounts],
        )

    async def mark(self, identity: Identity) -> str | None:
        """As in :class:`artifactd.auth.logins.Accounts`, whichever lists ``identity``."""
        for accounts in self.accounts:
            mark = await accounts.mark(identity)
            if mark is not None:
                return mark
        return None


def wire_accounts(
    settings: Settings,
    run: RunInThread,
    clock: IReactorTime,
    now: Callable[[], float] = time.time,
) -> AccountsWiring:
    """
    Blocks: it reads the htpasswd file.

    :param run: runs in a thread; at most a quarter of ``settings.threads`` check passwords.
    :param now: seconds since the epoch.
    :raises StartError: if the file is wrong.
    """
    auth = settings.auth
    groups = Groups(auth.groups)
    parallel = max(1, settings.threads // 4)
    passwords = Passwords(run, clock, parallel=parallel, remember=auth.remember)
    robots = {
        name: Robot(str(each.secret_hash), each.expires.moment)
        for name, each in settings.robot.items()
    }
    accounts: list[Accounts] = [Robots(robots, passwords, groups, now)]
    if auth.htpasswd:
        accounts.append(Htpasswd(Path(auth.htpasswd), passwords, groups, run, clock))
    rules = AccessRules(
        [Rule(each.who, frozenset(each.may), each.images) for each in settings.access],
        {
            name: Limit(frozenset(each.may), each.images, each.expires.moment)
            for name, each in settings.robot.items()
        },
        now,
    )
    slowing = Slowing(auth.name_failures, auth.address_failures, auth.failure_period)
    return AccountsWiring(groups, rules, accounts, clock, slowing)
