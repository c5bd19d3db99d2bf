"""The audit log is complete, whatever the level of the log is."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
from market.kit.auth import audit
from market.kit.auth.identity import Identity, Role, identity
from market.kit.config import Log
from market.kit.process import logs

logs.setup("products", Log(level="error"))
logs.get_logger("other").warning("not written")
identity.set(Identity("mia", frozenset({Role.MERCHANT})))
audit.record("price changed", target="product 1", before={"price": "2.00"}, after={"price": "1.00"})
"""


def test_entries_are_written_at_every_level_of_the_log() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    [entry] = [json.loads(line) for line in done.stderr.splitlines()]
    assert entry.pop("timestamp")
    assert entry == {
        "component": "audit",
        "event": "price changed",
        "level": "info",
        "service": "products",
        "subject": "mia",
        "roles": ["merchant"],
        "target": "product 1",
        "before": {"price": "2.00"},
        "after": {"price": "1.00"},
    }
