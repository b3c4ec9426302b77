"""The service and its one task: it computes in a process of its own, and emits the post-back with the completion."""

from __future__ import annotations

from aioflow import Job, Retry, Service
from aioflow.delivery import Delivery
from services.factors.arithmetic import count_of_divisors, divisors_of, prime_powers
from services.factors.models import MOST_DIVISORS, Answer, PrimePower, Question
from services.factors.settings import load_settings

service = Service("factors")
settings = load_settings()


# A computation writes nothing, so it may run again as often as its process or its runtime is killed.
@service.task(
    cpu=True,
    workers=(0, settings.workers),
    idle_timeout=settings.idle_timeout,
    timeout=settings.timeout,
    bound=settings.bound,
    retry=Retry(attempts=5, base=0.5, longest=60),
    most_crashes=10,
)
def compute(question: Question, job: Job) -> Answer:
    """Factorise; the answer and its delivery land together, or neither does."""
    answer = answer_of(question.number, job.id)
    if question.post_back_url is not None:
        told = Delivery(url=question.post_back_url, type="factors.computed", data=answer.model_dump(mode="json"))
        job.commit.submit("delivery.post", told)
    return answer


def answer_of(number: str, tracking_id: str) -> Answer:
    """The answer to a question, which takes as long as it takes."""
    powers = prime_powers(int(number))
    count = count_of_divisors(powers)
    return Answer(
        tracking_id=tracking_id,
        number=number,
        factors=tuple(PrimePower(prime=str(prime), power=power) for prime, power in powers),
        divisor_count=count,
        divisors=tuple(map(str, divisors_of(powers))) if count <= MOST_DIVISORS else None,
    )
