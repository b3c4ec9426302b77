"""A service whose handlers run in processes; a process must be able to import them."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from aioflow import ConfigError, Discard, Job, Retry, RetryLater, Service

ONCE = Retry(attempts=1)
service = Service("cpu")


class Number(BaseModel):
    """A payload."""

    value: int


class Unpacked(Exception):
    """An exception that can be packed and not unpacked."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class OutOfOrder(BaseException):
    """What is no Exception."""


class Odd:
    """What can be packed and not unpacked."""

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return Unpacked, ("too", "many", "words")


@service.task(cpu=True, concurrency=2, retry=ONCE)
def square(number: Number) -> int:
    """The easy case."""
    return number.value**2


@service.task(cpu=True, concurrency=2, retry=ONCE)
def whereabouts(seconds: float) -> int:
    """Its process."""
    time.sleep(seconds)
    return os.getpid()


@service.task(cpu=True, concurrency=2, retry=ONCE)
def effects(what: str, job: Job) -> int:
    """Effects and emits from a process, and every way to end."""
    job.commit.hincrby("ran", what, 1)
    job.commit.hincrby("failed", what, 1, on_failure=True)
    job.commit.submit(square, Number(value=7))
    match what:
        case "later" if job.attempt == 1:
            raise RetryLater(0.01)
        case "discard":
            raise Discard("not wanted")
        case "raise":
            raise ValueError("in the process")
        case "base":
            raise OutOfOrder("no Exception")
        case "odd":
            raise Unpacked("a", "b")
        case "exit":
            os._exit(3)
    return job.attempt


@service.task(cpu=True, concurrency=1, retry=ONCE)
def talk(seconds: float, job: Job) -> None:
    """Says how far it is, and logs."""
    job.progress("half")
    job.log.info("at %s", "half", extra={"page": 7})
    logging.getLogger("elsewhere").debug("not wanted")
    logging.getLogger("elsewhere").error("also heard", extra={"odd": Odd()})
    logging.getLogger("elsewhere").error("without its extras", extra={"made": lambda: 1})
    try:
        job.commit.hset("", "", "")
    except ConfigError:
        job.log.exception("failed")
    time.sleep(seconds)


@service.task(cpu=True, concurrency=2, retry=ONCE)
def unpackable() -> Any:
    """A result that cannot be carried over."""
    return lambda: 1


@service.task(cpu=True, concurrency=1, timeout=0.4, retry=ONCE)
def spin(path: str) -> None:
    """Never ends, and says where it runs."""
    with Path(path).open("a") as out:
        out.write(f"{os.getpid()}\n")
    while True:
        pass


@service.task(cpu=True, concurrency=1, timeout=None, retry=ONCE)
def run_on(path: str) -> None:
    """As spin, without a limit of time."""
    spin.handler(path)


few = Service("few")


@few.task(cpu=True, workers=(1, 3), idle_timeout=0.3, retry=ONCE)
def where(seconds: float) -> int:
    """Its process, of which there are at least one and at most three."""
    time.sleep(seconds)
    return os.getpid()
