"""A worker for the counted jobs: ``dramatiq loadtest.counted_worker``."""

import switchyard
from loadtest.counted_jobs import declare

JOBS = declare(switchyard.configure())
