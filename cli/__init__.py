"""The command line, thin over the rest.

commands                          the commands and their options
migrating, keeping, up, demo/     what they do
listing                           ``jobs`` and ``show``
cancelling, pausing, editing      what steers jobs: a command or three each, added below
batches                           ``batches``
limits                            ``limits``: look at them, set and reset them
status, health                    ``status`` and ``workers``: is the system healthy, and what makes it so or not
choosing, ids, knowing            options that choose jobs; ids by their beginnings; names that nobody knows
reporting, refusals               errors of ours as one line and an exit code; why a database cannot be used
tables, terminal, moments, plain  lists and details; widths, and texts of others made harmless; times; ``--json``
loading                           modules with actors, for what has to know them
keys, secrets                     ``key``; ``secrets new-key`` and ``secrets rotate``
schedules                         ``schedules``
dead                              ``dead``: dead letters
supervisor                        worker processes, kept alive, for ``worker``
stack                             Postgres, broker and workers on one machine, for ``up`` and ``demo``
postgres_server, redis_server     servers of our own for it
embedded, processes, signals      how these are run
guard                             ends them when everything else failed to
"""

from cli.batches import batches
from cli.cancelling import cancel_command
from cli.commands import main
from cli.dead import dead
from cli.editing import edit_command
from cli.keys import key_command
from cli.limits import limits_group
from cli.listing import jobs_command, show_command
from cli.pausing import pause_command, paused_command, resume_command
from cli.schedules import schedules
from cli.secrets import secrets_group
from cli.status import status_command, workers_command

main.add_command(jobs_command)
main.add_command(show_command)
main.add_command(cancel_command)
main.add_command(edit_command)
main.add_command(pause_command)
main.add_command(resume_command)
main.add_command(paused_command)
main.add_command(key_command)
main.add_command(secrets_group)
main.add_command(schedules)
main.add_command(batches)
main.add_command(dead)
main.add_command(limits_group)
main.add_command(status_command)
main.add_command(workers_command)

__all__ = ["main"]
