"""Start and stop services side by side; what fails half-way is taken down again.

Called by `stack`, `roles`; hands on to `process`. A service here is only its spec: see `services.Service`.
"""

import http.client
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress

import ports
import process
import ready
from say import StackError, say, tail
from services import Service


def start(services: Sequence[Service]) -> list[Service]:
    """Start, side by side, what does not run yet, and return that; on any failure stop what was started, and raise."""
    for service in services:
        if not process.running(service.pidfile):
            ports.require(service.name, service.ports)
    started: list[Service] = []
    given_up = threading.Event()
    try:
        with ThreadPoolExecutor(len(services) or 1) as pool:
            try:
                _first_error([pool.submit(_start_one, service, started, given_up) for service in services])
            finally:
                given_up.set()
    except BaseException:
        stop(started)
        raise
    return started


def _first_error(attempts: Sequence[Future[None]]) -> None:
    done, _ = wait(attempts, return_when=FIRST_EXCEPTION)
    for attempt in done:
        attempt.result()


def _start_one(service: Service, started: list[Service], given_up: threading.Event) -> None:
    begun = time.monotonic()
    if process.running(service.pidfile):
        _await_ready(service, given_up)
        say(service.name, f"already up on {service.url}")
        return
    command = service.command()
    if given_up.is_set():
        return
    process.start(
        command,
        pidfile=service.pidfile,
        log=service.log,
        environment=service.environment,
        folder=service.folder,
        user=service.user,
    )
    started.append(service)
    _await_ready(service, given_up)
    say(service.name, f"ready on {service.url} ({time.monotonic() - begun:.1f} s)")


def _await_ready(service: Service, given_up: threading.Event) -> None:
    def settled() -> bool:
        return given_up.is_set() or not process.running(service.pidfile) or ready.answers(service.ready)

    in_time = process.wait_until(settled, service.patience)
    if given_up.is_set():
        return
    if not process.running(service.pidfile):
        raise StackError(f"{service.name} ended while starting; its log, {service.log}, ends:{tail(service.log)}")
    if not in_time:
        late = f"{service.name} was not ready within {service.patience:.0f} s"
        raise StackError(f"{late}; its log, {service.log}, ends:{tail(service.log)}")


def stop(services: Sequence[Service]) -> None:
    """Stop these services side by side, and clear away what they leave."""
    with ThreadPoolExecutor(len(services) or 1) as pool:
        list(pool.map(_stop_one, services))


def _stop_one(service: Service) -> None:
    if process.running(service.pidfile):
        with suppress(OSError, http.client.HTTPException):
            service.before_stop()
    if process.stop(service.pidfile, first=service.stop_signal, grace=service.grace):
        say(service.name, "stopped")
    service.after_stop()
