"""One module per system that is compared, and `harness`, which drives them all in the same way.

Each runs in an environment of its own, in which there is nothing but the system: nothing here imports aioflow, except
`with_aioflow`.
"""
