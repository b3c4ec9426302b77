"""Reference services built on aioflow."""
