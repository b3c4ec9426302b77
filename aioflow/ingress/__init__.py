"""HTTP in: routes, bodies, receipts and problem responses."""
