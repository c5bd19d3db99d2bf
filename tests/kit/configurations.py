"""The configuration files in config/, and processes that load them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The variables that the files in config/ use, as `market up` sets them.
ENVIRONMENT = {
    "MARKET_LOG_FORMAT": "json",
    "MARKET_POSTGRES_PASSWORD": "secret",
    "MARKET_COOKIE_SECRETS_FILE": "/run/secrets/cookies",
    "MARKET_KAFKA_PARTITIONS": "12",
    **{
        f"MARKET_{n}PORT": str(21000 + i)
        for i, n in enumerate(
            (
                "",
                "ADMIN_",
                "PRODUCTS_",
                "ORDERS_",
                "INVENTORY_",
                "POSTGRES_",
                "REDIS_",
                "MONGODB_",
                "KAFKA_",
                "SMTP_",
                "GRAPHQL_",
                "NOTIFICATIONS_",
            )
        )
    },
}


def run(service: str, *arguments: str, file: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a service's command line with this configuration file, until it exits."""
    return subprocess.run(
        [sys.executable, "-m", f"market.{service}", *arguments],
        env={**os.environ, **ENVIRONMENT, "CONFIG_PATH": str(file), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
