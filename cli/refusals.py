"""What Postgres said when it could not be reached, as a sentence about DATABASE_URL with the way out. Never holds a password."""

from __future__ import annotations

import re
import shlex
from typing import Final

from psycopg.conninfo import conninfo_to_dict

from errors import LedgerUnavailable, SettingsError
from settings import Settings

#: libpq's own words, in front of what the server or the system said.
_PLACE: Final = re.compile(
    r'connection to server (?:at "(?P<host>[^"]*)"(?: \([^)]*\))?, port (?P<port>\d+)|on socket "(?P<socket>[^"]*)") failed: '
)
_NO_DATABASE: Final = re.compile(r'FATAL: +database "(?P<name>.*)" does not exist')
_NO_ROLE: Final = re.compile(r'FATAL: +role "(?P<name>.*)" does not exist')
_NO_LOGIN: Final = re.compile(r'FATAL: +password authentication failed for user "(?P<name>.*)"|no password supplied')
_DEFAULT_PORT: Final = "5432"


def database_refusal(error: LedgerUnavailable, settings: Settings) -> SettingsError:
    """The error to show for a database that ``settings`` name and that cannot be used.

    Postgres may speak another language than English; then its own words are shown as they are.
    """
    said = _explained(error.headline, settings)
    if "database_url" not in settings.model_fields_set:
        said = f"it is not set, so the default was tried: {said}. Where `switchyard up` runs, paste the lines that it printed instead"
    return SettingsError("DATABASE_URL", said)


def _explained(said: str, settings: Settings) -> str:
    found = _PLACE.search(said)
    if found is None:
        return said
    place = found["socket"] or f"{found['host']}:{found['port']}"
    reply = said[found.end() :]
    if missing := _NO_DATABASE.search(reply):
        command = shlex.join(["createdb", *_options(settings), missing["name"]])
        return f'Postgres at {place} has no database "{missing["name"]}"; create it: {command}'
    if missing := _NO_ROLE.search(reply):
        return f'Postgres at {place} has no user "{missing["name"]}"; name one that it has, or create it with createuser'
    if _NO_LOGIN.search(reply):
        return f"Postgres at {place} refused the login; check user and password"
    if reply.startswith("FATAL:"):
        return f"Postgres at {place} refused: {reply.removeprefix('FATAL:').strip()}"
    return f"nobody answers at {place} ({reply.strip()})"


def _options(settings: Settings) -> list[str]:
    """Where createdb has to go, and as whom."""
    url = conninfo_to_dict(settings.database_url.get_secret_value())
    options = [("-h", url.get("host")), ("-p", url.get("port")), ("-U", url.get("user"))]
    return [word for flag, value in options if value and value != _DEFAULT_PORT for word in (flag, str(value))]
