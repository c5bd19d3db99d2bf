#!/usr/bin/env bash
# FastAPI: a Decimal in a response is a JSON number or a JSON string, depending on where it stands, even within one response.
#
# Expected: an amount has one form. The tutorial (Extra Data Types) says that Decimal is handled like float in requests and responses; with
# pydantic 2 one expects strings, which keep the digits. Either way a client written for one endpoint can read the next.
# Seen: within a pydantic model, or if the endpoint has a return annotation or response_model with Decimal, the amount is a string;
# in a dict of an endpoint without one it is a number. An endpoint that returns a dict with a list of models and their sum sends both.
# Adding an annotation such as `-> dict[str, Decimal]`, which looks like a matter of documentation, changes the format that clients get. The
# number is a float: it loses the trailing zero, and digits after about the sixteenth, without an error.
#
# Versions: fastapi 0.165.0, starlette 1.10.0, pydantic 2.14.4, Python 3.11. Date: 2026-11-29.
# Output seen:
#     a dict with models and their sum: {"lines":[{"price":"19.90"},{"price":"0.10"}],"total":20.0}
#     Decimal("12345678901234567.89"), not annotated: {"balance":1.2345678901234568e+16}
#     Decimal("12345678901234567.89"), annotated: {"balance":"12345678901234567.89"}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check fastapi==0.165.0 starlette==1.10.0 pydantic==2.14.4; } || exit 2
cat > "$folder/decimals.py" <<'PYTHON'
import asyncio
import sys
from decimal import Decimal

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
BALANCE = Decimal("12345678901234567.89")


class Line(BaseModel):
    price: Decimal


@app.get("/order")
async def order():
    lines = [Line(price=Decimal("19.90")), Line(price=Decimal("0.10"))]
    return {"lines": lines, "total": sum(line.price for line in lines)}


@app.get("/balance")
async def balance():
    return {"balance": BALANCE}


@app.get("/annotated")
async def annotated() -> dict[str, Decimal]:
    return {"balance": BALANCE}


def get(path):
    """Return the body of the response to a GET request, which is passed to the application as a server does."""
    parts = []

    async def receive():
        return {"type": "http.request"}

    async def send(event):
        parts.append(event.get("body", b""))

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http", "path": path,
        "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": [], "server": ("127.0.0.1", 80),
    }
    asyncio.run(app(scope, receive, send))
    return b"".join(parts).decode()


bodies = get("/order"), get("/balance"), get("/annotated")
print("a dict with models and their sum:", bodies[0])
print(f'Decimal("{BALANCE}"), not annotated:', bodies[1])
print(f'Decimal("{BALANCE}"), annotated:', bodies[2])
seen = '"price":"19.90"' in bodies[0] and '"total":20.0' in bodies[0] and str(BALANCE) not in bodies[1] and f'"{BALANCE}"' in bodies[2]
sys.exit(0 if seen else 1)
PYTHON
"$folder/venv/bin/python" "$folder/decimals.py"
