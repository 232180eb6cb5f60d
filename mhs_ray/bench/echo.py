"""The bare peer of ``mhs bench api``: parses a JSON body and answers 201, nothing more."""

from typing import Any

from fastapi import FastAPI

app = FastAPI()


@app.post("/echo", status_code=201)
def echo(body: dict[str, Any]) -> dict[str, Any]:
    """Answer with something of the size of our own answer."""
    return {"task_id": "1000000001", "job_ids": [1], "created": bool(body)}
