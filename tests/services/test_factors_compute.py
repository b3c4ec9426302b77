"""What factors computes, and what it takes for a number: without Redis or processes."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from aioflow import ConfigError
from aioflow.testing import run_handler
from services.factors.arithmetic import count_of_divisors, divisors_of, prime_powers
from services.factors.compute import answer_of, compute
from services.factors.models import MOST_DIVISORS, NewQuestion, Question
from services.factors.settings import load_settings
from tests.primes import check_answer, is_prime, prime_of

LARGEST = 10**60 - 1
PRIMES = [number for number in range(2, 1000) if is_prime(number)]
RICH = math.prod(PRIMES[:14])  # 13082761331670030
HOOK = "https://example.com/hook"


def told(number: int) -> dict[str, Any]:
    """The answer as the service sends it."""
    answer: dict[str, Any] = answer_of(str(number), "t").model_dump(mode="json")
    return answer


def test_the_tests_own_primality_is_right() -> None:
    sieve = [number for number in range(2, 2000) if all(number % less for less in range(2, math.isqrt(number) + 1))]
    assert [number for number in range(2000) if is_prime(number)] == sieve
    carmichael_and_strong = [561, 41041, 825265, 3215031751, 3825123056546413051, 318665857834031151167461]
    assert not any(map(is_prime, carmichael_and_strong))
    assert is_prime(2**127 - 1)
    assert not is_prime((2**61 - 1) * (2**89 - 1))


@given(st.integers(1, 10**30))
@example(1)
@example(2)
@example(4)
@example(3215031751)
def test_any_number_is_the_product_of_its_primes(number: int) -> None:
    check_answer(told(number), number)


@given(st.lists(st.tuples(st.sampled_from(PRIMES), st.integers(1, 12)), max_size=8))
def test_the_factorisation_is_the_one_that_made_the_number(powers: list[tuple[int, int]]) -> None:
    made: dict[int, int] = {}
    for prime, power in powers:
        made[prime] = made.get(prime, 0) + power
    number = math.prod(prime**power for prime, power in made.items())
    if number <= LARGEST:
        assert prime_powers(number) == sorted(made.items())
        check_answer(told(number), number)


@given(st.integers(1, 5000))
def test_the_divisors_are_those_that_a_trial_finds(number: int) -> None:
    powers = prime_powers(number)
    found = [less for less in range(1, number + 1) if number % less == 0]
    assert divisors_of(powers) == found
    assert count_of_divisors(powers) == len(found)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(4, 18))
def test_products_of_two_primes_of_a_size_are_told_apart(seed: int, digits: int) -> None:
    drawn = random.Random(seed)
    first, second = prime_of(digits, drawn), prime_of(digits, drawn)
    assert told(first * second)["factors"] == (
        [{"prime": str(prime), "power": 1} for prime in sorted((first, second))]
        if first != second
        else [{"prime": str(first), "power": 2}]
    )


SIXTY = {
    "the largest": LARGEST,
    "a power of ten": 10**59,
    "a power of two": 2**199,
    "a large prime": 10**59 + 19,
    "the square of a prime": (10**29 + 319) ** 2,
    "a prime and a small one": 3 * (10**58 + 63),
    "factorial": math.factorial(46),
}


@pytest.mark.parametrize("name", SIXTY)
def test_numbers_of_sixty_digits(name: str) -> None:
    number = SIXTY[name]
    assert 56 <= len(str(number)) <= 60
    check_answer(told(number), number)


def test_the_divisors_of_one() -> None:
    assert told(1) == {"tracking_id": "t", "number": "1", "factors": [], "divisor_count": 1, "divisors": ["1"]}


@pytest.mark.parametrize(
    ("number", "count"),
    [
        pytest.param(2**9 * 3**9 * 5**9 * 7**9, 10_000, id="as many as are listed"),
        pytest.param(RICH, 16_384, id="more"),
        pytest.param(2**72 * 3**72, 73 * 73, id="fewer"),
        pytest.param(2**136 * 3**36 * 5, 137 * 37 * 2, id="one prime more"),
    ],
)
def test_divisors_are_listed_up_to_ten_thousand(number: int, count: int) -> None:
    answer = told(number)
    assert answer["divisor_count"] == count
    assert (answer["divisors"] is None) == (count > MOST_DIVISORS)
    check_answer(answer, number)


def test_the_longest_answer_fits_into_a_result_and_a_delivery() -> None:
    number = 30**9 * 99991**9
    answer = told(number)
    assert (len(str(number)), len(answer["divisors"])) == (59, MOST_DIVISORS)
    assert len(json.dumps(answer)) < compute.options.payload_limit // 2


async def test_a_post_back_is_emitted_with_the_answer() -> None:
    ran = await run_handler(compute, Question(number="12", post_back_url=HOOK))
    assert ran.outcome == "done"
    (emit,) = ran.emits
    assert emit.task == "delivery.post"
    assert (emit.payload["url"], emit.payload["type"]) == (HOOK, "factors.computed")
    assert emit.payload["data"] == ran.result.model_dump(mode="json")
    assert (await run_handler(compute, Question(number="12"))).emits == ()


# ---- what is a question


def as_json(number: str) -> str:
    """A body with the number as it is written here."""
    return f'{{"number": {number}}}'


@given(st.integers(1, LARGEST))
@example(1)
@example(LARGEST)
def test_a_number_and_its_digits_are_the_same_question(number: int) -> None:
    assert NewQuestion.model_validate_json(as_json(str(number))).number == str(number)
    assert NewQuestion.model_validate_json(as_json(f'"{number}"')).number == str(number)


NO_NUMBERS = [
    *(
        "0",
        "-1",
        "1.0",
        "1.5",
        "1e3",
        "true",
        "null",
        "[]",
        "{}",
        str(10**60),
        "9" * 400,
        "9" * 5000,
        "NaN",
        "Infinity",
    ),
    *('""', '"0"', '"-1"', '"+1"', '"1.0"', '"1e3"', '"01"', '" 1"', '"1 "', '"1\\n"', '"1_000"', '"0x10"', '"true"'),
    *(f'"{10**60}"', '"' + "9" * 5000 + '"', '"١٢"', '"\\uff11"', '"\\u0000"', '"twelve"', '["1"]'),
]


@pytest.mark.parametrize("number", NO_NUMBERS, ids=lambda number: number[:20].replace("\0", "NUL"))
def test_what_is_no_number_is_refused_and_named(number: str) -> None:
    with pytest.raises(ValidationError) as refused:
        NewQuestion.model_validate_json(as_json(number))
    for error in refused.value.errors():
        assert error["loc"] == ("number",) or error["type"] == "json_invalid"


@given(st.text() | st.floats() | st.booleans() | st.none() | st.integers() | st.binary())
def test_whatever_is_given_is_a_question_or_refused(given_number: Any) -> None:
    good = (isinstance(given_number, int) and not isinstance(given_number, bool) and 1 <= given_number <= LARGEST) or (
        isinstance(given_number, str) and given_number.isdecimal() and given_number.isascii() and given_number[0] != "0"
    )
    if good:
        assert NewQuestion.model_validate({"number": given_number}).number == str(given_number)
    else:
        with pytest.raises(ValidationError) as refused:
            NewQuestion.model_validate({"number": given_number})
        assert [error["loc"] for error in refused.value.errors()] == [("number",)]


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://example.com/", "scheme"),
        ("ftp://example.com/", "scheme"),
        ("https://127.0.0.1/", "loopback"),
        ("https://[::1]/", "loopback"),
        ("https://[::ffff:10.0.0.1]/", "private"),
        ("https://192.168.1.1/", "private"),
        ("https://169.254.169.254/", "metadata"),
        ("https://example.com:22/", "port"),
        ("https://u:p@example.com/", "userinfo"),
        ("https://[]@", "syntax"),
        ("https://2130706433/", "spelling"),
        ("https://224.0.0.1/", "multicast"),
        ("https://example.com/" + "a" * 3000, "length"),
        ("", ""),
        ("nowhere", ""),
    ],
)
def test_a_post_back_that_is_not_allowed_is_refused_with_the_rule(url: str, rule: str) -> None:
    with pytest.raises(ValidationError) as refused:
        NewQuestion(number="12", post_back_url=url)
    (error,) = refused.value.errors()
    assert error["loc"] == ("post_back_url",)
    assert f"({rule}" in error["msg"]


def test_a_question_that_was_taken_is_computed_whatever_is_allowed_by_then() -> None:
    question = Question(number="12", post_back_url="https://10.0.0.1/")
    assert Question.model_validate_json(question.model_dump_json()) == question


# ---- settings


def test_wrong_settings_are_said_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTORS_WORKERS", "0")
    monkeypatch.setenv("FACTORS_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match=r"FACTORS_WORKERS: .*; FACTORS_TIMEOUT: "):
        load_settings()
