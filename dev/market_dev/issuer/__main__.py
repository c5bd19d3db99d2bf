"""A small OpenID Connect provider for development. Anybody who reaches it signs in without a password.

python -m market_dev.issuer --port 8096 --directory .market/issuer --settings .market/issuer/settings.json
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from market.kit.config import Log
from market.kit.http.server import HttpServer
from market.kit.process import logs
from market_dev.issuer import keys
from market_dev.issuer.settings import InvalidSettings, Settings, load, require_loopback
from market_dev.issuer.web import app


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m market_dev.issuer", description="Sign in people and programs, for development."
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on: a loopback address")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True, help="where the signing key is stored")
    parser.add_argument("--settings", type=Path, required=True, help="JSON file: who can sign in, and what may")
    return parser.parse_args()


async def _main(options: argparse.Namespace, settings: Settings) -> None:
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    issuer = f"http://{options.host}:{options.port}"
    web = HttpServer(app(settings, keys.load_or_create(options.directory), issuer), options.host, options.port)
    await web.start()
    await stopping.wait()
    await web.stop(1)


def main() -> None:
    options = _options()
    try:
        require_loopback(options.host)
        settings = load(options.settings)
    except InvalidSettings as e:
        sys.exit(f"issuer: {e}")
    logs.setup("issuer", Log(format="console"))
    uvloop.run(_main(options, settings))


if __name__ == "__main__":
    main()
