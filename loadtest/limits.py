"""Does a rate limit let through exactly what it says, no faster and no slower, and is no job refused twice?

    python -m loadtest.limits --broker redis --jobs 10000 --rate 100/second
    python -m loadtest.limits --broker redis --jobs 10000 --rate 1/10s --keys 1000

Sends all jobs at once, starts a real ``dramatiq`` worker, and watches until the last one has ended. A trigger in the load test's own
database writes down each step of each job, so that the ledger is not its own witness. What is printed:

    took      from a key's first start to its last, of the slowest key, and what the limit allows: (jobs per key - burst) / rate
    fullest   by how many the fullest window of any length of any key's starts exceeds its burst and what the rate brings in it;
              0 and below: never
    touched   how often a job was decided about, its start included: once, or once put off and then started; the most, and the
              share of jobs that were touched more than twice
    late      from a job's promised time to its start: median, 99 %, the most

Two results, 2 cores of an AMD EPYC that others used too (load 5 and 1.6), 2026-11-28:

    10,000 jobs at 100/second, burst 100, by redis
    took      99.07 s of 99.00 s
    fullest   +0.41
    touched   2 times at the most, 0.00% more than twice
    late      34 ms, 754 ms (99 %), 980 ms

    10,000 jobs at 1/10s, burst 2, 1,000 keys, by redis
    took      80.03 s of 80.00 s
    fullest   +0.00
    touched   2 times at the most, 0.00% more than twice
    late      22 ms, 427 ms (99 %), 469 ms

Exit code 1 when a window is exceeded by what 50 ms bring, the time is off by more than 2 %, a job was touched more than twice (but
for one in a hundred, where the machine stands still for longer than the burst lasts), or a row is not completed in one attempt.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ledger import limits as ledger_limits
from ledger.limits import Rule, default_burst, parse_rate
from loadtest.report import command, machine
from loadtest.stand import ROOT, LoadtestFailed, Stand, stand
from settings import child_environment

#: Time between two looks at how far it is, in seconds.
LOOK: Final = 0.2
#: What the way from a decision to the note of it may take, in seconds.
SLACK: Final = 0.05
#: How far the time may be off.
PRECISION: Final = 0.02

WITNESS: Final = (
    "CREATE TABLE public.step (job bigint, after text, promised timestamptz, at timestamptz DEFAULT clock_timestamp())",
    "CREATE FUNCTION public.note_step() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN"
    " INSERT INTO public.step VALUES (NEW.id, NEW.state, CASE WHEN OLD.wait_reason IS NOT NULL THEN OLD.run_at END); RETURN NULL; END'",
    "CREATE TRIGGER note_step AFTER UPDATE ON switchyard.job FOR EACH ROW WHEN (OLD.state <> NEW.state"
    " AND NEW.state IN ('running', 'scheduled')) EXECUTE FUNCTION public.note_step()",
)
STARTS: Final = (
    "SELECT j.rate_key, extract(epoch FROM s.at)::float8 FROM public.step AS s JOIN switchyard.job AS j ON j.id = s.job"
    " WHERE s.after = 'running' ORDER BY s.at"
)


def fullest(starts: list[float], rate: float, burst: int) -> float:
    """By how many the fullest window of the sorted starts exceeds its burst and what the rate brings in it."""
    worst = float("-inf")
    least = float("inf")
    for number, at in enumerate(starts):
        # What came beyond the rate since the beginning; a window is the difference of two of these.
        level = number - rate * (at - starts[0])
        least = min(least, level)
        worst = max(worst, level - least + 1 - burst)
    return worst


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Send, work, look. Raises: LoadtestFailed: it took too long, or a row did not end as it must."""
    amount, period = parse_rate(options.rate)
    burst = options.burst or default_burst(amount, period)
    rate, per_key = amount / period, -(-options.jobs // options.keys)
    wanted = max(0.0, (per_key - burst) / rate)
    with stand(options.broker) as place:
        facts = machine(place)
        for statement in WITNESS:
            place.database.execute(statement.encode())
        ledger_limits.declare_rules(place.database, [Rule("rate", "limited", 1, 1.0, 1)])
        ledger_limits.set_rule(place.database, Rule("rate", "limited", amount, period, burst))
        environment = child_environment(place.settings) | {"PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "loadtest.limited_jobs", str(options.jobs), str(options.keys)]
        subprocess.run(words, env=environment, cwd=ROOT, check=True, timeout=120)
        with place.worker("loadtest.limited_jobs", processes=options.processes, threads=options.threads) as worker:
            deadline = monotonic() + 2 * wanted + 60
            while place.query("SELECT count(*) FROM switchyard.job WHERE state = 'completed'") != (options.jobs,):
                worker.check()
                if monotonic() > deadline:
                    raise LoadtestFailed("it takes more than twice as long as it may")
                sleep(LOOK)
        figures = _figures(place, rate, burst) | {"wanted": wanted, "burst": burst}
        if place.query("SELECT min(attempt), max(attempt), max(lost), max(failures) FROM switchyard.job") != (1, 1, 0, 0):
            raise LoadtestFailed("not every job completed in one attempt")
    result = {"options": vars(options), "machine": facts, "figures": figures}
    if figures["fullest"] > SLACK * rate:
        raise LoadtestFailed(f"the limit was exceeded:\n{text(result)}")
    if abs(figures["took"] - wanted) > PRECISION * (wanted + burst / rate) or figures["more than twice"] > 0.01:
        raise LoadtestFailed(f"it is off:\n{text(result)}")
    return result


def _figures(place: Stand, rate: float, burst: int) -> dict[str, float]:
    by_key: dict[str, list[float]] = defaultdict(list)
    for key, at in place.database.execute(STARTS.encode()).fetchall():
        by_key[key].append(at)
    touched = [row[0] for row in place.database.execute(b"SELECT count(*) FROM public.step GROUP BY job").fetchall()]
    late = place.query(
        "SELECT percentile_cont(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM at - promised)::float8)"
        " FROM public.step WHERE after = 'running' AND promised IS NOT NULL"
    )[0] or [0.0, 0.0, 0.0]
    return {
        "took": max(starts[-1] - starts[0] for starts in by_key.values()),
        "fullest": max(fullest(starts, rate, burst) for starts in by_key.values()),
        "most touched": max(touched),
        "more than twice": sum(count > 2 for count in touched) / len(touched),
        "late": late[0],
        "late 99 %": late[1],
        "latest": late[2],
    }


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    options, found = result["options"], result["figures"]
    facts = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    keys = "" if options["keys"] == 1 else f", {options['keys']:,} keys"
    return "\n".join(
        [
            f"{options['jobs']:,} jobs at {options['rate']}, burst {found['burst']}{keys}, by {options['broker']}",
            facts,
            "",
            f"took      {found['took']:.2f} s of {found['wanted']:.2f} s",
            f"fullest   {found['fullest']:+.2f}",
            f"touched   {found['most touched']} times at the most, {found['more than twice']:.2%} more than twice",
            f"late      {found['late'] * 1000:.0f} ms, {found['late 99 %'] * 1000:.0f} ms (99 %), {found['latest'] * 1000:.0f} ms",
        ]
    )


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="loadtest.limits", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--broker", choices=["postgres", "redis", "rabbitmq"], required=True)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs (default 10000)")
    parser.add_argument("--rate", default="100/second", help="of each key (default 100/second)")
    parser.add_argument("--burst", type=int, default=0, help="how many may start together (default: what one second brings)")
    parser.add_argument("--keys", type=int, default=1, help="over so many keys (default 1)")
    parser.add_argument("--processes", type=int, default=1, help="worker processes (default 1)")
    parser.add_argument("--threads", type=int, default=8, help="threads per process (default 8)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(words)
    if options.jobs < 1 or options.keys < 1:
        parser.error("--jobs and --keys: at least 1")
    try:
        parse_rate(options.rate)
    except ValueError as error:
        parser.error(f"--rate: {error}")
    return options


def main(words: list[str] | None = None) -> int:
    """Run the load test. Returns the exit code."""
    return command("loadtest.limits", arguments(words), run, text)


if __name__ == "__main__":
    sys.exit(main())
