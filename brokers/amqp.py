"""One connection and channel to RabbitMQ, driven in slices by the thread that owns it.

pika's blocking adapter waits for every single confirm (1,500 publishes a second); its callback adapter wants a thread that runs
its loop for ever. This is the middle: the callback adapter, whose loop the owner turns whenever it has a moment:

    link.open() ──► link.channel: publish, ack, consume ... (nothing is sent yet)
                    link.turn(0)      send what is buffered, take in what has arrived: callbacks run here
                    link.turn(1.0)    the same, waiting up to a second for the first event

A link lives once. Whatever closes its connection or channel makes the next ``turn`` raise ``TransportDown``, and its owner makes
a new link; so nothing of an old connection can reach a new one. Heartbeats are answered
inside ``turn``: an owner that does not call it for 30 s loses the connection, and with it nothing but time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from ssl import SSLError
from time import monotonic
from typing import Any

from pika import SelectConnection, URLParameters
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.connection_workflow import AMQPConnectionWorkflowFailed, AMQPConnectorPhaseErrorBase
from pika.channel import Channel
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    ChannelClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    StreamLostError,
)

from brokers.transport import SOCKET_TIMEOUT, QueueRefused, TransportDown

#: Priorities that a queue has. The ten bands use 0 to 9.
MAX_PRIORITY = 10

#: The kind is said, since a vhost may have another one as its default: a quorum queue with these priorities is refused. To RabbitMQ it is
#: the same queue as one that was declared without.
_ARGUMENTS = {"x-max-priority": MAX_PRIORITY, "x-queue-type": "classic"}

_NAME = "rabbitmq"
# pika logs every lost connection several times over, with stack traces. What matters of it leaves here as TransportDown.
logging.getLogger("pika").setLevel(logging.CRITICAL)

#: Seconds without a sign of life after which either side gives a connection up. Short: a frozen worker keeps the triggers it was pushed
#: until the server gives its connection up; fetchers and publishers give a sign every second.
_HEARTBEAT = 10
_NOT_FOUND = 404
#: What RabbitMQ closes a channel with when it refuses one queue to us, and what an operator can do about it.
_REFUSALS = {
    403: "give the user of RABBITMQ_URL the permissions configure, write and read for {name} (`rabbitmqctl set_permissions`)",
    404: "the node of RabbitMQ's cluster that holds {name} is down, or the queue's process gave up: start the node again, or give it up "
    "for good (`rabbitmqctl forget_cluster_node`), then the queue is made anew",
    405: "another connection holds {name} for itself: end that, or delete the queue",
    406: "{name} was declared otherwise by somebody else: delete it (`rabbitmqctl delete_queue {name}`), it is made anew as it has to be",
}
#: What it says then of a queue that is there and cannot be reached: the node of its cluster that holds it is away, or its process gave up.
#: 404 without one of these means that there is none.
_OUT_OF_REACH = ("home node '", "stopped by supervisor", "has crashed and failed to restart", "due to timeout")
#: What it says where no queue is in the way, but there may not be another one.
_QUEUE_LIMIT = ": queue limit in "
_QUEUE_LIMIT_ADVICE = (
    "there is no room for {name}: allow the virtual host or the cluster more queues (`rabbitmqctl set_vhost_limits`), or delete some that "
    "nobody uses"
)
#: How long ``close`` waits for the server's goodbye, in seconds. Until then the server reads what was published before.
_GOODBYE = 1.0


class _Wire(SelectConnection):  # type: ignore[misc]  # pika is not typed
    """pika's connection, with two of its adapter hooks used: output can be gathered, and the stream cut without a goodbye."""

    _gathered: list[bytes] | None = None

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Send everything that is written inside as one piece: pika makes one system call per message otherwise."""
        self._gathered = []
        try:
            yield
        finally:
            pieces, self._gathered = self._gathered, None
            if pieces and self.is_open:
                super()._adapter_emit_data(b"".join(pieces))

    @property
    def unsent(self) -> int:
        """Bytes that the socket has not taken yet."""
        return int(self._get_write_buffer_size()) if self.is_open else 0

    def cut(self) -> None:
        """Give the stream up at once."""
        self._terminate_stream(StreamLostError("given up"))

    def _adapter_emit_data(self, data: bytes) -> None:
        if self._gathered is None:
            super()._adapter_emit_data(data)
        else:
            self._gathered.append(data)


class Link:
    """A connection with one channel. Used by one thread."""

    def __init__(self, url: str, purpose: str) -> None:
        parameters = URLParameters(url)
        parameters.heartbeat = _HEARTBEAT
        parameters.connection_attempts = 1
        parameters.socket_timeout = SOCKET_TIMEOUT
        parameters.stack_timeout = SOCKET_TIMEOUT
        # A blocked connection (memory or disk alarm) is kept: a new one would be let in, and would add a copy of each message.
        parameters.blocked_connection_timeout = None
        parameters.client_properties = {"connection_name": f"switchyard {purpose}"}
        self._parameters = parameters
        self._loop = IOLoop()
        self._failure: BaseException | None = None
        self._channel: Channel | None = None
        #: Why the server takes no publishes at present; None when it does.
        self.blocked: str | None = None
        self._loop.activate_poller()
        self._wire = _Wire(
            parameters,
            on_open_callback=lambda _wire: self._open_channel(),
            on_open_error_callback=self._on_closed,
            on_close_callback=self._on_closed,
            custom_ioloop=self._loop,
        )
        self._wire.add_on_connection_blocked_callback(self._on_blocked)
        self._wire.add_on_connection_unblocked_callback(self._on_unblocked)

    @property
    def channel(self) -> Channel:
        """The open channel; there is one between ``open`` and the first TransportDown."""
        assert self._channel is not None
        return self._channel

    @property
    def unsent(self) -> int:
        """Bytes that the socket has not taken yet."""
        return self._wire.unsent

    def open(self) -> None:
        """Wait until connection and channel are open. Raises: TransportDown: they were refused, or not within 5 s."""
        self.turn_until(lambda: self._channel is not None, f"no answer from {self._parameters.host}:{self._parameters.port}")

    def renew_channel(self) -> None:
        """Close the channel and open another, forgiving what closed the old one. RabbitMQ takes back what is unsettled on it,
        and ends its consumers, in one step. Raises: TransportDown."""
        old, self._channel = self._channel, None
        try:
            if old is not None and old.is_open:
                old.close()
            # The connection may have gone with the channel: that is not forgiven.
            self._open_channel()
        except AMQPError as error:
            self._failure = self._failure or error
            raise TransportDown(_NAME, self._describe(self._failure)) from self._failure
        self._failure = None
        self.open()

    def turn(self, timeout: float) -> None:
        """Send and take in what there is, waiting up to ``timeout`` seconds for the first event. Raises: TransportDown."""
        # The timer is what ends the wait; one that was not needed is harmless.
        timer = self._loop.call_later(max(timeout, 0.0), _nothing)
        self._loop.poll()
        self._loop.process_timeouts()
        self._loop.remove_timeout(timer)
        self.check()

    def turn_until(self, reached: Callable[[], bool], complaint: str) -> None:
        """Turn until the condition holds. Raises: TransportDown: the link broke, or 5 s passed."""
        deadline = monotonic() + SOCKET_TIMEOUT
        while not reached():
            left = deadline - monotonic()
            if left <= 0:
                raise TransportDown(_NAME, f"{complaint} in {SOCKET_TIMEOUT:g} s")
            self.turn(left)

    def check(self) -> None:
        """Raises: TransportDown: connection or channel has closed."""
        if self._failure is not None:
            raise TransportDown(_NAME, self._describe(self._failure)) from self._failure

    @contextmanager
    def writing(self) -> Iterator[Channel]:
        """The channel; what is written to it inside leaves as one piece, with the next turn. Raises: TransportDown."""
        self.check()
        try:
            with self._wire.gathering():
                yield self.channel
        except AMQPError as error:
            raise TransportDown(_NAME, self._describe(error)) from error

    def close(self) -> None:
        """Say goodbye if the server listens, then release the socket; quietly. Unsettled deliveries go back to their queues."""
        with suppress(TransportDown, AMQPError, OSError):
            if self._wire.is_open:
                self._wire.close()
            self._wind_up(_GOODBYE)
        self.abandon()

    def abandon(self) -> None:
        """Release the socket at once; quietly."""
        with suppress(TransportDown, AMQPError, OSError):
            if not self._wire.is_closed:
                self._wire.cut()
            self._wind_up(_GOODBYE)
        self._loop.close()

    def _wind_up(self, timeout: float) -> None:
        deadline = monotonic() + timeout
        while not self._wire.is_closed and (left := deadline - monotonic()) > 0:
            with suppress(TransportDown):
                self.turn(left)

    def _open_channel(self) -> None:
        self._wire.channel(on_open_callback=self._on_channel_open)

    def _on_channel_open(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        self._channel = channel

    def _on_channel_closed(self, channel: Channel, reason: BaseException) -> None:
        if channel is self._channel:
            self._on_closed(channel, reason)

    def _on_closed(self, _closed: object, reason: BaseException) -> None:
        # The first reason is the cause; a connection's end also closes its channel.
        self._failure = self._failure or reason

    def _describe(self, error: BaseException) -> str:
        """An error of pika's, with the place that it is about, for people. Holds no password."""
        place, error = f"{self._parameters.host}:{self._parameters.port}", _innermost(error)
        if isinstance(error, ProbableAuthenticationError):
            return f"{place} refused the login of {self._parameters.credentials.username!r}"
        if isinstance(error, ProbableAccessDeniedError):
            return f"{place} refused the virtual host {self._parameters.virtual_host!r}"
        if isinstance(error, SSLError):
            return f"{place} does not speak TLS as we do ({error.reason or error})"
        if isinstance(error, OSError):
            return f"nobody answers at {place} ({(error.strerror or str(error)).lower()})"
        return str(error).strip() or repr(error)

    def _on_blocked(self, _wire: object, frame: Any) -> None:
        self.blocked = str(frame.method.reason or "blocked by the server")

    def _on_unblocked(self, _wire: object, _frame: Any) -> None:
        self.blocked = None


def queue_name(prefix: str, queue: str) -> str:
    """The name of a queue in RabbitMQ. It says its priorities, because that argument of a queue can never be changed."""
    return f"{prefix}.{queue}.p{MAX_PRIORITY}"


def declare(channel: Channel, name: str) -> None:
    """Make sure that a queue exists, without waiting for the reply; a queue with other arguments closes the channel."""
    channel.queue_declare(name, durable=True, arguments=_ARGUMENTS)


def opened(url: str, purpose: str) -> Link:
    """A new link, open. Raises: TransportDown."""
    link = Link(url, purpose)
    try:
        link.open()
    except TransportDown:
        link.abandon()
        raise
    return link


def ask(link: Link, question: Callable[[Channel, Callable[[Any], None]], object]) -> Any:
    """Ask on the link's channel and wait for the reply. Raises: TransportDown."""
    replies: list[Any] = []
    with link.writing() as channel:
        question(channel, replies.append)
    link.turn_until(lambda: bool(replies), "no answer")
    return replies[0]


def ask_if_there(link: Link, question: Callable[[Channel, Callable[[Any], None]], object]) -> Any:
    """As ``ask``, about something that may not exist: None where it does not. Raises: TransportDown: also of a queue out of reach."""
    try:
        return ask(link, question)
    except TransportDown as error:
        if _reply_code(error) != _NOT_FOUND or _is_out_of_reach(error):
            raise
        link.renew_channel()
        return None


def refused_queue(error: TransportDown, prefix: str, queues: Iterable[str]) -> QueueRefused | None:
    """Which of these queues RabbitMQ refused, where that is what closed the channel; None: it was something else."""
    code, text = _reply_code(error), _reply_text(error)
    if code not in _REFUSALS or (code == _NOT_FOUND and not _is_out_of_reach(error)):
        return None
    advice = _QUEUE_LIMIT_ADVICE if _QUEUE_LIMIT in text else _REFUSALS[code]
    for queue in queues:
        name = queue_name(prefix, queue)
        # RabbitMQ's text is cut off at 255 characters, and names what it is about in quotes.
        if f"'{name}'" in text or f"'{prefix}.{queue}.epoch." in text or _ends_within(text, name):
            return QueueRefused(queue, text, advice.format(name=name))
    return None


def use(link: Link, prefix: str, queue: str, *, consume: bool = False) -> None:
    """Declare a queue, and have it consumed for a moment, to learn whether we may; the link is good afterwards in any case.

    Raises: QueueRefused, TransportDown.
    """
    name = queue_name(prefix, queue)
    try:
        ask(link, lambda channel, answer: channel.queue_declare(name, durable=True, arguments=_ARGUMENTS, callback=answer))
        if consume:
            with link.writing() as channel:
                channel.basic_qos(prefetch_count=1)
            ask(link, lambda channel, answer: channel.basic_consume(name, _ignore, callback=answer))
            # What was pushed goes back to its place.
            link.renew_channel()
    except TransportDown as error:
        refused = refused_queue(error, prefix, [queue])
        if refused is None:
            raise
        link.renew_channel()
        raise refused from error


def waiting_in(link: Link, prefix: str, queue: str) -> tuple[int, int] | None:
    """How many messages wait in a queue, and how many consumers it has; None where there is none. The link is good afterwards in any case.

    Raises: QueueRefused: it is somebody's own, or out of reach. TransportDown.
    """
    name = queue_name(prefix, queue)
    try:
        reply = ask_if_there(link, lambda channel, answer: channel.queue_declare(name, passive=True, callback=answer))
    except TransportDown as error:
        refused = refused_queue(error, prefix, [queue])
        if refused is None:
            raise
        link.renew_channel()
        raise refused from error
    return None if reply is None else (int(reply.method.message_count), int(reply.method.consumer_count))


def _nothing() -> None:
    """What the timer of a turn runs."""


def _ignore(*_message: object) -> None:
    """What is done with a message that is going back."""


def _reply_code(error: TransportDown) -> int | None:
    """With what RabbitMQ closed the channel, if it did."""
    closed = error.__cause__
    return int(closed.reply_code) if isinstance(closed, ChannelClosedByBroker) else None


def _reply_text(error: TransportDown) -> str:
    """What RabbitMQ said when it closed the channel; nothing, if it did not."""
    closed = error.__cause__
    return str(closed.reply_text) if isinstance(closed, ChannelClosedByBroker) else ""


def _is_out_of_reach(error: TransportDown) -> bool:
    """Whether it is about a queue that exists and cannot be reached."""
    return any(words in _reply_text(error) for words in _OUT_OF_REACH)


def _ends_within(text: str, name: str) -> bool:
    """Whether the text was cut off within this name."""
    _, quote, rest = text.rpartition("queue '")
    return bool(quote) and "'" not in rest and bool(rest) and name.startswith(rest.rstrip("."))


def _innermost(error: BaseException) -> BaseException:
    """The error that pika wrapped, perhaps several times over, while it tried to connect."""
    inner: object = None
    if isinstance(error, AMQPConnectionWorkflowFailed):
        inner = error.exceptions[-1] if error.exceptions else None
    elif isinstance(error, AMQPConnectorPhaseErrorBase):
        inner = error.exception
    elif isinstance(error, AMQPConnectionError) and error.args:
        inner = error.args[0]
    return _innermost(inner) if isinstance(inner, BaseException) else error
