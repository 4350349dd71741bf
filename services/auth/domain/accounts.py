"""Users: registering, reading, changing."""

import re
from uuid import UUID

import structlog

from services.auth.domain.model import Account, NewUser, Project, User
from services.auth.domain.names import name_violations, refuse_violations
from services.auth.domain.passwords import Passwords, password_violations
from services.auth.domain.store import Store
from services.auth.domain.throttles import Throttles, refuse_if_throttled
from services.kit.errors import (
    AlreadyExistsError,
    ConflictError,
    IdempotencyKeyReusedError,
    NotFoundError,
    PermissionDeniedError,
    Violation,
)
from services.kit.ids import derived_id, id_for_create, request_hash

log = structlog.get_logger(__name__)

MAX_EMAIL_CHARACTERS = 254
MAX_PROJECTS_WITH_USER = 200
# What HTML calls a valid e-mail address: ASCII, so that no two spellings look the same. Linear in the input.
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_EMAIL = re.compile(rf"[a-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(?:\.{_LABEL})*")


def normalised_email(text: str) -> str:
    """The form in which an e-mail is stored and looked up: upper case is taken for lower case in both parts.

    Cut beyond what `email_violations` allows, so that later work is bounded.
    """
    return text.strip()[: MAX_EMAIL_CHARACTERS + 1].lower()


def email_violations(email: str) -> list[Violation]:
    """What is wrong with a normalised e-mail."""
    if len(email) > MAX_EMAIL_CHARACTERS or not _EMAIL.fullmatch(email):
        return [Violation("INVALID_EMAIL", "must be an e-mail address such as ada@example.com", "email")]
    return []


class Accounts:
    """The use cases about users."""

    def __init__(self, store: Store, *, passwords: Passwords, throttles: Throttles) -> None:
        self._store = store
        self._passwords = passwords
        self._throttles = throttles

    async def register(self, *, email: str, password: str, name: str, request_id: str) -> User:
        """Make a user with a personal project; the same user again for a repetition with the same request id.

        A repetition must prove the password, so an idempotency key gives nobody another's user. The password is no
        part of the stored request hash: a fast hash of it would undo the slow one.

        Raises InvalidArgumentError (WEAK_PASSWORD when only that is wrong), AlreadyExistsError (EMAIL_TAKEN).
        """
        email, name = normalised_email(email), name.strip()
        weak = password_violations(password, email=email, path="password")
        wrong = email_violations(email) + name_violations(name, required=False)
        refuse_violations(wrong + weak, reason=None if wrong else "WEAK_PASSWORD")
        user_id = id_for_create("register", "user", request_id)
        request = request_hash(email, name) if request_id else None
        async with self._store.transaction() as transaction:
            earlier = await transaction.account(user_id) if request_id else None
            holder = None if earlier is not None else await transaction.account_by_email(email)
        if holder is not None and holder.user.id == user_id:
            earlier = holder  # made by the same request between the two looks
        if earlier is not None:
            return await self._repeated(earlier, request, password)
        if holder is not None:
            raise _email_taken()
        user = NewUser(
            id=user_id,
            email=email,
            name=name,
            password_hash=await self._passwords.hash(password),
            personal_project_id=derived_id(user_id, "personal_project", ""),
            request_hash=request,
        )
        async with self._store.transaction() as transaction:
            stored = await transaction.insert_user(user)
            earlier = await transaction.account(user_id) if stored is None and request_id else None
        if earlier is not None:  # by the same request, at the same time
            return await self._repeated(earlier, request, password)
        if stored is None:
            raise _email_taken()
        log.info("user_registered", user_id=str(user_id))
        return stored

    async def _repeated(self, account: Account, request: bytes | None, password: str) -> User:
        if account.request_hash != request or not await self._passwords.matches(password, account.password_hash):
            raise IdempotencyKeyReusedError
        return account.user

    async def get(self, user_id: UUID) -> tuple[User, list[Project]]:
        """A user and the newest 200 projects. Raises NotFoundError (USER_NOT_FOUND)."""
        async with self._store.transaction() as transaction:
            account = await transaction.account(user_id)
            projects = await transaction.projects(user_id, after=None, limit=MAX_PROJECTS_WITH_USER)
        if account is None:
            raise user_not_found(user_id)
        return account.user, projects

    async def update(
        self, user_id: UUID, *, name: str | None, new_password: str | None, current_password: str | None
    ) -> User:
        """Change what is given. A new password ends all sessions of the user.

        Raises InvalidArgumentError; PermissionDeniedError (INVALID_CREDENTIALS) when the current password is wrong;
        ResourceExhaustedError (TOO_MANY_ATTEMPTS); ConflictError when someone else changed it at the same time.
        """
        name = name.strip() if name is not None else None
        async with self._store.transaction() as transaction:
            account = await transaction.account(user_id)
        if account is None:
            raise user_not_found(user_id)
        wrong = name_violations(name, required=False) if name is not None else []
        weak: list[Violation] = []
        if new_password is not None:
            weak = password_violations(new_password, email=account.user.email, path="new_password")
            if not current_password:
                wrong.append(Violation("REQUIRED", "is needed to set a new password", "current_password"))
        refuse_violations(wrong + weak, reason=None if wrong else "WEAK_PASSWORD")
        new_hash = None
        if new_password is not None:
            await self._prove(account, current_password or "")
            new_hash = await self._passwords.hash(new_password)
        async with self._store.transaction() as transaction:
            if name is not None:
                await transaction.rename_user(user_id, name)
            if new_hash is not None:
                if not await transaction.replace_password(user_id, seen=account.password_hash, new=new_hash):
                    raise ConflictError("The password was changed by someone else at the same time. Try again.")
                await transaction.revoke_families(user_id)
            changed = await transaction.account(user_id)
        if new_hash is not None:
            log.info("password_changed", user_id=str(user_id))
        if changed is None:
            raise user_not_found(user_id)
        return changed.user

    async def _prove(self, account: Account, password: str) -> None:
        throttles = self._throttles.of_password_check(account.user.id)
        async with self._store.transaction() as transaction:
            refuse_if_throttled(await transaction.spend_tries(throttles))
        if not await self._passwords.matches(password, account.password_hash):
            raise PermissionDeniedError("The current password is wrong.", reason="INVALID_CREDENTIALS")
        async with self._store.transaction() as transaction:
            await transaction.return_tries(throttles)


def user_not_found(user_id: UUID) -> NotFoundError:
    """There is no such user."""
    return NotFoundError(f"There is no user with the id {user_id}.", reason="USER_NOT_FOUND")


def _email_taken() -> AlreadyExistsError:
    return AlreadyExistsError("There is an account with this e-mail already. Log in instead.", reason="EMAIL_TAKEN")
