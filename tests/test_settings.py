"""Settings are read once, hide passwords, are documented as they are, and refuse what cannot work by the variable's name."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

import settings as module
from errors import SettingsError
from settings import Settings, child_environment, load, variables
from tests import settings_reference
from tests.rig.processes import ROOT


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_defaults_need_no_environment_at_all():
    found = load()

    assert (found.broker, found.lease, found.sweep) == ("postgres", 30.0, 5.0)


def test_keywords_win_over_the_environment_which_wins_over_the_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    (tmp_path / ".env").write_text("LEASE=10\nSWEEP=1\nMAX_LOST=7\n")
    monkeypatch.setenv("SWEEP", "2")
    monkeypatch.setenv("MAX_LOST", "8")

    found = load(max_lost=9)

    assert (found.lease, found.sweep, found.max_lost) == (10.0, 2.0, 9)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("30", 30), ("30s", 30), ("500ms", 0.5), ("5m", 300), ("5 min", 300), ("1h", 3600), ("7d", 604_800), (" 1.5 s ", 1.5)],
)
def test_durations_may_carry_a_unit(monkeypatch: pytest.MonkeyPatch, written: str, seconds: float):
    monkeypatch.setenv("UNKNOWN_ACTOR_AFTER", written)

    assert load().unknown_actor_after == seconds


def test_durations_may_be_timedeltas():
    assert load(lease=timedelta(minutes=1)).lease == 60


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("BROKER", "rabbit", "'rabbit' is unknown; write postgres, redis or rabbitmq"),
        (
            "QUEUE_BROKERS",
            "exports",
            "'exports' is no pair; write queue=broker pairs by comma, such as exports=rabbitmq,reports=redis",
        ),
        ("QUEUE_BROKERS", "a=rabbit", "a=rabbit: 'rabbit' is unknown; write postgres, redis or rabbitmq"),
        ("QUEUE_BROKERS", "a=stub", "a=stub: stub is for unit tests, and only as BROKER"),
        ("QUEUE_BROKERS", "a=redis,a=postgres", "the queue 'a' stands there twice"),
        ("QUEUE_BROKERS", "*=redis", "* is no queue; BROKER is the broker of every queue that is not named here"),
        ("QUEUE_BROKERS", "my queue=redis", "'my queue' is no name of a queue"),
        ("LEASE", "soon", "write a duration such as 30s"),
        ("WATCHDOG", "500ms", "write 0 (never) or at least 3s"),
        ("LEASE", "0.1", "0.1 is below 0.5"),
        ("LEASE", "nan", "write a duration such as 30s"),
        ("DATABASE_URL", "mysql://localhost/x", "write postgresql://user:password@host:port/database"),
        ("DATABASE_URL", "postgresql://me@db:abc/x", "the port has to be a number from 1 to 65535"),
        ("DATABASE_URL", "postgresql://me@db:70000/x", "the port has to be a number from 1 to 65535"),
        ("DATABASE_URL", "postgresql://me@db/x?foo=1", "what follows the ? is no parameter of Postgres"),
        ("DATABASE_URL", "postgresql://me:%zz@db/x", "is no URL of Postgres"),
        ("POOL_SIZE", "-1", "POOL_SIZE: -1 is below 1"),
        ("POOL_SIZE", "1000", "1000 is above 500"),
        ("POOL_SIZE", "ten", "'ten' is no whole number"),
        ("SEND_TIMEOUT", "0", "0 is not above 0"),
        ("REDIS_URL", "http://localhost", "redis:// or rediss://"),
        ("RABBITMQ_URL", "localhost:5672", "amqp:// or amqps://"),
        ("SMTP_URL", "http://mail", "smtp:// or smtps://"),
        ("BROKER_PREFIX", "two words", "'two words' does not fit; write 1 to 40 letters, digits, _ or -"),
        ("PGBOUNCER", "perhaps", "'perhaps' is neither true nor false"),
        ("MAX_LOST", "0", "MAX_LOST: 0 is below 1"),
        ("MESSAGE_OPTIONS", "tenant,my word", "'my word' is no name of an option; write names by comma"),
        ("LOG_LEVEL", "loud", "'LOUD' is unknown; write DEBUG, INFO, WARNING or ERROR"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
):
    monkeypatch.setenv(variable, value)

    with pytest.raises(SettingsError) as caught:
        load()

    assert caught.value.variable == variable
    assert str(caught.value).startswith(f"{variable}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_wrong_values_are_reported_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BROKER", "kafka")
    monkeypatch.setenv("MAX_LOST", "many")

    with pytest.raises(SettingsError) as caught:
        load()

    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["BROKER", "MAX_LOST"]


def test_a_sweep_longer_than_the_lease_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SWEEP", "31")

    with pytest.raises(SettingsError, match=r"^SWEEP: 31 s must not be longer than LEASE, 30 s$"):
        load()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_endless_durations_are_refused(value: float):
    with pytest.raises(SettingsError, match=r"^LEASE: "):
        load(lease=value)


def test_a_keyword_that_is_no_setting_is_refused():
    with pytest.raises(SettingsError, match=r"^leese: is no setting"):
        load(leese=3)


def test_the_words_of_broker_and_log_level_may_be_written_in_any_case(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BROKER", "Redis ")
    monkeypatch.setenv("LOG_LEVEL", "warning")

    assert (load().broker, load().log_level) == ("redis", "WARNING")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_usual_spelling_of_a_postgres_url_is_understood(scheme: str):
    url = load(database_url=f"{scheme}://me:secret@db:5433/app").database_url

    assert url.get_secret_value() == "postgresql://me:secret@db:5433/app"


def test_pairs_are_split_at_commas(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OUTBOUND_ALLOW", "127.0.0.1:8080, hooks.internal:443,")

    assert load().outbound_allow == ("127.0.0.1:8080", "hooks.internal:443")


def test_passwords_are_shown_neither_in_the_settings_nor_in_an_error(monkeypatch: pytest.MonkeyPatch):
    found = load(database_url="postgresql://me:hunter2@db/app", webhook_secret="hunter2")
    monkeypatch.setenv("REDIS_URL", "http://me:hunter2@cache")

    with pytest.raises(SettingsError) as caught:
        load()

    assert "hunter2" not in repr(found) + str(found) + str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hun/ter2@db/x",
        "postgresql://me:hun%ter2@db/x",
        "postgresql://me@db:hunter2/x",
        "postgresql://me@db/x?hunter2=1",
    ],
)
def test_no_part_of_a_wrong_postgres_url_is_shown(url: str):
    with pytest.raises(SettingsError) as caught:
        load(database_url=url)

    assert "hun" not in str(caught.value)
    assert "ter2" not in str(caught.value)


def test_the_value_of_a_secret_is_never_shown_whatever_is_wrong_with_it(monkeypatch: pytest.MonkeyPatch):
    # As if pydantic's own error for a secret were among those that quote the value.
    monkeypatch.setitem(module._FORMS, "string_type", "{value} is no text")

    with pytest.raises(SettingsError) as caught:
        load(smtp_url=123456)

    assert "123456" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["postgresql:///app", "postgresql://me@a:5432,b:/app", "postgresql://me@[::1]:5432/app?sslmode=require"]
)
def test_every_url_that_postgres_reads_is_taken(url: str):
    assert load(database_url=url).database_url.get_secret_value() == url


def test_retention_of_single_queues_and_actors_is_read_with_its_units(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RETAIN_OVERRIDES", " completed:queue:exports = 1d, dead:actor:send_email=90m ,")

    assert load().retain_overrides == {"completed:queue:exports": 86_400.0, "dead:actor:send_email": 5_400.0}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("exports=1d", "'exports' names no jobs; write state:queue:name=duration"),
        ("running:queue:exports=1d", "names no jobs"),
        ("dead:tag:x=1d", "names no jobs"),
        ("dead:queue:=1d", "names no jobs"),
        ("dead:queue:exports", "is no pair"),
        ("dead:queue:exports=soon", "write a duration such as 30s"),
        ("dead:queue:exports=0", "out of range"),
        ("dead:queue:exports=1d,dead:queue:exports=2d", "stands there twice"),
    ],
)
def test_a_retention_that_names_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, text: str, reason: str):
    monkeypatch.setenv("RETAIN_OVERRIDES", text)

    with pytest.raises(SettingsError, match=f"RETAIN_OVERRIDES: .*{reason}"):
        load()


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        load().lease = 5


def test_settings_survive_the_way_through_the_environment_of_another_process(monkeypatch: pytest.MonkeyPatch):
    original = load(
        broker="redis",
        lease=2.5,
        sweep=0.5,
        pgbouncer=True,
        outbound_allow=("a:1", "b:2"),
        webhook_secret="key",
        retain_overrides={"dead:actor:send_email": 86_400.0, "completed:queue:exports": 3_600.0},
    )
    for name, value in variables(original).items():
        monkeypatch.setenv(name, value)

    assert load() == original


def test_a_child_gets_the_caller_environment_with_the_settings_in_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CALLERS_OWN", "kept")
    monkeypatch.setenv("BROKER", "redis")

    environment = child_environment(load(broker="rabbitmq"))

    assert (environment["CALLERS_OWN"], environment["BROKER"]) == ("kept", "rabbitmq")


def test_every_setting_says_what_it_means():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
    assert module.__doc__


def test_the_example_file_and_the_reference_list_every_setting_as_it_is():
    assert (ROOT / ".env.example").read_text() == settings_reference.env_example(), "run `make reference`"
    assert (ROOT / "docs" / "settings.md").read_text() == settings_reference.reference(), "run `make reference`"


def test_the_example_file_can_be_used_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    uncommented = (ROOT / ".env.example").read_text().replace("\n#", "\n").replace("\n ", "\n# ")
    (tmp_path / ".env").write_text(uncommented)
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")

    found = load()
    monkeypatch.setitem(Settings.model_config, "env_file", None)

    assert found == load()


def test_queues_may_have_brokers_of_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QUEUE_BROKERS", " exports = RabbitMQ , reports=redis,")

    found = load(broker="redis")

    assert found.routes == {"*": "redis", "exports": "rabbitmq", "reports": "redis"}
    assert variables(found)["QUEUE_BROKERS"] == "exports=rabbitmq,reports=redis"
