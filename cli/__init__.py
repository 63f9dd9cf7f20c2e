"""The command line, thin over the rest.

commands                          the commands and their options
migrating, keeping, up, demo/     what they do
supervisor                        worker processes, kept alive, for ``worker``
stack                             Postgres, broker and workers on one machine, for ``up`` and ``demo``
postgres_server, redis_server     servers of our own for it
embedded, processes, signals      how these are run
refusals                          says why a database cannot be used, and what to do
guard                             ends them when everything else failed to
"""

from cli.commands import main

__all__ = ["main"]
