"""Primality and answers of factors, verified without the library that the service computes by."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
"""Enough for certainty below 3.3e24 (OEIS A014233)."""


def is_prime(number: int) -> bool:
    """By Miller and Rabin: certain for up to 24 digits, and wrong about 4**-53 of the larger ones."""
    if number < 2:
        return False
    for base in BASES:
        if number % base == 0:
            return number == base
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    drawn = random.Random(number)
    bases = BASES if number < 10**24 else (*BASES, *(drawn.randrange(2, number - 1) for _ in range(40)))
    return all(_passes(number, base, odd, twos) for base in bases)


def _passes(number: int, base: int, odd: int, twos: int) -> bool:
    power = pow(base, odd, number)
    if power in (1, number - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % number
        if power == number - 1:
            return True
    return False


def prime_of(digits: int, drawn: random.Random) -> int:
    """A random prime of so many digits."""
    while True:
        number = drawn.randrange(10 ** (digits - 1), 10**digits)
        if is_prime(number):
            return number


def check_answer(answer: dict[str, Any], number: int) -> None:
    """Fail where an answer, as JSON, is not that of the number."""
    assert answer["number"] == str(number)
    powers = [(int(factor["prime"]), factor["power"]) for factor in answer["factors"]]
    assert [str(prime) for prime, _ in powers] == [factor["prime"] for factor in answer["factors"]], "one spelling"
    assert [prime for prime, _ in powers] == sorted({prime for prime, _ in powers})
    assert all(is_prime(prime) and power >= 1 for prime, power in powers)
    assert math.prod(prime**power for prime, power in powers) == number
    assert answer["divisor_count"] == math.prod(power + 1 for _, power in powers)
    if answer["divisor_count"] > 10_000:
        assert answer["divisors"] is None
        return
    divisors = [int(divisor) for divisor in answer["divisors"]]
    assert len(divisors) == answer["divisor_count"]
    assert all(less < more for less, more in itertools.pairwise(divisors))
    assert all(number % divisor == 0 for divisor in divisors)
    assert (divisors[0], divisors[-1]) == (1, number)
