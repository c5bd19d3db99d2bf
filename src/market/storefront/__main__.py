"""Run the storefront: CONFIG_PATH=FILE python -m market.storefront"""

from market.kit.process.lifecycle import run
from market.storefront.app import build
from market.storefront.config import Config

if __name__ == "__main__":
    run("storefront", Config, build)
