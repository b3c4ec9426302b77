"""Factors, each computation of which notes in a journal where it runs. For serving processes; no test imports it.

A process of the pool imports the module of the task's handler, which is this one, and finds `compute` here.
"""

from __future__ import annotations

import os

from aioflow import Job
from services.factors.compute import compute, service
from services.factors.models import Answer, Question
from tests.chaos.journal import note

__all__ = ["compute", "service"]

ENDLESS = "TEST_ENDLESS"
"""The environment variable that names a number of which the computation does not end."""

computed = compute.handler


def noted(question: Question, job: Job) -> Answer:
    """As the service's own handler."""
    note("begin", job.id)
    try:
        while question.number == os.environ.get(ENDLESS):
            computed(question, job)
        answer: Answer = computed(question, job)
        return answer
    finally:
        note("end", job.id)


noted.__qualname__ = "compute"
compute.handler = noted
