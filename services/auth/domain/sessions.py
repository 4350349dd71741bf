"""Logging in, staying logged in, logging out."""

import os
from dataclasses import replace

import structlog
from prometheus_client import Counter

from services.auth.domain.accounts import normalised_email
from services.auth.domain.model import Account, Family, Throttle, TokenPair, User
from services.auth.domain.passwords import Passwords
from services.auth.domain.store import Store
from services.auth.domain.throttles import Throttles, refuse_if_throttled
from services.auth.domain.tokens import ACCESS_TOKEN_SECONDS, AccessTokens, RefreshToken, RefreshTokens
from services.kit.errors import DomainError, UnauthenticatedError
from services.kit.ids import new_id

log = structlog.get_logger(__name__)

_LOGINS = Counter("headrace_auth_logins_total", "Logins by how they ended.", ["outcome"])
_REUSED = Counter(
    "headrace_auth_refresh_tokens_reused_total", "Sessions ended because an old token of theirs was used."
)
IDLE_DAYS = 14
ABSOLUTE_DAYS = 30
GRACE_SECONDS = 10.0
"""For so long after a rotation the token before it gives the same successor again."""


class Sessions:
    """A session is a family of refresh tokens, of which one is good at a time."""

    def __init__(
        self, store: Store, *, passwords: Passwords, access: AccessTokens, refresh: RefreshTokens, throttles: Throttles
    ) -> None:
        self._store = store
        self._passwords = passwords
        self._access = access
        self._refresh = refresh
        self._throttles = throttles

    async def login(self, *, email: str, password: str, client_address: str) -> TokenPair:
        """Check a password and start a family.

        Raises UnauthenticatedError (INVALID_CREDENTIALS), after the same work for an unknown user as for a wrong
        password; ResourceExhaustedError (TOO_MANY_ATTEMPTS, TOO_MANY_LOGINS) with the time to wait.
        """
        try:
            pair = await self._login(normalised_email(email), password, client_address)
        except DomainError as error:
            _LOGINS.labels(error.reason.lower()).inc()
            raise
        _LOGINS.labels("ok").inc()
        return pair

    async def _login(self, email: str, password: str, client_address: str) -> TokenPair:
        throttles = self._throttles.of_login(email, client_address)
        async with self._store.transaction() as transaction:
            refuse_if_throttled(await transaction.spend_tries(throttles))
            account = await transaction.account_by_email(email)
        if not await self._passwords.matches(password, account.password_hash if account else None) or account is None:
            log.info("login_refused", user_id=str(account.user.id) if account else None)
            raise _invalid_credentials()
        if self._passwords.is_outdated(account.password_hash):
            account = await self._rehash(account, password)
        return await self._start(account, throttles)

    async def _start(self, account: Account, throttles: list[Throttle]) -> TokenPair:
        user = account.user
        family = Family(new_id(), user.id, os.urandom(32), counter=1, live=True, just_rotated=False)
        async with self._store.transaction() as transaction:
            started = await transaction.insert_family(
                family_id=family.id,
                user_id=user.id,
                seed=family.seed,
                password_hash=account.password_hash,
                idle_days=IDLE_DAYS,
                days=ABSOLUTE_DAYS,
            )
            if not started:  # the password was changed since it was checked
                raise _invalid_credentials()
            await transaction.return_tries(throttles)
        log.info("login", user_id=str(user.id), family_id=str(family.id))
        return self._pair(user, family, counter=1)

    async def _rehash(self, account: Account, password: str) -> Account:
        new = await self._passwords.hash(password)
        async with self._store.transaction() as transaction:
            await transaction.replace_password(account.user.id, seen=account.password_hash, new=new)
        # Had the password changed meanwhile, starting the family finds another hash and refuses.
        return replace(account, password_hash=new)

    async def refresh(self, refresh_token: str) -> TokenPair:
        """The next pair. The same again for the token just replaced, for 10 s; an older one ends the family.

        Raises UnauthenticatedError (INVALID_REFRESH_TOKEN).
        """
        token = self._refresh.read(refresh_token)
        if token is None:
            raise _invalid_refresh_token()
        async with self._store.transaction() as transaction:
            family = await transaction.family(token.user_id, token.family_id, grace_seconds=GRACE_SECONDS)
            if family is None or not self._refresh.is_genuine(token, family):
                raise _invalid_refresh_token()
            account = await transaction.account(token.user_id)
            won = await transaction.advance_family(
                token.user_id, token.family_id, counter=token.counter, idle_days=IDLE_DAYS
            )
            if not won:  # someone was faster, or it is over: see how things stand now
                family = await transaction.family(token.user_id, token.family_id, grace_seconds=GRACE_SECONDS)
            reused = not won and family is not None and family.live and _is_reuse(token, family)
            if reused:
                await transaction.revoke_family(token.user_id, token.family_id)
        # Raised after the commit: what was revoked stays revoked.
        if reused:
            _REUSED.inc()
            log.warning("refresh_token_reused", user_id=str(token.user_id), family_id=str(token.family_id))
        if reused or account is None or family is None or not family.live or token.counter > family.counter:
            raise _invalid_refresh_token()
        return self._pair(account.user, family, counter=token.counter + 1)

    async def logout(self, refresh_token: str) -> None:
        """End the family of a token, whichever of its tokens it is. A token of no family changes nothing."""
        token = self._refresh.read(refresh_token)
        if token is None:
            return
        async with self._store.transaction() as transaction:
            family = await transaction.family(token.user_id, token.family_id, grace_seconds=GRACE_SECONDS)
            if family is not None and self._refresh.is_genuine(token, family):
                await transaction.revoke_family(token.user_id, token.family_id)

    def _pair(self, user: User, family: Family, *, counter: int) -> TokenPair:
        return TokenPair(
            access_token=self._access.sign(user, family.id),
            refresh_token=self._refresh.make(family, counter),
            expires_in_seconds=ACCESS_TOKEN_SECONDS,
        )


def _is_reuse(token: RefreshToken, family: Family) -> bool:
    """The token was replaced, and not just now, when the reply that held its successor may have been lost.

    A token ahead of its family is none: the family came back from a backup.
    """
    return token.counter < family.counter and not (token.counter == family.counter - 1 and family.just_rotated)


def _invalid_credentials() -> UnauthenticatedError:
    return UnauthenticatedError("The e-mail or the password is wrong.", reason="INVALID_CREDENTIALS")


def _invalid_refresh_token() -> UnauthenticatedError:
    return UnauthenticatedError(
        "The refresh token is not valid, has been used or has expired. Log in again.", reason="INVALID_REFRESH_TOKEN"
    )
