"""A vhost whose queues are quorum queues unless somebody says otherwise, as hosted RabbitMQ and version 4 have them."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from runtime.triggers import Outgoing
from settings import Settings
from tests.rig.rabbitmq import PrivateRabbit

VHOST = "of_quorum_queues"


@pytest.fixture
def quorum_settings(server: PrivateRabbit, rabbit_settings: Settings) -> Iterator[Settings]:
    server.ctl("add_vhost", VHOST, "--default-queue-type", "quorum")
    server.ctl("set_permissions", "-p", VHOST, str(urlsplit(server.url).username or "guest"), ".*", ".*", ".*")
    url = urlsplit(server.url)._replace(path=f"/{VHOST}").geturl()
    yield rabbit_settings.model_copy(update={"rabbitmq_url": type(rabbit_settings.rabbitmq_url)(url)})
    server.ctl("delete_vhost", VHOST)


def test_triggers_travel_in_order_of_priority_where_queues_are_quorum_queues_by_default(make_ends, quorum_settings, server):
    ends = make_ends(quorum_settings)
    sender, receiver = ends.sender(), ends.receiver()
    batch = [Outgoing(number, "default", "work", priority) for number, priority in enumerate((5, 0, -5), start=1)]

    assert sender.publish(batch) == []
    assert sender.flush(10.0) == []

    fetched = []
    while len(fetched) < 3:
        got = receiver.fetch(["default"], 10, 10.0)
        assert got.triggers
        fetched += got.triggers
        receiver.settle(got.triggers)
    assert [trigger.job_id for trigger in fetched] == [3, 2, 1]
    assert "classic" in server.ctl("list_queues", "-p", VHOST, "type")
