"""Rows of users, refresh families and login throttles."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, bindparam, delete, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert

from services.auth.domain.model import Account, Family, NewUser, Role, Throttle, User
from services.auth.storage.rows import Rows
from services.auth.storage.tables import login_throttles, memberships, projects, refresh_families, users

_PERSONAL_PROJECT_NAME = "Personal"

# A generic cell rate: `busy_until` moves on by one interval per try. How far it is ahead of now, in intervals, is how
# many tries came faster than they are earned. Rows are locked in the order of their keys, here and in `return_tries`.
_SPEND = text(
    """
    INSERT INTO auth.login_throttles AS present (key, busy_until)
    SELECT key, now() + make_interval(secs => seconds)
      FROM unnest(CAST(:keys AS bytea[]), CAST(:seconds AS float8[])) AS tried (key, seconds)
     ORDER BY key
    ON CONFLICT (key) DO UPDATE
       SET busy_until = greatest(present.busy_until, now()) + (excluded.busy_until - now())
    RETURNING key, CAST(extract(epoch FROM busy_until - now()) AS float8) AS ahead
    """
)
_LOCK_THROTTLES = text(
    "SELECT key FROM auth.login_throttles WHERE key = ANY(CAST(:keys AS bytea[])) ORDER BY key FOR UPDATE"
)
# A few at each login keep the table as small as the recent past.
_PURGE_THROTTLES = text(
    """
    DELETE FROM auth.login_throttles WHERE key IN (
        SELECT key FROM auth.login_throttles WHERE busy_until < now() - interval '1 hour'
         ORDER BY busy_until LIMIT 20 FOR UPDATE SKIP LOCKED)
    """
)


class AccountRows(Rows):
    """Users, their refresh families, and the back-off of their logins."""

    async def insert_user(self, user: NewUser) -> User | None:
        stored = (
            insert(users)
            .values(
                id=user.id,
                email=user.email,
                name=user.name,
                password_hash=user.password_hash,
                personal_project_id=user.personal_project_id,
                request_hash=user.request_hash,
            )
            .on_conflict_do_nothing()
            .returning(users)
            .cte("stored")
        )
        # One statement: foreign keys are checked at its end, and nothing is made when the user was not.
        project = insert(projects).from_select(
            ["id", "name", "personal_user_id"],
            select(stored.c.personal_project_id, literal(_PERSONAL_PROJECT_NAME), stored.c.id),
        )
        membership = insert(memberships).from_select(
            ["project_id", "user_id", "role"],
            select(stored.c.personal_project_id, stored.c.id, literal(int(Role.OWNER))),
        )
        statement = select(stored).add_cte(project.cte("project"), membership.cte("membership"))
        row = (await self._connection.execute(statement)).one_or_none()
        return _account(row).user if row else None

    async def account(self, user_id: UUID) -> Account | None:
        row = (await self._connection.execute(select(users).where(users.c.id == user_id))).one_or_none()
        return _account(row) if row else None

    async def account_by_email(self, email: str) -> Account | None:
        row = (await self._connection.execute(select(users).where(users.c.email == email))).one_or_none()
        return _account(row) if row else None

    async def rename_user(self, user_id: UUID, name: str) -> None:
        await self._connection.execute(update(users).where(users.c.id == user_id).values(name=name))

    async def replace_password(self, user_id: UUID, *, seen: str, new: str) -> bool:
        statement = update(users).where(users.c.id == user_id, users.c.password_hash == seen).values(password_hash=new)
        return (await self._connection.execute(statement)).rowcount == 1

    async def insert_family(
        self, *, family_id: UUID, user_id: UUID, seed: bytes, password_hash: str, idle_days: int, days: int
    ) -> bool:
        expired = delete(refresh_families).where(
            refresh_families.c.user_id == user_id, refresh_families.c.expires_at < func.now()
        )
        await self._connection.execute(expired)
        # FOR SHARE waits for a change of the password under way, and then looks at the hash again.
        owner = (
            select(
                literal(family_id),
                users.c.id,
                literal(seed),
                func.now() + func.make_interval(0, 0, 0, idle_days),
                func.now() + func.make_interval(0, 0, 0, days),
            )
            .where(users.c.id == user_id, users.c.password_hash == password_hash)
            .with_for_update(read=True)
        )
        columns = ["id", "user_id", "seed", "idle_expires_at", "expires_at"]
        result = await self._connection.execute(insert(refresh_families).from_select(columns, owner))
        return result.rowcount == 1

    async def family(self, user_id: UUID, family_id: UUID, *, grace_seconds: float) -> Family | None:
        rotated = refresh_families.c.rotated_at
        statement = select(
            refresh_families.c.id,
            refresh_families.c.user_id,
            refresh_families.c.seed,
            refresh_families.c.counter,
            _is_live().label("live"),
            (rotated > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, grace_seconds)).label("just_rotated"),
        ).where(_is_family(user_id, family_id))
        row = (await self._connection.execute(statement)).one_or_none()
        return Family(**row._mapping) if row else None

    async def advance_family(self, user_id: UUID, family_id: UUID, *, counter: int, idle_days: int) -> bool:
        statement = (
            update(refresh_families)
            .where(_is_family(user_id, family_id), refresh_families.c.counter == counter, _is_live())
            .values(
                counter=counter + 1,
                rotated_at=func.now(),
                idle_expires_at=func.least(
                    func.now() + func.make_interval(0, 0, 0, idle_days), refresh_families.c.expires_at
                ),
            )
        )
        return (await self._connection.execute(statement)).rowcount == 1

    async def revoke_family(self, user_id: UUID, family_id: UUID) -> bool:
        statement = (
            update(refresh_families)
            .where(_is_family(user_id, family_id), refresh_families.c.revoked_at.is_(None))
            .values(revoked_at=func.now())
        )
        return (await self._connection.execute(statement)).rowcount == 1

    async def revoke_families(self, user_id: UUID) -> None:
        statement = (
            update(refresh_families)
            .where(refresh_families.c.user_id == user_id, refresh_families.c.revoked_at.is_(None))
            .values(revoked_at=func.now())
        )
        await self._connection.execute(statement)

    async def spend_tries(self, throttles: Sequence[Throttle]) -> float:
        values = {"keys": [item.key for item in throttles], "seconds": [item.interval_seconds for item in throttles]}
        rows = (await self._connection.execute(_SPEND, values)).all()
        await self._connection.execute(_PURGE_THROTTLES)
        ahead: dict[bytes, float] = {row.key: row.ahead for row in rows}
        return max(0.0, *(ahead[item.key] - item.interval_seconds * item.burst for item in throttles))

    async def return_tries(self, throttles: Sequence[Throttle]) -> None:
        await self._connection.execute(_LOCK_THROTTLES, {"keys": [item.key for item in throttles]})
        forgiven = [item.key for item in throttles if item.forgiven_on_success]
        await self._connection.execute(delete(login_throttles).where(login_throttles.c.key.in_(forgiven)))
        returned = [
            {"of": item.key, "seconds": item.interval_seconds} for item in throttles if not item.forgiven_on_success
        ]
        if returned:
            earlier = login_throttles.c.busy_until - func.make_interval(0, 0, 0, 0, 0, 0, bindparam("seconds"))
            statement = update(login_throttles).where(login_throttles.c.key == bindparam("of"))
            await self._connection.execute(statement.values(busy_until=earlier), returned)


def _is_family(user_id: UUID, family_id: UUID) -> Any:
    return and_(refresh_families.c.user_id == user_id, refresh_families.c.id == family_id)


def _is_live() -> Any:
    return and_(
        refresh_families.c.revoked_at.is_(None),
        func.now() < refresh_families.c.idle_expires_at,
        func.now() < refresh_families.c.expires_at,
    )


def _account(row: Row[Any]) -> Account:
    return Account(
        user=User(
            id=row.id,
            email=row.email,
            name=row.name,
            created_at=row.created_at,
            personal_project_id=row.personal_project_id,
        ),
        password_hash=row.password_hash,
        request_hash=row.request_hash,
    )
