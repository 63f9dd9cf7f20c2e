"""Every error that Switchyard raises to a caller, in one tree.

    SwitchyardError
    ├── SettingsError               a setting is wrong: names the variable and the fix
    ├── JobNotFound                 no job has this id
    ├── JobExists       (*)         another job has this id already
    ├── IdempotencyConflict (*)     this key belongs to another payload
    ├── KeyInUse                    an edit would give a job the key of another active one
    ├── PayloadError    (*)         the arguments cannot be stored or do not fit the actor
    ├── OptionError     (*)         an option of an actor or a message has a value that cannot work
    ├── LedgerUnavailable (*)       Postgres did not answer; carries the message to send again
    │   ├── LedgerNotMigrated       Postgres answered, the tables are missing or old
    │   └── LedgerForbidden         Postgres answered, its user lacks a right: names the GRANT
    ├── BatchNotFound               no batch has this id
    ├── BatchClosed                 the batch takes no more jobs
    ├── LeaseLost                   the job belongs to another worker now: stop, write nothing
    ├── EnlistRefused               this connection cannot carry a send: names the fix
    ├── CronError                   a cron expression or its time zone cannot be read (a ValueError too)
    ├── ScheduleNotFound            no schedule has this name
    ├── ScheduleExists              another schedule has this name already
    └── ScheduleError               what a schedule is told to be or to do cannot work

    Permanent                       raised by an actor: no retry, straight to the dead letters
    └── SecretUnreadable            a secret argument cannot be decrypted
    Snooze                          raised by an actor: run this job again later, spending no attempt
    Cancelled                       raised in an actor whose job is to stop, or by one that wants to end as cancelled

Those marked (*) are Dramatiq ``MiddlewareError`` too. Dramatiq logs and swallows every other exception of a
``before_enqueue`` hook and then *publishes the message*, so an error that must stop a ``send()`` has to be one.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import Interrupt, MiddlewareError

if TYPE_CHECKING:
    from dramatiq import Message


class SwitchyardError(Exception):
    """Root of the errors that Switchyard raises."""


class SettingsError(SwitchyardError):
    """A setting has a value that cannot work; the text is one line that names the variable and the fix."""

    def __init__(self, variable: str, reason: str) -> None:
        super().__init__(f"{variable}: {reason}")
        self.variable = variable
        self.reason = reason


class JobNotFound(SwitchyardError):
    """No job in the ledger has this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job has the id {job_id!r}")
        self.job_id = job_id


class JobExists(SwitchyardError, MiddlewareError):
    """A different job, or one that has ended, has this id already; nothing was stored."""

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(f"job {job_id} exists already: {reason}; nothing was stored, send with a new message id")
        self.job_id = job_id


class IdempotencyConflict(SwitchyardError, MiddlewareError):
    """An idempotency key was used before with another payload; nothing was stored.

    ``existing_id`` is the job that the key stands for; the fingerprints are those of the two payloads, which tell no more than that they
    differ.
    """

    def __init__(self, key: str, actor: str, existing_id: str, *, fingerprint: str, existing_fingerprint: str) -> None:
        super().__init__(
            f"actor {actor!r}, idempotency key {key!r}: it stands for job {existing_id}, which was sent with another payload (fingerprint "
            f"{existing_fingerprint[:12]}, here {fingerprint[:12]}); nothing was stored, send with a key of its own, or the same payload"
        )
        self.key = key
        self.actor = actor
        self.existing_id = existing_id
        self.fingerprint = fingerprint
        self.existing_fingerprint = existing_fingerprint


class KeyInUse(SwitchyardError):
    """With its new arguments a job would be the same as another one (``unique_key``), which ``holder`` names; nothing was changed."""

    def __init__(self, job_id: str, actor: str, key: str, holder: str) -> None:
        super().__init__(
            f"job {job_id} cannot have these arguments: actor {actor!r} makes the key {key!r} of them, which job {holder} has; "
            "nothing was changed, edit or cancel that one"
        )
        self.job_id = job_id
        self.actor = actor
        self.key = key
        self.holder = holder


class BatchNotFound(SwitchyardError):
    """No batch (group) in the ledger has this id."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"no batch has the id {batch_id!r}")
        self.batch_id = batch_id


class BatchClosed(SwitchyardError):
    """The batch takes no more jobs, because all of its own have ended, or it has not begun. Nothing was stored."""

    def __init__(self, batch_id: str, reason: str) -> None:
        super().__init__(f"batch {batch_id} takes no jobs, {reason}; add them from within one of its own, or run a new group")
        self.batch_id = batch_id
        self.reason = reason


class PayloadError(SwitchyardError, MiddlewareError):
    """The arguments of a ``send()`` cannot be stored, or do not fit the actor; nothing was stored."""

    def __init__(self, actor: str, field: str, reason: str) -> None:
        super().__init__(f"actor {actor!r}, field {field!r}: {reason}")
        self.actor = actor
        self.field = field
        self.reason = reason


class OptionError(SwitchyardError, MiddlewareError):
    """An option of an actor or of a message is unknown or has a value that cannot work; nothing was stored."""

    def __init__(self, actor: str, option: str, reason: str) -> None:
        super().__init__(f"actor {actor!r}, option {option!r}: {reason}")
        self.actor = actor
        self.option = option
        self.reason = reason


class LedgerUnavailable(SwitchyardError, MiddlewareError):
    """Postgres did not answer in time.

    After a ``send()`` it is unknown whether the row was committed: ``message`` holds what was being sent, and sending that
    same message again (``broker.enqueue(error.message)``) cannot make a second job, since it carries its id.
    """

    def __init__(self, reason: str, *, message: Message[Any] | None = None) -> None:
        super().__init__(f"the ledger (Postgres) is not available: {reason}")
        self.reason = reason
        self.message = message

    @property
    def headline(self) -> str:
        """What Postgres or libpq said, in one line: libpq goes on with advice about host and port, and with every address it tried."""
        return self.reason.partition("\n")[0].removeprefix("connection failed: ").removeprefix("connection is bad: ")

    def __str__(self) -> str:
        if self.message is None:
            return super().__str__()
        return (
            f"the ledger (Postgres) is not available: {self.headline}; whether job {self.message.message_id} is stored is unknown: "
            "send the same message again, `broker.enqueue(error.message)`, it stays one job"
        )


class LedgerNotMigrated(LedgerUnavailable):
    """Postgres answers, but its ``switchyard`` schema is missing or older than this code."""

    def __init__(self, found: str | None, wanted: str) -> None:
        state = "has no switchyard tables" if found is None else f"is at migration {found}"
        super().__init__(f"the database {state}, this code needs migration {wanted}; run `switchyard migrate`")
        self.found = found
        self.wanted = wanted

    def __str__(self) -> str:
        return self.args[0] if self.message is None else f"{self.args[0]}; job {self.message.message_id} is not stored"


class LedgerForbidden(LedgerUnavailable):
    """Postgres answers, but the user of ``DATABASE_URL`` lacks a right on the ledger's schema or on a table of it; nothing was stored.

    ``denied`` says who may not use what, ``grant`` is the statement that its owner has to run.
    """

    def __init__(self, denied: str, grant: str) -> None:
        super().__init__(f"{denied}; {grant}")
        self.denied = denied
        self.grant = grant

    def __str__(self) -> str:
        return f"{self.reason}; {'nothing was' if self.message is None else f'job {self.message.message_id} is not'} stored"


class LeaseLost(SwitchyardError):
    """This worker's claim on the job is no longer valid, so whatever it writes is refused."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the lease on job {job_id} was lost: another worker may own it now, nothing was written")
        self.job_id = job_id


class EnlistRefused(SwitchyardError):
    """A send cannot belong to the transaction it was to join; nothing was stored, and that transaction was not touched."""


class CronError(SwitchyardError, ValueError):
    """A cron expression, or its time zone, cannot be read, or names a date that never comes."""

    def __init__(self, expression: str, reason: str) -> None:
        super().__init__(f"cron expression {expression!r}: {reason}")
        self.expression = expression
        self.reason = reason


class ScheduleNotFound(SwitchyardError):
    """No schedule in the ledger has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no schedule has the name {name!r}")
        self.name = name


class ScheduleExists(SwitchyardError):
    """Another schedule has this name already; nothing was stored."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a schedule {name!r} exists already; update it, or choose another name")
        self.name = name


class ScheduleError(SwitchyardError):
    """What a schedule is told to be, or to do, cannot work; nothing was changed."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"schedule {name!r}: {reason}")
        self.name = name
        self.reason = reason


class Permanent(Exception):
    """Raised by an actor to say that trying again cannot help: the job is dead at once, with this text as its error."""

    #: What the dead letter says why.
    dead_reason: str = "permanent"


class SecretUnreadable(Permanent):
    """A secret argument of a job cannot be decrypted, so its body was not called; the text names actor, field and reason."""

    dead_reason = "undecryptable"

    def __init__(self, actor: str, field: str, reason: str) -> None:
        super().__init__(f"actor {actor!r}, secret argument {field!r} cannot be decrypted: {reason}, and replay the job")
        self.actor = actor
        self.field = field
        self.reason = reason


class Snooze(Exception):
    """Raised by an actor to be run again later; the execution counts neither as a failure nor as a lost one.

    Parameters:
        delay: how long to wait, in seconds, or a ``timedelta``.
    """

    def __init__(self, delay: float | timedelta) -> None:
        self.delay = delay if isinstance(delay, timedelta) else timedelta(seconds=delay)
        super().__init__(f"snoozed for {self.delay}")


class Cancelled(Interrupt):
    """Raised in a running actor when its job was cancelled; let through, or raised by the actor itself, it ends the job as cancelled.

    An actor may catch it to clean up, and should raise it again. Like all of Dramatiq's interrupts it is no ``Exception``, so that
    ``except Exception`` does not swallow it.
    """

    def __init__(self, reason: str = "the job was cancelled") -> None:
        super().__init__(reason)
