"""``pipeline`` and ``group``: Dramatiq's own, with the whole workflow written as rows in one transaction when it is run.

A step is a row from the start and waits (``wait_reason`` is ``upstream``) until what stands before it is completed; it is made due, with
that result, by the same commit. A step that dies leaves those behind it waiting, and its replay goes on from there. Groups may stand in
pipelines, where the next step gets the list of their results, and in groups. On a broker that is not ours (``BROKER=stub``) both are
Dramatiq's, from which all methods have their meaning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any, Final
from uuid import uuid4

import dramatiq
from dramatiq import Broker, Message
from dramatiq.results import ResultMissing
from psycopg import Connection

from brokers.broker import SwitchyardBroker
from control.cancel import cancel, cancel_many
from ledger import batches
from ledger.records import Enqueued, JobControl, NewBatch, NewJob
from ledger.sealed import Place as SecretPlace
from middleware.group_callbacks import callback_rows
from middleware.secret_results import exposed
from runtime.context import current_claim

#: What completes a workflow, or a part of it.
Part = Message[Any] | dramatiq.pipeline | dramatiq.group
Callback = Message[Any] | Iterable[Message[Any]] | None

#: Options of messages that only a workflow sets: they are made anew each time.
_OURS: Final = ("pipe_target", "piped", "followed", "secret_for")


class pipeline(dramatiq.pipeline):
    """Run jobs one after the other, each with the result of the one before as its last argument.

        pipeline([fetch.message(url), group([resize.message(100), resize.message(500)]), publish.message()]).run()

    Parameters:
        children: messages, pipelines (their messages are taken out) and groups.
        broker: default: Dramatiq's global broker.

    Raises:
        ValueError: there are none.
    """

    messages: list[Any]

    def __init__(self, children: Iterable[Part], *, broker: Broker | None = None) -> None:
        self.broker = broker or dramatiq.get_broker()
        self.messages = []
        for child in children:
            if isinstance(child, dramatiq.pipeline):
                self.messages += [part if isinstance(part, dramatiq.group) else _bare(part) for part in child.messages]
            else:
                self.messages.append(child if isinstance(child, dramatiq.group) else _bare(child))
        if not self.messages:
            raise ValueError("a pipeline needs at least one message")

    def __or__(self, other: Part) -> pipeline:
        """A new pipeline with ``other`` at its end."""
        return type(self)([*self.messages, other], broker=self.broker)

    @property
    def completed(self) -> bool:
        """Whether the last step is completed. Raises: ResultFailure: it is dead or cancelled."""
        return self._is_completed(self.messages[-1])

    @property
    def completed_count(self) -> int:
        """How many steps are completed, up to the first one that is not. Raises: ResultFailure: one is dead or cancelled."""
        count = 0
        for part in self.messages:
            if not self._is_completed(part):
                break
            count += 1
        return count

    def _is_completed(self, part: Message[Any] | dramatiq.group) -> bool:
        if isinstance(part, dramatiq.group):
            return bool(part.completed)
        try:
            part.get_result(backend=self.broker.get_results_backend())
        except ResultMissing:
            return False
        return True

    def run(self, *, delay: int | timedelta | None = None) -> pipeline:
        """Write all steps; the first one is due after ``delay`` (milliseconds or a ``timedelta``), or its own delay if that is longer.

        Raises:
            PayloadError, OptionError, JobExists, LedgerUnavailable: as ``send()``; then nothing was stored.
        """
        if isinstance(self.broker, SwitchyardBroker):
            _run(self, self.broker, delay)
        else:
            if any(isinstance(part, dramatiq.group) for part in self.messages):
                raise NotImplementedError(
                    "a group inside a pipeline needs Switchyard's broker; BROKER=stub has Dramatiq's pipelines"
                )
            dramatiq.pipeline(self.messages, broker=self.broker).run(delay=delay)
        return self

    def cancel(self) -> None:
        """Cancel all steps that have not ended, the last one first; running ones are asked to stop. As ``switchyard.cancel``."""
        _cancel(self)

    def get_result(self, *, block: bool = False, timeout: int | None = None) -> Any:
        """The result of the last step; a list, where that is a group. As Dramatiq's; ``timeout`` in milliseconds."""
        last = self.messages[-1]
        if isinstance(last, dramatiq.group):
            return list(last.get_results(block=block, timeout=timeout))
        return super().get_result(block=block, timeout=timeout)  # type: ignore[no-untyped-call]

    def get_results(self, *, block: bool = False, timeout: int | None = None) -> Iterator[Any]:
        """The result of each step in turn; a list for a group. As Dramatiq's; ``timeout`` in milliseconds, for all of them."""
        deadline = None if timeout is None else monotonic() + timeout / 1000
        backend = self.broker.get_results_backend()
        for part in self.messages:
            left = None if deadline is None else max(0, int((deadline - monotonic()) * 1000))
            if isinstance(part, dramatiq.group):
                yield list(part.get_results(block=block, timeout=left))
            else:
                yield part.get_result(backend=backend, block=block, timeout=left)


class group(dramatiq.group):
    """Run jobs side by side, and send callbacks when they have ended; ``switchyard.batch(group.id)`` says how far they are.

    Parameters:
        children: messages, pipelines and groups.
        broker: default: Dramatiq's global broker.
        name: what lists call it.
        on_complete: sent once, when every job has ended, however; what ``add_completion_callback`` adds.
        on_success: sent once, when every job is completed, be it after a replay.
        on_death: sent once, when the first job is dead.

    Callbacks are messages, or lists of messages. On the stub broker there are only those of ``on_complete``.
    """

    def __init__(
        self,
        children: Iterable[Part],
        *,
        broker: Broker | None = None,
        name: str | None = None,
        on_complete: Callback = None,
        on_success: Callback = None,
        on_death: Callback = None,
    ) -> None:
        super().__init__(children, broker=broker)  # type: ignore[no-untyped-call]
        #: The batch's id in the ledger, known before it is run.
        self.id = str(uuid4())
        self.name = name
        self.on_success = _messages(on_success)
        self.on_death = _messages(on_death)
        for message in _messages(on_complete):
            self.add_completion_callback(message)  # type: ignore[no-untyped-call]

    def run(self, *, delay: int | timedelta | None = None) -> group:
        """Write the group and all in it; each is due after ``delay`` (milliseconds or a ``timedelta``), or its own if that is longer.

        Raises:
            PayloadError, OptionError, JobExists, LedgerUnavailable: as ``send()``; then nothing was stored.
        """
        if isinstance(self.broker, SwitchyardBroker):
            _run(self, self.broker, delay)
        else:
            super().run(delay=delay)  # type: ignore[no-untyped-call]
        return self

    def cancel(self) -> None:
        """Cancel all jobs of it that have not ended; running ones are asked to stop. As ``switchyard.cancel``."""
        _cancel(self)


def _cancel(part: Part) -> None:
    if isinstance(part, dramatiq.pipeline):
        for step in reversed(part.messages):
            _cancel(step)
    elif isinstance(part, dramatiq.group):
        for child in part.children:
            if not (isinstance(part, group) and isinstance(child, Message)):
                _cancel(child)
        if isinstance(part, group):
            cancel_many(batch=part.id)
    else:
        cancel(part)


def _run(part: Part, broker: SwitchyardBroker, delay: int | timedelta | None) -> None:
    claim = current_claim.get()
    tree = _Tree(broker, None if claim is None else claim.job.message_id)
    tree.add(part, _Place())
    broker.enqueue_many(tree.messages, delay=delay, whole=tree)
    if any(batch.total == 0 for batch in tree.batches):
        broker.wake_services(0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class _Takers:
    """The secret arguments that a result goes to, and an actor that stores it for all to read."""

    secret: frozenset[SecretPlace] = frozenset()
    plain: str | None = None

    def with_more(self, more: Iterable[SecretPlace]) -> list[list[str]]:
        """All the secret arguments, as the message option. Raises: OptionError: it would not stay secret."""
        places = sorted({*self.secret, *more})
        if places and self.plain is not None:
            raise exposed(self.plain, *places[0])
        return [list(place) for place in places]


_NOBODY: Final = _Takers()


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where a part stands: in which batch, behind what, and whether something stands behind it."""

    batch: str | None = None
    root: str | None = None
    #: The job or batch that it waits for, the job next before it, and whether that one's actor keeps its result to itself.
    upstream: str | None = None
    parent: str | None = None
    ignored: bool = False
    followed: bool = False
    #: Who gets its result.
    takers: _Takers = _NOBODY
    #: How many results of its batch come before it.
    rank: int = 0


class _Tree:
    """A workflow laid out as rows; ``ledger.batches.Together``."""

    def __init__(self, broker: SwitchyardBroker, sender: str | None) -> None:
        self._broker = broker
        self._sender = sender
        self.messages: list[Message[Any]] = []
        self.batches: list[NewBatch] = []
        self._places: list[_Place] = []
        self._totals: dict[str, int] = {}
        self._members: dict[str, JobControl] = {}
        self._ranks: dict[str, int] = {}

    def add(self, part: Part, place: _Place) -> str:
        """Lay out a part; returns the id that whatever comes next waits for."""
        if isinstance(part, dramatiq.pipeline):
            return self._add_chain(part, place)
        if isinstance(part, dramatiq.group):
            return self._add_group(part, place)
        return self._add_message(part, place)

    def _add_message(self, message: Message[Any], place: _Place) -> str:
        options: dict[str, Any] = message.options
        seals = self._broker.seals
        # Nothing that another run noted on it counts.
        bare = message if message.options.keys().isdisjoint(_OURS) else _bare(message)
        secret_for = [] if seals is None else place.takers.with_more(seals.takers(bare))
        if options or place.upstream is not None or place.followed or secret_for:
            options = {name: value for name, value in options.items() if name not in _OURS}
        if place.upstream is not None and not place.ignored and not options.get("pipe_ignore"):
            options["piped"] = True
        if secret_for:
            options["secret_for"] = secret_for
        if place.followed:
            options["followed"] = True
        elif place.batch is not None:
            self._ranks[place.batch] += 1
        if place.batch is not None:
            self._totals[place.batch] += 1
        self.messages.append(message if options == message.options else dataclasses.replace(message, options=options))
        self._places.append(place)
        return message.message_id

    def _add_chain(self, chain: dramatiq.pipeline, place: _Place) -> str:
        parts: list[Any] = chain.messages
        upstream = place.upstream or ""
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            actor = None if isinstance(part, dramatiq.group) else self._broker.actors.get(part.actor_name)
            # As in Dramatiq: of the actor whose result it is.
            ignored = actor is not None and bool(actor.options.get("pipe_ignore"))
            takers = place.takers if last else _NOBODY if ignored else self._takers(parts[number + 1])
            upstream = self.add(part, dataclasses.replace(place, followed=place.followed or not last, takers=takers))
            parent = place.parent if isinstance(part, dramatiq.group) else upstream
            place = dataclasses.replace(place, upstream=upstream, parent=parent, ignored=ignored)
        return upstream

    def _takers(self, part: Part) -> _Takers:
        """Who gets the result of what stands before a part."""
        seals = self._broker.seals
        if seals is None:
            return _NOBODY
        secret: set[SecretPlace] = set()
        plain: str | None = None
        for actor, position in {(step.actor_name, len(step.args)): None for step in _first(part)}:
            taker = seals.place_at(actor, position)
            if taker is None:
                plain = actor
            else:
                secret.add(taker)
        return _Takers(frozenset(secret), plain)

    def _add_group(self, part: dramatiq.group, place: _Place) -> str:
        id_ = part.id if isinstance(part, group) else str(uuid4())
        root = place.root or id_
        self._totals[id_] = self._ranks[id_] = 0
        rank = 0 if place.batch is None else self._ranks[place.batch]
        inside = dataclasses.replace(place, batch=id_, root=root, followed=False)
        for child in part.children:
            self.add(child, inside)
        sent: list[Message[Any]] = [Message(**fields) for fields in part.completion_callbacks]
        for message in (*sent, *(part.on_success + part.on_death if isinstance(part, group) else ())):
            self._broker.message_options.check(message)
        self.batches.append(
            NewBatch(
                id=id_,
                root_id=root,
                name=part.name if isinstance(part, group) else None,
                parent_id=place.batch,
                sent_by=self._sender,
                waits_for=place.upstream,
                followed=place.followed,
                place=rank,
                total=self._totals[id_],
                on_complete=callback_rows(self._broker, sent),
                on_success=callback_rows(self._broker, part.on_success) if isinstance(part, group) else None,
                on_death=callback_rows(self._broker, part.on_death) if isinstance(part, group) else None,
            )
        )
        return id_

    def before(self, connection: Connection[Any]) -> None:
        """Write the batches."""
        batches.make(connection, self.batches)

    def place(self, position: int, job: NewJob) -> NewJob:
        """The row of a step."""
        place = self._places[position]
        if place.batch is None and place.upstream is None:
            return job if place.parent is None else job._replace(parent_id=place.parent)
        if place.upstream is None and place.parent is None and job.control is None and place.batch is not None:
            # Children of one group share it: nothing else is special about them.
            return job._replace(control=self._members.setdefault(place.batch, JobControl(batch_id=place.batch)))
        control = dataclasses.replace(
            job.control or JobControl(),
            batch_id=place.batch,
            upstream_id=place.upstream,
            wait_reason=None if place.upstream is None else "upstream",
        )
        # The delay of a step that waits counts from when it begins, and stands among its options until then.
        delay = job.delay if place.upstream is None else 0.0
        return job._replace(control=control, delay=delay, parent_id=place.parent or job.parent_id)

    def after(self, connection: Connection[Any], enqueued: Sequence[Enqueued]) -> None:
        """End what is empty."""
        empty = [batch.id for batch in self.batches if batch.total == 0]
        if empty:
            batches.close(connection, empty)


def _first(part: Part) -> Iterator[Message[Any]]:
    """The steps with which a part begins, but for those that are given no result."""
    if isinstance(part, dramatiq.group):
        for child in part.children:
            yield from _first(child)
    elif isinstance(part, dramatiq.pipeline):
        yield from _first(part.messages[0])
    elif not part.options.get("pipe_ignore"):
        yield part


def _bare(message: Message[Any]) -> Message[Any]:
    """A copy of a message without what another pipeline noted on it."""
    options = {name: value for name, value in message.options.items() if name not in _OURS}
    return dataclasses.replace(message, options=options)


def _messages(given: Callback) -> list[Message[Any]]:
    return [] if given is None else [given] if isinstance(given, Message) else list(given)
