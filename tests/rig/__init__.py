"""The test rig: real servers, real worker processes, and waiting for conditions. Never a mock of Postgres, Redis or RabbitMQ.

    postgres, redis, rabbitmq   where each server comes from (in the order below), and a private one that faults may hit
    workers                     real ``dramatiq`` processes, with signals and captured logs
    waiting                     ``wait_until``: poll a condition up to a deadline, instead of sleeping
    service, binaries, ports    what the three servers share
    processes, guard            child processes in groups of their own, none of which outlives the test run

A server comes from the first of these that can be had: its URL in the environment (DATABASE_URL, REDIS_URL, RABBITMQ_URL); a
binary on the machine, started on a private port with private data; one listening on the standard local port; a container;
a Python package that carries the server (Postgres, Redis) or ``apt-get install`` (RabbitMQ). None at all is a failure that
says what to do, never a skip. On a server that the rig did not start it uses a database, key prefix or vhost of its own, and
nothing there is flushed, dropped or stopped.
"""
