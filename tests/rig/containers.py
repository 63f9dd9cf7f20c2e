"""The way of a container, for machines where a Docker engine answers: started and removed by testcontainers."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any, Final

from tests.rig.processes import inherited_environment
from tests.rig.service import Service, Unavailable
from tests.rig.waiting import wait_until

#: Asks the engine that DOCKER_HOST names, or the usual one. Where none answers, the driver leaves a socket open: in a process of its own,
#: for in this one whichever test is running when that is collected would fail by its warning.
_PROBE: Final = "import docker; docker.from_env(timeout=5).ping()"


def run_container(image: str, port: int, url: Callable[[str, int], str], ready: Callable[[str], bool], **options: Any) -> Service:
    """Start a container and wait until ``ready(url)``. Raises: Unavailable: no Docker engine, or no such image."""
    _require_engine()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of testcontainers' own making
        from testcontainers.core.container import DockerContainer

        try:
            container = DockerContainer(image).with_exposed_ports(port)
            for name, value in options.items():
                container = container.with_env(name, value)
            container.start()
        except Exception as error:  # pulling and starting fail in the many ways of docker, requests and testcontainers
            raise Unavailable(f"the container {image} does not start: {error}") from error
        address = url(container.get_container_host_ip(), int(container.get_exposed_port(port)))
    try:
        wait_until(lambda: ready(address), 90, f"the container {image} answers at {address}", interval=0.2)
    except BaseException:
        container.stop()
        raise
    return Service(url=address, source=f"container {image}", close=container.stop, private=True)


def _require_engine() -> None:
    """Raises: Unavailable: no Docker engine answers, with what the driver says about it."""
    probe = [sys.executable, "-W", "ignore", "-c", _PROBE]
    try:
        asked = subprocess.run(
            probe, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=inherited_environment()
        )
    except subprocess.TimeoutExpired:
        raise Unavailable("the Docker engine is silent") from None
    if asked.returncode != 0:
        reason = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"no Docker engine answers ({reason})")
