"""Ids as people type them: whole, or their first eight characters or more, as long as no other job's id begins so.

A whole id is taken as it is, without a question to the ledger; what it stands for is the command's to find out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import switchyard
from errors import SwitchyardError
from ledger import names
from ledger.names import SHORTEST, Found

#: Of several ids that begin so, this many are named.
_NAMED = 5


class NoSuchId(SwitchyardError):
    """An id, or the beginning of one, that stands for nothing or for several things; the text says which."""


def job_id(text: str) -> str:
    """The id of the one job that is meant. Raises: NoSuchId: it is a beginning, of no job's id or of several."""
    return _resolved(text, "job", names.jobs_beginning)


def batch_id(text: str) -> str:
    """The id of the one group that is meant. Raises: NoSuchId: as ``job_id``."""
    return _resolved(text, "group", names.batches_beginning)


def no_job(text: str) -> NoSuchId:
    """That no job has this id, and what has it, if it is another's."""
    if _whole(text) and _asked(names.batches_beginning, text, 1):
        return NoSuchId(f"no job has the id {text!r}; a group has it: `switchyard batches show {text}`")
    return NoSuchId(f"no job has the id {text!r}{_form(text)}")


def no_batch(text: str) -> NoSuchId:
    """That no group has this id, and what has it, if it is another's."""
    if _whole(text) and _asked(names.jobs_beginning, text, 1):
        return NoSuchId(f"no group has the id {text!r}; a job has it: `switchyard show {text}`")
    return NoSuchId(f"no group has the id {text!r}{_form(text)}")


def require_batch(id_: str | None) -> None:
    """Nothing was found of a group, by its whole id: perhaps because there is none. Raises: NoSuchId: there is none."""
    if id_ is not None and not _asked(names.batches_beginning, id_, 1):
        raise no_batch(id_)


def _resolved(text: str, kind: str, beginning: Callable[[Any, str, int], list[Found]]) -> str:
    if _whole(text):
        return str(UUID(text))
    found = _asked(beginning, text, _NAMED + 1)
    if len(found) == 1:
        return found[0].id
    if not found:
        raise no_job(text) if kind == "job" else no_batch(text)
    shown = ", ".join(f"{one.id} ({one.what})" if one.what else one.id for one in found[:_NAMED])
    more = " and more" if len(found) > _NAMED else ""
    raise NoSuchId(f"the ids of several {kind}s begin with {text!r}: {shown}{more}; write more of it")


def _asked(beginning: Callable[[Any, str, int], list[Found]], text: str, limit: int) -> list[Found]:
    return switchyard.database().run(lambda connection: beginning(connection, text, limit))


def _whole(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _form(text: str) -> str:
    if _whole(text):
        return ""
    if names.id_range(text) is not None:
        return ", and none begins so"
    return f"; an id is a UUID, or the first {SHORTEST} characters of one, or more"
