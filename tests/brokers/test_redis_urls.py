"""URLs of Redis with more to say than where it is."""

from __future__ import annotations

import pytest

from brokers import make_transport
from errors import SettingsError
from runtime.triggers import Outgoing
from settings import Settings


def named(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"broker": "redis", "redis_url": type(settings.redis_url)(url)})


@pytest.mark.parametrize(
    "more",
    ["max_connections=5&timeout=3", "decode_responses=True", "protocol=3", "socket_timeout=0.001", "health_check_interval=1"],
)
def test_what_other_clients_of_the_same_url_want_does_no_harm(settings, redis_url, more):
    url = f"{redis_url}{'&' if '?' in redis_url else '?'}{more}"
    transport = make_transport("redis", named(settings, url))
    sender, receiver = transport.sender(), transport.receiver()
    try:
        assert sender.publish([Outgoing(7, "default", "work")]) == []
        assert transport.depth(["default"]) == {"default": 1}
        assert [trigger.job_id for trigger in receiver.fetch(["default"], 1, 5.0).triggers] == [7]
    finally:
        sender.close()
        receiver.close()
        transport.close()


def test_a_parameter_that_nobody_knows_is_refused_without_its_password(settings):
    with pytest.raises(SettingsError, match="REDIS_URL: what follows the") as refused:
        make_transport("redis", named(settings, "redis://user:hidden@localhost/0?color=red"))

    assert "hidden" not in str(refused.value)
