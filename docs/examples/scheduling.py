"""Jobs by the clock: one declared in code, one made at run time, what comes when, and a run by hand.

dramatiq scheduling
python scheduling.py
"""

import time
from datetime import UTC, datetime

import dramatiq

import switchyard
from switchyard import cron, current_job

switchyard.configure()


@dramatiq.actor(periodic=cron("30 2 * * *", timezone="Europe/Berlin", catch_up="last", args=["eu"]))
def close_books(region: str) -> str:
    return f"closed the books of {region}"


@dramatiq.actor
def heartbeat(who: str) -> str:
    job = current_job()
    return f"{who}: {job.schedule} at a whole second: {job.tick_at.microsecond == 0}"


def wait_for(found):
    while not (value := found()):
        time.sleep(0.05)
    return value


if __name__ == "__main__":
    # The nights on which clocks change: skipped is made up for right after the gap, shown twice comes once.
    nightly = cron("30 2 * * *", timezone="Europe/Berlin")
    for night in (datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 10, 24, 12, tzinfo=UTC)):
        print(*(tick.strftime("%d %b %H:%M UTC") for tick in nightly.next(2, after=night)), sep=", ")

    # Workers declare what stands in code; run it now, beside its ticks.
    declared = wait_for(lambda: switchyard.get_schedule("close_books"))
    print(declared.name, declared.source, declared.catch_up)
    print(switchyard.run_schedule("close_books").get_result(block=True))

    # Made at run time, every second (six fields: the second comes first); then removed.
    switchyard.create_schedule("pulse", heartbeat, "* * * * * *", ["node 1"])
    tick = wait_for(lambda: switchyard.schedule_ticks("pulse"))[0]
    print(switchyard.wait(tick.job_id).result)
    switchyard.pause_schedule("pulse")
    print("paused:", switchyard.get_schedule("pulse").due_at is None)
    switchyard.delete_schedule("pulse")
    print(switchyard.get_schedule("pulse"))

# Prints:
# 29 Mar 01:00 UTC, 30 Mar 00:30 UTC
# 25 Oct 00:30 UTC, 26 Oct 01:30 UTC
# close_books declared last
# closed the books of eu
# node 1: pulse at a whole second: True
# paused: True
# None
