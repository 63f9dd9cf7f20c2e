"""``job.step()`` in a unit test: what it takes, what it gives back, what it refuses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from middleware.current_job import current_job
from middleware.job_context import job_context


def never() -> Any:
    raise AssertionError("it was done again")


def test_a_step_is_done_once_and_what_comes_back_is_what_was_stored():
    calls = []

    def charge(cents: int, *, currency: str) -> Any:
        calls.append((cents, currency))
        return {"cents": (cents, 1.5), "currency": currency}

    with job_context() as job:
        first = current_job().step("charge", charge, 12, currency="EUR")
        again = current_job().step("charge", charge, 13, currency="USD")

    assert first == {"cents": [12, 1.5], "currency": "EUR"}
    assert again == first
    assert calls == [(12, "EUR")]
    assert job.steps == {"charge": '{"cents":[12,1.5],"currency":"EUR"}'}


def test_a_test_can_say_what_an_earlier_attempt_did():
    with job_context(attempt=2, steps={"charge": '"paid"', "nothing": "null"}) as job:
        assert job.step("charge", never) == "paid"
        assert job.step("nothing", never) is None


def test_a_step_that_raises_is_not_remembered():
    def fails():
        raise KeyError("no")

    with job_context() as job:
        with pytest.raises(KeyError):
            job.step("charge", fails)
        assert job.step("charge", str, 5) == "5"


@pytest.mark.parametrize("name", ["", "x" * 201, 5, None, "a\x00b"])
def test_a_name_that_cannot_be_one_is_refused_before_anything_is_done(name):
    with job_context() as job, pytest.raises(ValueError, match="is no name"):
        job.step(name, never)


def test_a_result_that_is_not_json_is_refused():
    with job_context() as job, pytest.raises(ValueError, match="is not JSON"):
        job.step("charge", object)


def test_a_coroutine_function_belongs_to_step_async():
    async def fetch(number):
        return (number, number)

    async def body(job):
        first = await job.step_async("fetch", fetch, 1)
        return first, await job.step_async("fetch", fetch, 2)

    with job_context() as job:
        with pytest.raises(TypeError, match="is asynchronous"):
            _ = job.step("sync", fetch, 1)
        assert asyncio.run(body(job)) == ([1, 1], [1, 1])
