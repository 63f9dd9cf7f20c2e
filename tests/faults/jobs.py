"""The actors of the fault scenarios. Each execution is on record before its first and after its last instruction."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dramatiq
from dramatiq import Broker
from dramatiq.middleware import SkipMessage

from middleware.current_job import current_job
from runtime.context import current_claim
from tests.faults.failpoints import fire
from tests.faults.recorder import Recorder

#: Effects that belong to a job's own commit; logs of transitions and notices, by triggers that the ledger's code knows nothing of.
TABLES = """
CREATE TABLE public.rig_effect (job uuid NOT NULL, attempt int NOT NULL, token uuid NOT NULL);
CREATE TABLE public.rig_step (
    seq bigint GENERATED ALWAYS AS IDENTITY, job uuid NOT NULL, before text NOT NULL, after text NOT NULL, generation int NOT NULL,
    attempt int NOT NULL, token_before uuid, token_after uuid, at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION public.rig_note_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.rig_step (job, before, after, generation, attempt, token_before, token_after)
    VALUES (NEW.message_id, OLD.state, NEW.state, NEW.generation, NEW.attempt, OLD.token, NEW.token);
    RETURN NULL;
END $$;
CREATE TRIGGER rig_step AFTER UPDATE ON switchyard.job FOR EACH ROW
    WHEN (OLD.state <> NEW.state OR OLD.token IS DISTINCT FROM NEW.token) EXECUTE FUNCTION public.rig_note_step();
CREATE TABLE public.rig_notice (job uuid NOT NULL, generation int NOT NULL, consumer text NOT NULL);
CREATE FUNCTION public.rig_note_notice() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.rig_notice VALUES (NEW.message_id, NEW.generation, NEW.consumer);
    RETURN NULL;
END $$;
CREATE TRIGGER rig_notice AFTER INSERT ON switchyard.dead_notice FOR EACH ROW EXECUTE FUNCTION public.rig_note_notice();
"""

#: How many jobs of ``slotted`` may run at once.
SLOTS = 3
#: How often a body looks up from its sleep, in seconds, so that an interruption gets through.
STEP = 0.02


def _linger(seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(STEP, left))


class Execution:
    """One run of an actor's body, as the recorder sees it."""

    def __init__(self, recorder: Recorder) -> None:
        claim = current_claim.get()
        assert claim is not None
        self._recorder = recorder
        self.failures = claim.job.failures
        self.identity = {"job": claim.job.message_id, "attempt": claim.job.attempt, "token": claim.token}

    def note(self, kind: str, **fields: Any) -> None:
        """Append a line about this execution."""
        self._recorder.write(kind, **self.identity, **fields)

    @property
    def result(self) -> dict[str, Any]:
        """What the ledger has to hold if, and only if, this execution's end was accepted."""
        return {"attempt": self.identity["attempt"], "token": self.identity["token"]}


@contextmanager
def executing(recorder: Recorder) -> Iterator[Execution]:
    """Note the start and the end of a body."""
    run = Execution(recorder)
    run.note("start")
    try:
        fire("in_actor")
        yield run
    except BaseException as error:
        run.note("end", outcome=type(error).__name__)
        raise
    run.note("end", outcome="ok")


def declare(broker: Broker, recorder: Recorder) -> SimpleNamespace:
    """Declare the actors on a broker."""

    execution = partial(executing, recorder)

    def actor(**options: Any) -> Any:
        return dramatiq.actor(broker=broker, **({"min_backoff": 100, "max_backoff": 400} | options))

    @actor()
    def plain(seconds: float = 0.0) -> dict[str, Any]:
        """An effect outside of the ledger: at least once."""
        with execution() as run:
            _linger(seconds)
            run.note("effect")
            return run.result

    @actor()
    def fenced(seconds: float = 0.0) -> None:
        """An effect in the job's own commit: exactly once."""
        with execution() as run:
            _linger(seconds)
            with current_job().transaction() as connection:
                connection.execute("INSERT INTO rig_effect VALUES (%(job)s, %(attempt)s, %(token)s)", run.identity)
                current_job().result = run.result

    @actor(queue_name="aside")
    def aside(seconds: float = 0.0) -> None:
        """As ``fenced``, in a queue that may have another broker."""
        with execution() as run:
            _linger(seconds)
            with current_job().transaction() as connection:
                connection.execute("INSERT INTO rig_effect VALUES (%(job)s, %(attempt)s, %(token)s)", run.identity)
                current_job().result = run.result

    @actor()
    def parent(seconds: float = 0.0) -> None:
        """A fenced effect and a job that is sent with it: both or neither."""
        with execution() as run:
            _linger(seconds)
            with current_job().transaction() as connection:
                connection.execute("INSERT INTO rig_effect VALUES (%(job)s, %(attempt)s, %(token)s)", run.identity)
                child = plain.message()
                recorder.write(
                    "invoke", job=child.message_id, actor="plain", parent=run.identity["job"], token=run.identity["token"]
                )
                broker.enqueue(child)
                current_job().result = run.result

    @actor()
    def flaky(fails: int = 1, seconds: float = 0.0) -> dict[str, Any]:
        """Fails so many times, then completes."""
        with execution() as run:
            _linger(seconds)
            if run.failures < fails:
                raise RuntimeError("not yet")
            return run.result

    @actor(max_retries=1)
    def doomed() -> None:
        """Ends as a dead letter."""
        with execution():
            raise ValueError("never")

    @actor(queue_name="slots", concurrency=SLOTS, max_retries=0)
    def slotted(seconds: float = 0.0) -> dict[str, Any]:
        """One of those of which so many may run at once."""
        with execution() as run:
            _linger(0.1 + seconds)
            return run.result

    @actor(queue_name="poison", max_retries=1, time_limit=1_500)
    def poison(how: str) -> Any:
        """One that harms its worker; ``how`` is the name of one of POISONS."""
        with execution():
            return POISONS[how]()

    actors = SimpleNamespace(plain=plain, fenced=fenced, aside=aside, parent=parent, flaky=flaky, doomed=doomed, poison=poison)
    actors.slotted = slotted
    if os.environ.get("FAULTS_NEWER"):

        @actor()
        def newer(seconds: float = 0.0) -> dict[str, Any]:
            """One that only a newer version of the code knows."""
            with execution() as run:
                return run.result

        actors.newer = newer
    return actors


def _segfault() -> None:
    ctypes.string_at(0)


def _out_of_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 32 * 2**20, limits[1]))
    try:
        _ = b"x" * (1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _loop_in_c() -> None:
    # One instruction to the interpreter: no exception gets in before it is done, a minute later.
    ctypes.CDLL(None).sleep(60)


def _system_exit() -> None:
    raise SystemExit(1)


def _skip() -> None:
    raise SkipMessage("skipped")


def _fork() -> str:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


def _unpicklable() -> None:
    class Odd(Exception):
        def __init__(self, first: object, second: object) -> None:
            super().__init__("odd")

        def __reduce__(self) -> Any:
            raise TypeError("cannot be pickled")

        def __str__(self) -> str:
            raise TypeError("cannot be told")

    raise Odd(1, 2)


#: What a poisonous job does, and how it ends: its state, and the reason of its death.
POISONS: dict[str, Any] = {
    "os_exit": lambda: os._exit(9),
    "segfault": _segfault,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "memory": _out_of_memory,
    "loop_in_c": _loop_in_c,
    "system_exit": _system_exit,
    "skip": _skip,
    "fork": _fork,
    "huge": lambda: "x" * (100 * 2**20),
    "no_json": lambda: object(),
    "unpicklable": _unpicklable,
}
ENDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "os_exit": ("dead", ("worker_lost",)),
    "segfault": ("dead", ("worker_lost",)),
    "kill": ("dead", ("worker_lost",)),
    "memory": ("dead", ("max_retries",)),
    # Its thread cannot be reached: the limit ends the job, or the lease does.
    "loop_in_c": ("dead", ("time_limit", "worker_lost", "max_retries")),
    "system_exit": ("dead", ("max_retries",)),
    "skip": ("cancelled", ()),
    "fork": ("completed", ()),
    "huge": ("dead", ("result_unstorable",)),
    "no_json": ("dead", ("max_retries", "result_unstorable", "permanent")),
    "unpicklable": ("dead", ("max_retries",)),
}
