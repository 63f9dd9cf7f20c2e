"""What may be exported: named datasets, each a reviewed SELECT with typed filters. No SQL ever comes from a request.

A request names a dataset, some of its columns, and values for some of its filters. Columns and conditions are looked up here,
by name, and are constants of this module; values are bound. A read-only transaction would not be enough to run SQL that
somebody sends: it can be left, wait for locks, or end other sessions (each seen on PostgreSQL 15).

To add one: a ``Dataset`` below, and a test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, LiteralString

from psycopg import sql

from ledger.states import states_named
from switchyard import Permanent


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 500:
        raise ValueError("must be a text of 1 to 500 characters")
    return value


def _time(value: Any) -> datetime:
    """ISO 8601; without a zone it is UTC."""
    try:
        when = datetime.fromisoformat(_text(value))
    except ValueError:
        raise ValueError("must be a time such as 2026-01-31T08:00:00Z") from None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _states(value: Any) -> list[str]:
    return sorted(states_named(_text(value)))


def _outcome(value: Any) -> str:
    if value not in ("failed", "lost", "released", "snoozed", "cancelled"):
        raise ValueError("must be failed, lost, released, snoozed or cancelled")
    return str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """One condition, with the reader that turns the request's value into the type that is bound."""

    condition: LiteralString
    read: Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One exportable SELECT: ``columns`` maps the names of the outside to expressions over ``source``."""

    source: LiteralString
    columns: Mapping[str, LiteralString]
    filters: Mapping[str, Filter]
    order: LiteralString


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A request that was checked: statements to run, with the values to bind, and the columns in the order asked for."""

    rows: sql.Composed
    count: sql.Composed
    values: dict[str, Any]
    columns: list[str]


DATASETS: Final[Mapping[str, Dataset]] = {
    # Neither payload nor result: they may hold what is nobody else's business.
    "jobs": Dataset(
        source="switchyard.job j",
        columns={
            "id": "j.message_id",
            "queue": "j.queue",
            "actor": "j.actor",
            "state": "j.state",
            "priority": "j.priority",
            "attempt": "j.attempt",
            "max_attempts": "j.max_attempts",
            "generation": "j.generation",
            "created_at": "j.created_at",
            "run_at": "CASE WHEN isfinite(j.run_at) THEN j.run_at END",
            "started_at": "j.started_at",
            "finished_at": "j.finished_at",
            "seconds": "round(extract(epoch FROM j.finished_at - j.started_at)::numeric, 3)",
            "progress": "j.progress",
            "stage": "j.stage",
            "dead_reason": "j.dead_reason",
            "error_type": "j.error_type",
            "error": "j.error",
            "broker": "j.broker",
            "worker": "j.worker",
            "parent_id": "j.parent_id",
        },
        filters={
            "state": Filter(condition="j.state = ANY(%(state)s)", read=_states),
            "queue": Filter(condition="j.queue = %(queue)s", read=_text),
            "actor": Filter(condition="j.actor = %(actor)s", read=_text),
            "created_from": Filter(condition="j.created_at >= %(created_from)s", read=_time),
            "created_before": Filter(condition="j.created_at < %(created_before)s", read=_time),
        },
        order="j.id",
    ),
    "attempts": Dataset(
        source="switchyard.attempt a JOIN switchyard.job j ON j.id = a.job_id",
        columns={
            "job_id": "j.message_id",
            "queue": "j.queue",
            "actor": "j.actor",
            "generation": "a.generation",
            "attempt": "a.attempt",
            "worker": "a.worker",
            "started_at": "a.started_at",
            "finished_at": "a.finished_at",
            "outcome": "a.outcome",
            "error_type": "a.error_type",
            "error": "a.error",
        },
        filters={
            "outcome": Filter(condition="a.outcome = %(outcome)s", read=_outcome),
            "queue": Filter(condition="j.queue = %(queue)s", read=_text),
            "actor": Filter(condition="j.actor = %(actor)s", read=_text),
            "finished_from": Filter(condition="a.finished_at >= %(finished_from)s", read=_time),
            "finished_before": Filter(condition="a.finished_at < %(finished_before)s", read=_time),
        },
        order="a.job_id, a.generation, a.attempt",
    ),
    "contacts": Dataset(
        source="switchyard_jobs.contact c",
        columns={
            "email": "c.email",
            "name": "c.name",
            "company": "c.company",
            "phone": "c.phone",
            "created_at": "c.created_at",
            "updated_at": "c.updated_at",
        },
        filters={
            "domain": Filter(condition="split_part(c.email, '@', 2) = lower(%(domain)s)", read=_text),
            "company": Filter(condition="c.company = %(company)s", read=_text),
            "created_from": Filter(condition="c.created_at >= %(created_from)s", read=_time),
            "created_before": Filter(condition="c.created_at < %(created_before)s", read=_time),
        },
        order="c.id",
    ),
}


def select(name: str, filters: Mapping[str, Any], columns: list[str] | None) -> Selection:
    """Check a request and compose its statements.

    Parameters:
        columns: which, in this order; None is all of them.

    Raises:
        Permanent: the dataset, a filter, its value or a column is not one of those listed; names it and the choice.
    """
    dataset = DATASETS.get(name)
    if dataset is None:
        raise Permanent(f"dataset: {name[:80]!r} is unknown; there are {', '.join(DATASETS)}")
    chosen = list(dataset.columns) if columns is None else columns
    _refuse_unknown("columns", chosen, dataset.columns)
    if not chosen or len(set(chosen)) < len(chosen):
        raise Permanent("columns: name one at least, and none twice")
    _refuse_unknown("filters", filters, dataset.filters)
    values = {}
    for field, value in filters.items():
        try:
            values[field] = dataset.filters[field].read(value)
        except ValueError as error:
            raise Permanent(f"filters.{field}: {error}") from error

    source = sql.SQL("FROM ") + sql.SQL(dataset.source)
    if values:
        conditions = [sql.SQL(dataset.filters[field].condition) for field in values]
        source += sql.SQL(" WHERE ") + sql.SQL(" AND ").join(conditions)
    expressions = sql.SQL(", ").join([sql.SQL(dataset.columns[column]) for column in chosen])
    return Selection(
        rows=sql.SQL("SELECT {} {} ORDER BY {}").format(expressions, source, sql.SQL(dataset.order)),
        count=sql.SQL("SELECT count(*) {}").format(source),
        values=values,
        columns=chosen,
    )


def _refuse_unknown(field: str, asked: Mapping[str, Any] | list[str], known: Mapping[str, Any]) -> None:
    for name in asked:
        if name not in known:
            raise Permanent(f"{field}: {name[:80]!r} is unknown; there are {', '.join(known)}")
