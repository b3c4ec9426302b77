"""The queue: keys, scripts, store, group commit, claiming, running, leases and maintenance."""
