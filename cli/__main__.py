"""``python -m cli``: the ``switchyard`` command for whoever starts it by its interpreter, as the stack does."""

from cli.commands import main

main(prog_name="switchyard")
