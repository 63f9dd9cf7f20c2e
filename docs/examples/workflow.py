"""A workflow: steps one after the other, a group among them, a callback, and a step that is not done twice.

dramatiq workflow &      # the worker
python workflow.py       # sends, waits, prints
"""

from __future__ import annotations

import dramatiq

import switchyard
from switchyard import current_job, group, pipeline

switchyard.configure()


@dramatiq.actor
def find_photos(album: str) -> list[str]:
    return [f"{album}/1.jpg", f"{album}/2.jpg", f"{album}/3.jpg"]


@dramatiq.actor
def resize(width: int, photos: list[str]) -> dict[str, int]:
    return {"width": width, "photos": len(photos)}


@dramatiq.actor(max_retries=3, min_backoff=100)
def bill(sizes: list[dict[str, int]]) -> dict[str, object]:
    job = current_job()
    # The first attempt fails after it has charged; the second one gets the receipt and charges nobody.
    receipt = job.step("charge", charge, cents=10 * sum(size["photos"] for size in sizes))
    if job.attempt == 1:
        raise ConnectionError("the network went away")
    return {"receipt": receipt, "attempt": job.attempt}


def charge(cents: int) -> str:
    return f"{cents} cents, in attempt {current_job().attempt}"


@dramatiq.actor
def announce(album: str) -> None:
    current_job().log(f"{album} is ready")


def main() -> None:
    sizes = group(
        [resize.message(100), resize.message(500)],
        name="sizes of summer",
        on_success=announce.message("summer"),
    )
    order = pipeline([find_photos.message("summer"), sizes, bill.message()]).run()

    print("billed:", order.get_result(block=True, timeout=60_000))
    print("steps:", *order.get_results(), sep="\n  ")

    batch = switchyard.batch(sizes.id)
    print(f"{batch.name}: {batch.state}, {batch.percent:.0f} % of {batch.total} jobs")
    for callback in batch.callbacks:
        print(callback.when, callback.actor, switchyard.wait(callback.id, timeout=60).state)


if __name__ == "__main__":
    main()

# Prints:
# billed: {'receipt': '60 cents, in attempt 1', 'attempt': 2}
# steps:
#   ['summer/1.jpg', 'summer/2.jpg', 'summer/3.jpg']
#   [{'width': 100, 'photos': 3}, {'width': 500, 'photos': 3}]
#   {'receipt': '60 cents, in attempt 1', 'attempt': 2}
# sizes of summer: succeeded, 100 % of 2 jobs
# on_success announce completed
