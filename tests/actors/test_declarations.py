"""What the actors declare: queues, retry policies and time limits as documented, payloads that are checked at ``send()``."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Any

import dramatiq
import pytest

import actors
import switchyard
from actors import count_primes, doomed, flaky, paced
from actors.storage import ABANDONED_AFTER
from middleware.payload import CheckedPayload
from middleware.retries import backoff_ms
from switchyard import Permanent

#: Queue, attempts, first and longest back-off, and time limit, in seconds. DESIGN.md section 8 has the first five.
POLICIES = {
    "send_email": ("emails", 3, 1, 60, 120),
    "process_image": ("images", 2, 5, 5, 120),
    "export_data": ("exports", 3, 2, 60, 900),
    "generate_report": ("reports", 2, 30, 30, 120),
    "import_csv": ("imports", 3, 2, 60, 1_800),
    "deliver_webhook": ("webhooks", 8, 60, 3_600, 30),
    "daily_digest": ("maintenance", 4, 30, 600, 120),
    "weekly_report": ("maintenance", 4, 30, 600, 30),
    "nightly_cleanup": ("maintenance", 4, 30, 600, 600),
    "hourly_statistics": ("maintenance", 4, 30, 600, 120),
    "flaky": ("maintenance", 10, 0.2, 5, 10),
    "doomed": ("maintenance", 2, 0.2, 0.2, 10),
    "count_primes": ("maintenance", 2, 0.2, 0.2, 60),
    "paced": ("maintenance", 2, 0.2, 0.2, 10),
}


def declared() -> dict[str, dramatiq.Actor[Any, Any]]:
    return {name: getattr(actors, name) for name in actors.__all__}


def test_every_actor_has_its_policy_and_no_other_is_declared() -> None:
    found = {
        name: (
            actor.queue_name,
            actor.options["max_retries"] + 1,
            actor.options["min_backoff"] / 1_000,
            actor.options["max_backoff"] / 1_000,
            actor.options["time_limit"] / 1_000,
        )
        for name, actor in declared().items()
    }

    assert found == POLICIES


def test_a_webhook_s_attempts_outlast_an_hour_s_outage() -> None:
    _, attempts, first, longest, _ = POLICIES["deliver_webhook"]

    waits = [backoff_ms(failures, first * 1_000, longest * 1_000) for failures in range(1, attempts)]

    assert sum(waits) >= 3_600_000


def test_no_actor_may_run_for_as_long_as_half_written_files_are_kept() -> None:
    assert max(timedelta(seconds=policy[4]) for policy in POLICIES.values()) < ABANDONED_AFTER


def test_every_actor_says_what_it_does_takes_and_returns() -> None:
    for name, actor in declared().items():
        assert (actor.fn.__doc__ or "").strip(), name
        signature = inspect.signature(actor.fn)
        assert signature.return_annotation is not signature.empty, name
        assert all(p.annotation is not p.empty for p in signature.parameters.values()), name


@pytest.mark.parametrize(
    ("name", "args", "field"),
    [
        ("send_email", (), "to"),
        ("send_email", (5, "s", "t"), "to"),
        ("send_email", ("a@b.c", "s", "t", None, [{"filename": "a", "content": ""}]), "attachments"),
        ("send_email", ("a@b.c", "s", "t", None, [{"content_base64": ""}]), "attachments"),
        ("process_image", ("a", "100", 100), "width"),
        ("process_image", ("a", 100, 100, "gif"), "format"),
        ("export_data", ("jobs", []), "filters"),
        ("export_data", ("jobs", {}, "id"), "columns"),
        ("export_data", ("jobs", {}, None, "pdf"), "format"),
        ("generate_report", ("24",), "period_hours"),
        ("import_csv", (None,), "source"),
        ("deliver_webhook", ("http://a.b/", "e", "text"), "data"),
        ("nightly_cleanup", (1.5,), "keep_days"),
        ("flaky", ("2",), "failures"),
    ],
)
def test_a_wrong_payload_is_refused_before_it_is_sent(name: str, args: tuple[Any, ...], field: str) -> None:
    checked = CheckedPayload()
    broker, actor = dramatiq.get_broker(), getattr(actors, name)
    checked.after_declare_actor(broker, actor)

    with pytest.raises(switchyard.PayloadError) as caught:
        checked.before_enqueue(broker, actor.message(*args), None)

    assert caught.value.field.split(".")[0] == field


def test_flaky_fails_as_often_as_ordered() -> None:
    for attempt in (1, 2):
        with switchyard.job_context(attempt=attempt), pytest.raises(RuntimeError, match=f"attempt {attempt} fails"):
            flaky(failures=2)
    with switchyard.job_context(attempt=3):
        assert flaky(failures=2) == {"attempts": 3}
    with switchyard.job_context(), pytest.raises(Permanent):
        flaky(failures=10)


def test_primes_are_counted_with_progress() -> None:
    with switchyard.job_context() as job:
        assert count_primes(10_000) == 1_229
        assert [percent for percent, _ in job.progress_calls] == sorted(percent for percent, _ in job.progress_calls)
        assert len(job.progress_calls) == 999
    with switchyard.job_context(), pytest.raises(Permanent, match="below: must be 2 to 100,000,000, not 1"):
        count_primes(1)


def test_paced_starts_ten_times_a_second_and_not_at_once() -> None:
    assert (paced.options["rate_limit"], paced.options["rate_limit_burst"], paced(7)) == ("10/second", 1, 7)


def test_doomed_fails_with_its_reason() -> None:
    with pytest.raises(RuntimeError, match="no luck"):
        doomed("no luck")
