"""What a ``dramatiq`` worker loads to run the jobs of ``secret_jobs``."""

from __future__ import annotations

import switchyard
from tests.acceptance.secret_jobs import declare

declare(switchyard.configure())
