"""The benchmark, run by hand: `python -m tests.bench`. Figures, never asserted."""
