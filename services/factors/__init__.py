"""Factors: prime factorisations and divisors, computed in processes, and posted back to who asked."""

from services.factors.api import service

__all__ = ["service"]
