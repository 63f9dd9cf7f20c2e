"""Modules with actors, for commands that need to know them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence


def load_actors(modules: Sequence[str]) -> None:
    """Import them, also from the working directory.

    Raises:
        ModuleNotFoundError: there is no such module; the text says which, and names the option.
    """
    if modules:
        sys.path.insert(0, ".")
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the module {module} cannot be imported ({error}); say where actors are with --actors", name=error.name
            ) from None
