"""What the rig's worker processes import: ``dramatiq tests.faults.worker``. Failpoints and mutations come before the first thread."""

import os

import switchyard
from tests.faults import failpoints, mutations
from tests.faults.jobs import declare
from tests.faults.recorder import Recorder

recorder = Recorder(os.environ["FAULTS_LOG"])
failpoints.install(recorder)
mutations.install()
broker = switchyard.configure()
actors = declare(broker, recorder)
