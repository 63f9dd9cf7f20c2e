"""What must not be forgotten: background duties that repair what faults leave behind.

    relay     publishes what is due: scheduled and retrying jobs, and pending ones whose trigger is not in the broker
    lost      finds the pending jobs whose trigger is gone
    rescue    takes back the jobs of workers that died
    expiry    ends what waited beyond its max_age
    pauses    parks what is paused, and lets it go on
    dead_letters  tells of deaths: the hooks' jobs, and the brokers' own dead-letter places
    retention removes jobs that ended long ago
    samples   records how full the queues are, for charts
    batches   ends the batches (groups) whose jobs have ended while nobody looked
    unknown   notices jobs that no worker knows, and buries those that waited for too long
    strays    moves pending jobs from a broker that is their queue's route no more
    schedule  makes the jobs that come by the clock, and has schedules follow what workers declare
    workers   forgets processes that died without a word

One duty per file, one line each in ``keeper.duties``; ``keeper.loop`` runs them in a thread of every worker process. None needs a
leader: each takes rows with SKIP LOCKED.
"""

from keeper.loop import Keeper

__all__ = ["Keeper"]
