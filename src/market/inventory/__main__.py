"""`python -m market.inventory [migrate]`."""

from market.inventory.app import build, migrate
from market.inventory.config import Config
from market.kit.process.lifecycle import run

if __name__ == "__main__":
    run("inventory", Config, build, commands={"migrate": migrate})
