"""Run the gateway: CONFIG_PATH=FILE python -m market.graphql"""

from market.graphql.app import build
from market.graphql.config import Config
from market.kit.process.lifecycle import run

if __name__ == "__main__":
    run("graphql", Config, build)
