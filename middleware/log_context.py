"""Log lines that say which job they belong to.

Effect: every line logged while a job runs, by whomever, carries job_id, actor, queue and attempt. The job is looked up when a line is
written, so a job that logs nothing pays nothing. LOG_FORMAT decides between lines for people and JSON for collectors.
Actor options: none. Store: none.
"""

from __future__ import annotations

import logging
from typing import Any, Final, Literal

import structlog
from dramatiq import Broker, Message, MessageProxy, Middleware, Worker
from structlog.types import EventDict, WrappedLogger

from middleware.current_job import find_current_job
from runtime.context import current_claim

#: Libraries that report every step of every connection, and a lost one at five places with stack traces: what matters of it, we say.
_CHATTY: Final = ("pika",)


def add_job(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A structlog processor: adds the current job, if there is one."""
    job = find_current_job()
    if job is not None:
        event.setdefault("job_id", job.id)
        event.setdefault("actor", job.actor)
        event.setdefault("queue", job.queue)
        event.setdefault("attempt", job.attempt)
    return event


def configure_logging(level: str, style: Literal["console", "json"]) -> None:
    """Have structlog and the standard library's logging write the same lines through the handlers of the root logger."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        add_job,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    )
    last = [structlog.processors.format_exc_info, renderer] if style == "json" else [renderer]
    formatter = SecretsHidden(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    for handler in root.handlers:
        handler.setFormatter(formatter)
        # On the handlers, since every actor has a logger of its own.
        handler.addFilter(tells_no_arguments)
    root.setLevel(level)
    for name in ("dramatiq.worker.WorkerThread", "dramatiq.worker.ConsumerThread"):
        logging.getLogger(name).addFilter(_without_payloads)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def configure_structlog() -> None:
    """Route structlog's loggers into the standard library's, so that an app's own logging configuration applies to them."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.PositionalArgumentsFormatter(),
            add_job,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class SecretsHidden(structlog.stdlib.ProcessorFormatter):
    """Renders lines, without the secrets of the job that they were written for; traces of exceptions among them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = super().format(record)
        claim = current_claim.get()
        return line if claim is None else claim.redacted(line)


def tells_no_arguments(record: logging.LogRecord) -> bool:
    """Whether a line is not the one by which Dramatiq's actors tell, at DEBUG, all that they were called with."""
    return not str(record.msg).startswith("Received args=")


class WithoutPayloads(logging.Filter):
    """Keeps arguments of jobs out of Dramatiq's own lines, and those lines out that ours say better.

    Dramatiq formats whole messages, e-mail texts and all, into what it logs about a failure. The retries middleware logs each
    failure once, with the job's id; its traceback is in the ledger, and in the log when the job is dead.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if str(record.msg).startswith("Failed to process message"):
            return False
        if isinstance(record.args, tuple):
            record.args = tuple(_name(value) for value in record.args)
        return True


#: The one there is, so that setting up twice adds it once.
_without_payloads: Final = WithoutPayloads()


def _name(value: object) -> object:
    return f"{value.actor_name} {value.message_id}" if isinstance(value, MessageProxy | Message) else value


class LogContext(Middleware):
    """Sets up a worker process's logging; an app's logging is its own business."""

    def __init__(self, *, level: str, style: Literal["console", "json"]) -> None:
        self._level = level
        self._style: Literal["console", "json"] = style

    def after_process_boot(self, broker: Broker) -> None:
        """Dramatiq has made its handlers, and nothing of ours runs yet: from here on they write our lines, those of the boot included."""
        configure_logging(self._level, self._style)

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        """The same for handlers that the application's modules added since, and for a worker in somebody's own process."""
        configure_logging(self._level, self._style)
