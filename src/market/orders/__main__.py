"""python -m market.orders"""

from market.kit.process.lifecycle import run
from market.orders import admin
from market.orders.app import build, migrate
from market.orders.config import Config

if __name__ == "__main__":
    run("orders", Config, build, commands={"migrate": migrate, "reconcile": admin.command})
