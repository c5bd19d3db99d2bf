"""`python -m market.notifications`: send mails; with `dead-letters`, list, show, replay or drop dead letters."""

from __future__ import annotations

from market.kit.process.lifecycle import run
from market.notifications.app import build
from market.notifications.config import Config
from market.notifications.dead_letters.command import dead_letters

if __name__ == "__main__":
    run("notifications", Config, build, commands={"dead-letters": dead_letters})
