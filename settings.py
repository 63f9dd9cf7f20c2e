"""Every fact about a deployment, read once from the environment (or a ``.env`` file) and from nowhere else.

A wrong value stops the start with one line per variable that names it and the fix. Nothing outside this module reads the
environment; a test holds that. Behaviour of single actors is not set here but in their options.
"""

from __future__ import annotations

import base64
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from errors import SettingsError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)?\s*")


def _seconds(value: Any) -> Any:
    """Read ``30``, ``"30"``, ``"30s"``, ``"500ms"``, ``"5m"``, ``"1h"``, ``"7d"`` or a timedelta as seconds."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            raise ValueError("write a duration such as 30s, 500ms, 5m, 1h or 7d")
        return float(match[1]) * _UNITS[match[2] or "s"]
    return value


_CARRIERS: Final = ("postgres", "redis", "rabbitmq")
_ROUTES_FORM: Final = "write queue=broker pairs by comma, such as exports=rabbitmq,reports=redis"
#: What Dramatiq accepts as the name of a queue.
_QUEUE: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9._-]*")
#: Longest name of a queue, in characters. RabbitMQ has 255 bytes for a name, of which BROKER_PREFIX and what ours say beside it take 80. A
#: sender that meets a longer one fails with all that it publishes at once, and again each time.
MAX_QUEUE: Final = 160

_POSTGRES_FORM: Final = "write postgresql://user:password@host:port/database, with @ : / ? # % in the password as %40 and so on"

#: Pydantic's errors in words that say what to write; the rest speak for themselves.
_FORMS: Final = {
    "bool_parsing": "{value!r} is neither true nor false",
    "float_parsing": "{value!r} is no number",
    "finite_number": "must be finite",
    "greater_than": "{value} is not above {gt}",
    "greater_than_equal": "{value} is below {ge}",
    "int_from_float": "{value} is no whole number",
    "int_parsing": "{value!r} is no whole number",
    "less_than_equal": "{value} is above {le}",
    "literal_error": "{value!r} is unknown; write {expected}",
    "string_pattern_mismatch": "{value!r} does not fit; write 1 to 40 letters, digits, _ or -",
}

#: A duration in seconds; in the environment also with a unit.
Seconds = Annotated[float, BeforeValidator(_seconds), Field(allow_inf_nan=False)]

#: So long that nothing is ever removed.
_LONGEST: Final = 100 * 366 * 86_400
_RETAIN_FORM: Final = "write state:queue:name=duration or state:actor:name=duration by comma, such as completed:queue:exports=1d"
_RETAIN_KEY: Final = re.compile(r"(completed|dead|cancelled):(queue|actor):[a-zA-Z_][a-zA-Z0-9._-]*")

BrokerName = Annotated[
    Literal["postgres", "redis", "rabbitmq", "stub"],
    BeforeValidator(lambda value: value.strip().lower() if isinstance(value, str) else value),
]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    BeforeValidator(lambda value: value.strip().upper() if isinstance(value, str) else value),
]


class Settings(BaseSettings):
    """The settings of one process; frozen. Each field is the variable of the same name in capitals."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

    database_url: SecretStr = Field(
        default=SecretStr("postgresql://postgres@127.0.0.1:5432/switchyard"),
        description="Postgres with the ledger, as postgresql://user:password@host:port/database",
    )
    broker: BrokerName = Field(
        default="postgres",
        description="what carries the triggers: postgres, redis or rabbitmq; stub runs unit tests without any server",
    )
    queue_brokers: Annotated[dict[str, str], NoDecode] = Field(
        default={}, description="queues with another broker than BROKER, as queue=broker by comma: exports=rabbitmq,reports=redis"
    )
    queue_concurrency: Annotated[dict[str, int], NoDecode] = Field(
        default={},
        description="how many jobs of a queue may run at once over all workers, as queue=number by comma: exports=1,images=2",
    )
    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"), description="used when Redis carries the triggers of any queue"
    )
    rabbitmq_url: SecretStr = Field(
        default=SecretStr("amqp://guest:guest@127.0.0.1:5672/%2F"),
        description="used when RabbitMQ carries the triggers of any queue",
    )
    broker_prefix: str = Field(
        default="switchyard",
        description="first part of every Redis key and RabbitMQ queue name; systems that share a Redis database or a vhost need one each, "
        "or their jobs start late, since each takes the triggers of the others (logged as an error; `switchyard status`: prefix_shared)",
        pattern=r"^[A-Za-z0-9_-]{1,40}$",
    )
    pgbouncer: bool = Field(
        default=False, description="true behind PgBouncer in transaction mode: no prepared statements, polling instead of LISTEN"
    )

    lease: Seconds = Field(default=30.0, ge=0.5, description="seconds a claim stays valid without a heartbeat (sent every third)")
    sweep: Seconds = Field(default=5.0, ge=0.05, description="seconds between two looks for lost jobs")
    shutdown_grace: Seconds = Field(
        default=25.0, ge=0, description="seconds running jobs may go on after SIGTERM; keep it below the supervisor's own grace"
    )
    watchdog: Seconds = Field(
        default=60.0,
        ge=0,
        description="seconds without a sign of life from one of its own threads after which a worker process ends itself; 0: never",
    )
    send_timeout: Seconds = Field(default=5.0, gt=0, description="seconds a send() waits for Postgres before it raises")
    unknown_actor_after: Seconds = Field(
        default=3600.0, gt=0, description="seconds a job waits for a worker that knows its actor before it is dead"
    )
    max_lost: int = Field(default=3, ge=1, description="how many worker deaths a job may cause before it is dead")
    retain_completed: Seconds = Field(
        default=7 * 86_400.0, ge=1, le=_LONGEST, description="seconds a completed job is kept, its result with it"
    )
    retain_dead: Seconds = Field(default=90 * 86_400.0, ge=1, le=_LONGEST, description="seconds a dead letter is kept")
    retain_cancelled: Seconds = Field(default=7 * 86_400.0, ge=1, le=_LONGEST, description="seconds a cancelled job is kept")
    retain_overrides: Annotated[dict[str, Seconds], NoDecode] = Field(
        default={},
        description="other times for single queues and actors, by comma: completed:queue:exports=1d,dead:actor:send_email=365d; an actor "
        "goes before its queue",
    )
    sample_every: Seconds = Field(
        default=60.0, ge=1, le=3_600, description="seconds between two samples of how full each queue is, for charts"
    )
    idempotency_ttl: Seconds = Field(
        default=86_400.0,
        ge=1,
        le=_LONGEST,
        description="seconds an idempotency key stands for its job, however long that is kept",
    )
    fingerprint_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="key of the fingerprints by which sends with a key are compared, at least 16 characters; unset: SECRET_KEYS, or a "
        "constant: then whoever reads the ledger may try out what short arguments were",
    )
    secret_keys: SecretStr | None = Field(
        default=None,
        description="keys for the arguments that actors keep secret, by comma (`switchyard secrets new-key` makes one): the first "
        "encrypts, all decrypt; the same for senders and workers",
    )
    max_payload_bytes: int = Field(
        default=65_536, ge=1_024, le=16_777_216, description="largest arguments of one job, in bytes of JSON"
    )
    message_options: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="options that messages may have besides those that middleware declares, by comma; others are refused when they are "
        "sent",
    )
    max_result_bytes: int = Field(
        default=262_144, ge=1_024, le=16_777_216, description="largest result of one job, in bytes of JSON"
    )
    max_log_lines: int = Field(default=1_000, ge=0, description="how many job.log() lines one attempt may store")
    pool_size: int = Field(default=10, ge=1, le=500, description="Postgres connections one process may use for sends and reads")

    log_level: LogLevel = Field(default="INFO", description="least severe level that is written")
    log_format: Literal["console", "json"] = Field(default="console", description="console for people, json for log collectors")
    data_dir: Path = Field(default=Path("var"), description="where actors write files: outbox/, storage/, exports/, reports/")

    smtp_url: SecretStr | None = Field(
        default=None,
        description="smtp://user:password@host:587 (STARTTLS) or smtps://…:465; unset: .eml files in DATA_DIR/outbox",
    )
    mail_from: str = Field(default="Switchyard <switchyard@localhost>", description="sender of every e-mail")
    webhook_secret: SecretStr | None = Field(
        default=None, description="key of the webhooks' HMAC-SHA256 signature; unset: webhooks are refused"
    )
    outbound_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="host:port pairs that webhooks and image fetches may reach although they are not public, by comma"
    )

    @field_validator("database_url")
    @classmethod
    def _postgres_url(cls, value: SecretStr) -> SecretStr:
        url = re.sub(r"^(postgres(?:ql)?)(\+psycopg)?://", "postgresql://", value.get_secret_value())
        if not url.startswith("postgresql://"):
            raise ValueError(_POSTGRES_FORM)
        _check_postgres_url(url)
        return SecretStr(url)

    @field_validator("redis_url", "rabbitmq_url", "smtp_url")
    @classmethod
    def _url_scheme(cls, value: SecretStr | None, info: Any) -> SecretStr | None:
        schemes = {"redis_url": ("redis", "rediss", "unix"), "rabbitmq_url": ("amqp", "amqps"), "smtp_url": ("smtp", "smtps")}
        allowed = schemes[info.field_name]
        if value is not None and urlsplit(value.get_secret_value()).scheme not in allowed:
            raise ValueError("write a URL that starts with " + " or ".join(f"{scheme}://" for scheme in allowed))
        return value

    @field_validator("retain_overrides", mode="before")
    @classmethod
    def _split_overrides(cls, value: Any) -> Any:
        return _retain_overrides(value) if isinstance(value, str) else value

    @field_validator("retain_overrides")
    @classmethod
    def _known_overrides(cls, value: dict[str, float]) -> dict[str, float]:
        for key, seconds in value.items():
            if not _RETAIN_KEY.fullmatch(key):
                raise ValueError(f"{key!r} names no jobs; {_RETAIN_FORM}")
            if not 1 <= seconds <= _LONGEST:
                raise ValueError(f"{key}={seconds:g} is out of range: 1 s to 100 years")
        return value

    @field_validator("queue_brokers", mode="before")
    @classmethod
    def _split_routes(cls, value: Any) -> Any:
        return _queue_brokers(value) if isinstance(value, str) else value

    @field_validator("queue_brokers")
    @classmethod
    def _known_brokers(cls, value: dict[str, str]) -> dict[str, str]:
        for queue, broker in value.items():
            _check_route(queue, broker)
        return value

    @field_validator("secret_keys")
    @classmethod
    def _whole_keys(cls, value: SecretStr | None) -> SecretStr | None:
        _secret_keys(value)
        return value

    @field_validator("queue_concurrency", mode="before")
    @classmethod
    def _split_limits(cls, value: Any) -> Any:
        return _queue_limits(value) if isinstance(value, str) else value

    @field_validator("queue_concurrency")
    @classmethod
    def _known_limits(cls, value: dict[str, int]) -> dict[str, int]:
        for queue, limit in value.items():
            check_queue(queue)
            if limit < 1:
                raise ValueError(f"{queue}={limit}: write how many may run at once, at least 1; to stop a queue, pause it")
        return value

    @field_validator("message_options")
    @classmethod
    def _option_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"{name!r} is no name of an option; write names by comma, such as tenant,trace_id")
        return value

    @field_validator("outbound_allow", "message_options", mode="before")
    @classmethod
    def _split_pairs(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("watchdog")
    @classmethod
    def _patient_watchdog(cls, value: float) -> float:
        if 0 < value < 3:
            raise ValueError("write 0 (never) or at least 3s: threads wait for a second as a matter of course")
        return value

    @model_validator(mode="after")
    def _sweep_within_lease(self) -> Settings:
        if self.sweep > self.lease:
            raise ValueError(f"SWEEP: {self.sweep:g} s must not be longer than LEASE, {self.lease:g} s")
        return self

    @property
    def secret_key_bytes(self) -> tuple[bytes, ...]:
        """The keys of SECRET_KEYS, 32 bytes each, the one that encrypts first."""
        return _secret_keys(self.secret_keys)

    @property
    def routes(self) -> dict[str, str]:
        """The broker of each queue as these settings declare it; ``"*"`` stands for every queue that is not named."""
        return {"*": self.broker} | self.queue_brokers


def variables(settings: Settings) -> dict[str, str]:
    """The environment variables that give these settings to another process; passwords are among them."""
    found = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if isinstance(value, tuple):
            value = ",".join(value)
        if isinstance(value, dict):
            value = ",".join(f"{key}={entry}" for key, entry in value.items())
        # An empty variable means the default, and also hides what an .env file says.
        found[name.upper()] = "" if value is None else str(value)
    return found


def child_environment(settings: Settings) -> dict[str, str]:
    """The whole environment for a process that we start: the caller's, with these settings in it."""
    return os.environ | variables(settings)


def load(**overrides: Any) -> Settings:
    """Read the settings from the environment and ``.env``; keywords (lower-case names) win.

    Raises:
        SettingsError: one line per wrong value, each naming its variable.
    """
    unknown = sorted(set(overrides) - set(Settings.model_fields))
    if unknown:
        raise SettingsError(unknown[0], "is no setting; see .env.example for those there are")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise _readable(error) from None


def _secret_keys(value: SecretStr | None) -> tuple[bytes, ...]:
    """Read SECRET_KEYS. Raises: ValueError, which quotes nothing."""
    texts = [] if value is None else [part.strip() for part in value.get_secret_value().split(",") if part.strip()]
    try:
        keys = tuple(base64.b64decode(text, altchars=b"-_", validate=True) for text in texts)
    except ValueError:
        keys = (b"",)
    if any(len(key) != 32 for key in keys):
        raise ValueError("write keys as `switchyard secrets new-key` prints them (32 bytes in base64), by comma")
    return keys


def _retain_overrides(text: str) -> dict[str, Any]:
    """Read ``completed:queue:exports=1d,dead:actor:send_email=365d``. Raises: ValueError."""
    found: dict[str, Any] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        key, equals, duration = (part.strip() for part in pair.partition("="))
        if not (key and equals and duration):
            raise ValueError(f"{pair!r} is no pair; {_RETAIN_FORM}")
        if key in found:
            raise ValueError(f"{key!r} stands there twice; {_RETAIN_FORM}")
        try:
            found[key] = _seconds(duration)
        except ValueError as error:
            raise ValueError(f"{pair}: {error}") from None
    return found


def _queue_brokers(text: str) -> dict[str, str]:
    """Read ``exports=rabbitmq,reports=redis``. Raises: ValueError."""
    found: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        queue, equals, broker = (part.strip() for part in pair.partition("="))
        if not (queue and equals and broker):
            raise ValueError(f"{pair!r} is no pair; {_ROUTES_FORM}")
        if queue in found:
            raise ValueError(f"the queue {queue!r} stands there twice; {_ROUTES_FORM}")
        found[queue] = broker.lower()
    return found


def _queue_limits(text: str) -> dict[str, int]:
    """Read ``exports=1,images=2``. Raises: ValueError."""
    found: dict[str, int] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        queue, equals, number = (part.strip() for part in pair.partition("="))
        if not (queue and equals and re.fullmatch(r"-?[0-9]{1,9}", number)):
            raise ValueError(f"{pair!r} is no pair; write queue=number by comma, such as exports=1,images=2")
        if queue in found:
            raise ValueError(f"the queue {queue!r} stands there twice; write queue=number by comma, such as exports=1,images=2")
        found[queue] = int(number)
    return found


def check_queue(name: str) -> None:
    """Raises: ValueError: no queue can have this name."""
    if not _QUEUE.fullmatch(name):
        raise ValueError(f"{name!r:.50} is no name of a queue; write letters, digits, _, - and ., beginning with a letter or _")
    if len(name) > MAX_QUEUE:
        raise ValueError(f"{name!r:.50} is too long for a queue: {len(name)} characters, where {MAX_QUEUE} are the most")


def _check_route(queue: str, broker: str) -> None:
    """Raises: ValueError: no queue can have this name, or no broker carries triggers under that one."""
    if queue == "*":
        raise ValueError("* is no queue; BROKER is the broker of every queue that is not named here")
    check_queue(queue)
    if broker not in _CARRIERS:
        reason = "stub is for unit tests, and only as BROKER" if broker == "stub" else f"{broker!r} is unknown"
        raise ValueError(f"{queue}={broker}: {reason}; write {', '.join(_CARRIERS[:-1])} or {_CARRIERS[-1]}")


def _check_postgres_url(url: str) -> None:
    """Raises: ValueError: libpq cannot read the URL. No part of it is quoted, since a password with a / or a ? in it can turn up
    as any part."""
    try:
        ports = conninfo_to_dict(url).get("port", "")
    except psycopg.ProgrammingError as error:
        if "query parameter" in str(error):
            raise ValueError(f"what follows the ? is no parameter of Postgres; {_POSTGRES_FORM}") from None
        raise ValueError(f"is no URL of Postgres; {_POSTGRES_FORM}") from None
    # Of several hosts each may have its own; an empty one is the default.
    if any(port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536) for port in str(ports).split(",")):
        raise ValueError(f"the port has to be a number from 1 to 65535; {_POSTGRES_FORM}")


def _readable(error: ValidationError) -> SettingsError:
    """One line per wrong value."""
    found = []
    for item in error.errors(include_url=False):
        if item["loc"]:
            found.append((str(item["loc"][0]).upper(), _reason(item)))
        else:
            variable, _, reason = item["msg"].removeprefix("Value error, ").partition(": ")
            found.append((variable, reason))
    first, rest = found[0], found[1:]
    return SettingsError(first[0], "\n".join([first[1], *(f"{name}: {reason}" for name, reason in rest)]))


def _reason(item: ErrorDetails) -> str:
    """What is wrong with one value. The value is shown only where it cannot be a password, nor part of one."""
    form = _FORMS.get(item["type"])
    if form is None or str(item["loc"][0]) in _SECRETS:
        return item["msg"].removeprefix("Value error, ")
    value = item["input"]
    context = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in item.get("ctx", {}).items()}
    if "expected" in context:
        # stub is for unit tests; whoever mistyped a broker wants one of the others.
        choices = [choice for choice in re.findall(r"'([^']*)'", context["expected"]) if choice != "stub"]
        context["expected"] = " or ".join([", ".join(choices[:-1]), choices[-1]])
    return form.format(value=value, **context)


#: Fields whose values nobody may see.
_SECRETS: Final = frozenset(
    name for name, field in Settings.model_fields.items() if field.annotation in (SecretStr, SecretStr | None)
)
