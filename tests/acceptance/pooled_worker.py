"""What worker processes behind PgBouncer import."""

from __future__ import annotations

import switchyard
from tests.acceptance.pooled_jobs import declare

declare(switchyard.configure())
