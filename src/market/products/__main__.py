from market.kit.process.lifecycle import run
from market.products.app import build, migrate
from market.products.config import Config

run("products", Config, build, commands={"migrate": migrate})
