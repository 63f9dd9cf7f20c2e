"""The way of a container, for machines where a Docker engine answers: started and removed by testcontainers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from tests.rig.service import Service, Unavailable
from tests.rig.waiting import wait_until


def run_container(image: str, port: int, url: Callable[[str, int], str], ready: Callable[[str], bool], **options: Any) -> Service:
    """Start a container and wait until ``ready(url)``. Raises: Unavailable: no Docker engine, or no such image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of docker's and testcontainers' own making
        import docker
        from testcontainers.core.container import DockerContainer

        try:
            docker.from_env(timeout=5).ping()
        except docker.errors.DockerException:
            raise Unavailable("no Docker engine answers") from None
        container = DockerContainer(image).with_exposed_ports(port)
        for name, value in options.items():
            container = container.with_env(name, value)
        try:
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
