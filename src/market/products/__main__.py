"""`python -m market.products [migrate]`."""

from market.kit.process.lifecycle import run
from market.products.app import build, migrate
from market.products.config import Config

if __name__ == "__main__":
    run("products", Config, build, commands={"migrate": migrate})
