"""Between a claim's start and its body: a request that comes there keeps the body from beginning."""

from __future__ import annotations

from types import SimpleNamespace

import dramatiq
import pytest
from dramatiq.middleware import Interrupt, SkipMessage

from errors import Cancelled
from ledger.records import ClaimedJob
from ledger.states import State
from middleware.cancellation import Cancellation
from middleware.job_context import job_context
from middleware.retries import failed
from runtime.claims import Claim


@pytest.fixture
def message():
    job = ClaimedJob(1, "m", "default", "work", {"args": [], "kwargs": {}}, None, 1, 1, 0, 3, False, 0, 0, None, None, None)
    return SimpleNamespace(claim=Claim(job, "token", 0.0, 30.0), options={})


def test_a_request_that_comes_in_time_skips_the_body(message):
    message.claim.cancel_requested = True

    with pytest.raises(SkipMessage):
        Cancellation().before_process_message(None, message)

    ending = message.claim.ending
    assert (ending.state, ending.outcome, ending.error_type) == (State.CANCELLED, "cancelled", "Cancelled")


def test_without_a_request_the_body_begins(message):
    Cancellation().before_process_message(None, message)

    assert message.claim.ending is None


@pytest.mark.parametrize("error", [Cancelled(), ValueError("while cleaning up"), dramatiq.middleware.Shutdown()])
def test_once_asked_every_error_is_a_cancellation_and_an_unexpected_one_keeps_its_traceback(message, error):
    message.claim.cancel_requested = True

    ending = failed(message, error, None)

    assert (ending.state, ending.outcome, ending.error_type) == (State.CANCELLED, "cancelled", type(error).__name__)
    assert (ending.traceback is None) is isinstance(error, Cancelled)


def test_cancelled_is_an_interrupt_that_can_be_raised_by_its_class():
    assert issubclass(Cancelled, Interrupt)
    assert not issubclass(Cancelled, Exception)
    assert str(Cancelled()) == "the job was cancelled"


def test_a_unit_test_can_say_that_the_job_was_cancelled():
    with job_context(cancelled=True) as job:
        assert job.cancelled
    with job_context() as job:
        assert not job.cancelled
