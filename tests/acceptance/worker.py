"""What worker processes of the acceptance tests import."""

import switchyard
from tests.acceptance.jobs import declare

broker = switchyard.configure()
actors = declare(broker)
