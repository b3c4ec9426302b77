"""`python fastapi_app.py SYSTEM URL PORT`: POST /payments by FastAPI, submitted to a system and answered with 202."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Payment(BaseModel):
    """As the payments service takes it."""

    payer_id: str
    recipient_id: str
    amount: int
    currency: str


def main() -> None:
    """Serve until killed."""
    name, url, port = sys.argv[1:4]
    system: Any = importlib.import_module(f"with_{name}")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with system.submitter(url) as send:
            app.state.send = send
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/payments", status_code=202)
    async def accept(payment: Payment) -> dict[str, str]:
        await app.state.send(system.payload(payment.amount, payment.payer_id, 0))
        return {"status": "OK"}

    uvicorn.run(app, host="127.0.0.1", port=int(port), loop="uvloop", http="httptools", log_level="warning")


if __name__ == "__main__":
    main()
