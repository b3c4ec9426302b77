"""Faulty store and faulty wire: one fault at every call of the core path, one after the other.

`python -m pytest -n 0 tests/chaos/faults` runs what CI runs; with AIOFLOW_FAULTS=all in the environment also each
request of a walk and of a start over a wire that loses it, and stops in calls that only read, on a server that fsyncs.
"""
