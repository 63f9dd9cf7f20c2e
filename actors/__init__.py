"""The job types that ship with Switchyard, one module a family; ``dramatiq actors`` starts here.

To add one: a module beside these, and its line below. The broker has to be set before an actor is declared, so ``configure()``
comes first; it reads the settings and connects to nothing.
"""

import switchyard

switchyard.configure()

from actors.emails import send_email  # noqa: E402
from actors.examples import count_primes, doomed, flaky, paced  # noqa: E402
from actors.exports import export_data  # noqa: E402
from actors.images import process_image  # noqa: E402
from actors.imports import import_csv  # noqa: E402
from actors.periodic import daily_digest, hourly_statistics, nightly_cleanup, weekly_report  # noqa: E402
from actors.reports import generate_report  # noqa: E402
from actors.webhooks import deliver_webhook  # noqa: E402

__all__ = [
    "count_primes",
    "daily_digest",
    "deliver_webhook",
    "doomed",
    "export_data",
    "flaky",
    "generate_report",
    "hourly_statistics",
    "import_csv",
    "nightly_cleanup",
    "paced",
    "process_image",
    "send_email",
    "weekly_report",
]
