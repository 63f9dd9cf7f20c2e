"""How triggers travel: the registry of transports, by the value of BROKER that selects them.

To add one: a module in this folder with a ``Transport`` in it, and a line below; the contract tests and the conformance suite
pick it up. Modules are imported on first use, because each needs a driver that only those who use it have installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from brokers.transport import Transport
from errors import SettingsError
from settings import Settings

#: Per name: the module, the class in it, and the driver it imports (which is an extra of the package, or None).
_REGISTRY: Final[dict[str, tuple[str, str, str | None]]] = {
    "postgres": ("brokers.postgres", "PostgresTransport", None),
    "redis": ("brokers.redis", "RedisTransport", "redis"),
    "rabbitmq": ("brokers.rabbitmq", "RabbitmqTransport", "pika"),
}

#: Every name there is a transport for, the default first.
TRANSPORTS: Final = tuple(_REGISTRY)


def transport_class(name: str) -> type[Transport]:
    """The class behind a name. Raises: SettingsError: there is none, or its driver is not installed."""
    if name not in _REGISTRY:
        raise SettingsError("BROKER", f"there is no transport {name!r}; write one of {', '.join(_REGISTRY)}")
    module, attribute, driver = _REGISTRY[name]
    try:
        found: type[Transport] = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if driver is None or str(error.name).partition(".")[0] != driver:
            raise
        raise SettingsError("BROKER", f"{name} needs a driver that is not installed: pip install 'switchyard[{name}]'") from error
    return found


def make_transport(name: str, settings: Settings) -> Transport:
    """The transport of a name; connects to nothing yet. Raises: SettingsError: as ``transport_class``."""
    return transport_class(name)(settings)
