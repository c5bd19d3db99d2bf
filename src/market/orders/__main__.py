"""python -m market.orders [migrate | reconcile]"""

from market.kit.process.lifecycle import run
from market.orders.app import build, migrate
from market.orders.config import Config
from market.orders.reconciliation import command as reconciliation

if __name__ == "__main__":
    run("orders", Config, build, commands={"migrate": migrate, "reconcile": reconciliation.run})
