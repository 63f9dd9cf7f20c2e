"""Where the ledger is, and which migration this code needs. A worker refuses to start on a database that is behind it."""

from __future__ import annotations

from typing import Final

#: The schema of the ledger's tables.
SCHEMA: Final = "switchyard"
#: The newest revision of ``migrations/versions``.
LEDGER_REVISION: Final = "0013"
