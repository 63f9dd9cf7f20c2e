"""The actors of the soak, beside those of tests.faults, and tables in which triggers keep what retention removes."""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker

from errors import Permanent
from middleware.current_job import current_job
from tests.faults import jobs as faults
from tests.faults.recorder import Recorder

#: Retention is part of what is soaked, so the rows that it takes away are kept here, outside of the ledger's schema, by triggers.
TABLES = """
CREATE TABLE public.soak_job AS SELECT message_id, actor, state, generation, attempt, failures, lost, max_attempts, last_token, result,
    dead_reason, error_type, error FROM switchyard.job WITH NO DATA;
CREATE TABLE public.soak_attempt (job_id bigint NOT NULL, generation int NOT NULL, attempt int NOT NULL, outcome text NOT NULL);
CREATE TABLE public.soak_id (job_id bigint PRIMARY KEY, message_id uuid NOT NULL);
CREATE TABLE public.soak_order (id bigint GENERATED ALWAYS AS IDENTITY, job uuid NOT NULL);
CREATE FUNCTION public.soak_keep_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.soak_job VALUES (OLD.message_id, OLD.actor, OLD.state, OLD.generation, OLD.attempt, OLD.failures, OLD.lost,
        OLD.max_attempts, OLD.last_token, OLD.result, OLD.dead_reason, OLD.error_type, OLD.error);
    INSERT INTO public.soak_id VALUES (OLD.id, OLD.message_id);
    RETURN NULL;
END $$;
CREATE TRIGGER soak_keep_job AFTER DELETE ON switchyard.job FOR EACH ROW EXECUTE FUNCTION public.soak_keep_job();
CREATE FUNCTION public.soak_keep_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.soak_attempt VALUES (OLD.job_id, OLD.generation, OLD.attempt, OLD.outcome);
    RETURN NULL;
END $$;
CREATE TRIGGER soak_keep_attempt AFTER DELETE ON switchyard.attempt FOR EACH ROW EXECUTE FUNCTION public.soak_keep_attempt();
"""

#: How every job of these actors has to end.
ENDS = {
    "plain": "completed", "fenced": "completed", "parent": "completed", "flaky": "completed", "doomed": "dead", "slotted": "completed",
    "metered": "completed", "large": "completed", "second_life": "completed", "sleepy": "completed", "stepped": "completed",
    "once": "completed", "endless": "cancelled", "link": "completed", "member": "completed", "collected": "completed",
    "ticked": "completed",
}  # fmt: skip
#: Queues, for a look at what the broker still holds.
QUEUES = ("default", "aside", "slots", "poison", "metered", "large")


def declare(broker: Broker, recorder: Recorder) -> SimpleNamespace:
    """Declare the actors on a broker: those of the faults, and these."""

    execution = partial(faults.executing, recorder)

    def actor(**options: Any) -> Any:
        return dramatiq.actor(broker=broker, **({"min_backoff": 100, "max_backoff": 400} | options))

    @actor(queue_name="metered", rate_limit="4/second", rate_limit_burst=4, rate_limit_key="key")
    def metered(key: str) -> dict[str, Any]:
        """One of so many a second and key."""
        with execution() as run:
            return run.result

    @actor(queue_name="large")
    def large(text: str) -> dict[str, Any]:
        """Gets much, and returns as much."""
        with execution() as run:
            return run.result | {"text": text}

    @actor(max_retries=2)
    def second_life() -> dict[str, Any]:
        """Dies at once, and completes when it is replayed."""
        with execution() as run:
            if current_job().generation == 1:
                raise Permanent("not in this life")
            return run.result

    @actor()
    def sleepy() -> dict[str, Any]:
        """Asks to be run again once, without an attempt spent."""
        with execution() as run:
            if current_job().attempt == 1:
                current_job().snooze(0.3)
            return run.result

    @actor()
    def stepped() -> dict[str, Any]:
        """Remembers a step, reports progress, writes to its log, and fails once in between."""
        with execution() as run:
            job = current_job()
            job.step("charge", dict, cents=100)
            job.progress(50, "charged")
            job.log("charged")
            if run.failures == 0:
                raise ConnectionError("the network went away")
            return run.result

    @actor(unique_key=("key",))
    def once(key: str) -> dict[str, Any]:
        """One at a time of each key."""
        with execution() as run:
            return run.result

    @actor()
    def endless() -> None:
        """Goes on until it is cancelled."""
        with execution():
            while True:
                time.sleep(faults.STEP)

    @actor()
    def link(number: int, before: Any = None) -> dict[str, Any]:
        """A step of a chain; gets what the one before returned."""
        with execution() as run:
            return run.result

    @actor()
    def member(number: int) -> dict[str, Any]:
        """One of a batch."""
        with execution() as run:
            return run.result

    @actor()
    def collected() -> dict[str, Any]:
        """Sent when a batch is complete."""
        with execution() as run:
            return run.result

    @actor()
    def ticked() -> dict[str, Any]:
        """Made by a schedule, every few seconds."""
        with execution() as run:
            return run.result

    actors = faults.declare(broker, recorder)
    for each in (metered, large, second_life, sleepy, stepped, once, endless, link, member, collected, ticked):
        setattr(actors, each.actor_name, each)
    return actors
