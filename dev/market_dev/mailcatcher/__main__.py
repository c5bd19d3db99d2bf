"""Runs the mail catcher: SMTP, web page and JSON API.

python -m market_dev.mailcatcher --port 8084 --smtp-port 8085 --directory .market/mail
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import ssl
from pathlib import Path

import uvloop

from market.kit.config import Log
from market.kit.http.server import HttpServer
from market.kit.process import logs
from market_dev.mailcatcher.mailbox import Mailbox
from market_dev.mailcatcher.smtp import Authenticator, Handler, Session
from market_dev.mailcatcher.web import app


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m market_dev.mailcatcher", description="Accept every mail and show it on a web page."
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, required=True, help="port of the web page and the JSON API")
    parser.add_argument("--smtp-port", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True, help="where mails are stored")
    parser.add_argument("--testing", action="store_true", help="enable fault injection by POST /api/faults")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="require this login")
    parser.add_argument(
        "--tls", metavar="PEM", type=Path, help="require STARTTLS, with certificate and key from this file"
    )
    return parser.parse_args()


async def _main(options: argparse.Namespace) -> None:
    mailbox = Mailbox(options.directory)
    handler = Handler(mailbox)
    tls = None
    if options.tls:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.tls)

    def session() -> Session:
        return Session(
            handler,
            hostname="mail.market.test",
            ident="Market mail catcher",
            enable_SMTPUTF8=True,
            timeout=300,
            tls_context=tls,
            require_starttls=tls is not None,
            auth_required=bool(options.auth),
            auth_require_tls=tls is not None,
            authenticator=Authenticator(options.auth) if options.auth else None,
        )

    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    smtp = await loop.create_server(session, options.host, options.smtp_port, reuse_address=True)
    web = HttpServer(app(mailbox, handler, testing=options.testing), options.host, options.port)
    await web.start()
    await stopping.wait()
    smtp.close()
    await web.stop(1)


if __name__ == "__main__":
    logs.setup("mail", Log(format="console"))
    uvloop.run(_main(_options()))
