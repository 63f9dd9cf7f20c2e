"""``switchyard demo``: one real job of every type through a whole stack, shown while it happens, checked when it is over.

material   what the jobs need: a photo, a CSV file
receiver   the server that the webhook goes to
steps      which jobs are sent, how each has to end, and how that is checked
run        sends them, follows them
board      shows them: a live table, or lines where there is no terminal
summary    says what came of it
"""

from cli.demo.run import run_demo

__all__ = ["run_demo"]
