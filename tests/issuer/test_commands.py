"""The commands on a shop that requires sign-in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from market_dev.stack import sign_in
from market_dev.stack.keycloak.server import REALM
from market_dev.stack.sign_in import PEOPLE

from tests.issuer.signed_in_shop import SignedInShop, subject_of
from tests.support.readme import READMES, blocks, check_output
from tests.support.waiting import PATIENCE, until, wait_until

# Starting Keycloak for the first time takes minutes.
pytestmark = pytest.mark.timeout(900)
MARKET = Path(sys.executable).with_name("market")
RETAIL = (
    "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
    "536365,85123A,WHITE HANGING HEART,6,2010-12-01T08:26:00,2.55,17850,France\n"
)


def market(shop: SignedInShop, *arguments: object, data: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of `market`; `data`: tell it the shop's data directory."""
    options = ["--port-base", str(shop.up.port_base), *(["--data", str(shop.up.data)] if data else [])]
    command = [str(MARKET), *map(str, arguments), *options]
    env = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=env)


def test_market_token_prints_the_token_and_nothing_else(shop: SignedInShop) -> None:
    done = market(shop, "token", "ann")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", done.stdout)
    assert subject_of(done.stdout) == shop.subjects["ann"]


def test_market_token_says_who_can_sign_in_and_where(shop: SignedInShop, tmp_path: Path) -> None:
    done = market(shop, "token", "eve")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "market token: nobody is called eve: ann, ben, mia, olga can sign in\n"
    done = market(shop, "token", "ann", "--data", tmp_path, data=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no shop with sign-in runs on port {shop.up.port_base} with its data in {tmp_path}" in done.stderr


async def test_the_printed_command_places_an_order_of_ann(shop: SignedInShop) -> None:
    wait_until(lambda: "Ctrl-C" in shop.up.output)
    output = shop.up.output
    assert "Created a demo catalogue of 40 products" in output
    for person in PEOPLE:
        assert re.search(rf"^  {person.name} +{person.roles[0]}, {person.email}$", output, re.MULTILINE)
    assert shop.up.urls["issuer"] == shop.sign_in.issuer
    assert re.search(rf"^issuer +{re.escape(shop.sign_in.issuer)} ", output, re.MULTILINE)
    (line,) = re.findall(r"^ *(curl .*)$", output, re.MULTILINE)
    # The command that runs the tests is not the one that the user calls.
    line = line.replace(re.findall(r"\$\((\S+) token", line)[0], str(MARKET))
    done = await until(lambda: placed(line), what="placed")
    order = json.loads(done)
    assert (order["user"], order["email"]) == (shop.subjects["ann"], "ann@example.test")

    async def mails() -> list[object]:
        response = await shop.http.get(f"{shop.up.urls['mail']}/api/messages", params={"to": "ann@example.test"})
        return list(response.json()["items"])

    assert await until(mails, what="mailed")


def placed(line: str) -> str | None:
    """Run the command; None if a busy machine did not decide the order in time."""
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return None if '"status":503' in done.stdout else done.stdout


@pytest.mark.parametrize("name", READMES)
async def test_the_commands_of_the_readme_print_what_it_shows(shop: SignedInShop, name: str) -> None:
    if shop.sign_in.kind == "keycloak":
        # There, ann's subject is an id that Keycloak has chosen.
        return
    commands = blocks(name, sign_in=True)
    assert len(commands) == 2
    where = f"--port-base {shop.up.port_base} --data {shop.up.data}"
    for command, language, expected in commands:
        await check_output(
            command,
            language,
            expected,
            shop.up.port_base,
            lambda text: re.sub(r"\.venv/bin/market token (\w+)", rf"{MARKET} token \1 {where}", text),
        )


def test_import_replay_and_reconcile_sign_in(shop: SignedInShop, tmp_path: Path) -> None:
    file = tmp_path / "retail.csv"
    file.write_text(RETAIL)
    refused = market(shop, "import", file, "--data", tmp_path, data=False)
    assert refused.returncode == 1
    assert "MARKET_ISSUER, MARKET_CLIENT_ID and MARKET_CLIENT_SECRET" in refused.stderr
    imported = market(shop, "import", file)
    assert imported.returncode == 0, imported.stderr
    assert re.search(r"products created +│ +1 ", imported.stdout)
    replayed = market(shop, "replay", file)
    assert replayed.returncode == 0, replayed.stderr
    assert re.search(r"placed +│ +1 ", replayed.stdout)
    reconciled = market(shop, "reconcile")
    assert reconciled.returncode == 0, reconciled.stdout + reconciled.stderr
    assert "No differences." in reconciled.stdout


def test_the_credentials_in_the_environment_are_used_for_any_shop(shop: SignedInShop, tmp_path: Path) -> None:
    file = tmp_path / "retail.csv"
    file.write_text(RETAIL.replace("85123A", "85123B"))
    env = {
        **os.environ,
        "MARKET_ISSUER": shop.sign_in.issuer,
        "MARKET_CLIENT_ID": "market-tools",
        "MARKET_CLIENT_SECRET": shop.sign_in.secrets["market-tools"],
    }
    command = [MARKET, "import", file, "--url", shop.up.urls["products"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=env)
    assert done.returncode == 0, done.stderr


def test_no_secret_is_an_argument_of_a_process_or_in_a_configuration_file(shop: SignedInShop) -> None:
    secrets = [*shop.sign_in.secrets.values(), *([shop.sign_in.password] if shop.sign_in.password else [])]
    shown = [argument for process in shop.up.process_trees() for argument in process.cmdline()]
    files = [path.read_text() for path in (shop.up.data / "config").glob("*.yaml")]
    logs = [path.read_text() for path in (shop.up.data / "logs").glob("*.log")]
    assert len(files) == 6
    for text in (*shown, *files, *logs):
        assert not any(secret in text for secret in secrets)
    assert yaml.safe_load((shop.up.data / "config" / "orders.yaml").read_text())["auth"]["mode"] == "required"


async def test_a_restarted_issuer_has_the_same_keys(shop: SignedInShop) -> None:
    old = psutil.Process(shop.up.pids["issuer"])
    before = await keys(shop)
    os.kill(old.pid, signal.SIGKILL)
    psutil.wait_procs([old], timeout=PATIENCE)
    # Signed-in callers notice nothing meanwhile.
    response = await shop.send("orders", "GET", "/api/order", shop.people["ann"])
    assert response.status_code == 200
    assert await until(lambda: keys(shop), what="restarted", seconds=300) == before


async def keys(shop: SignedInShop) -> set[str]:
    """Return the ids of the issuer's keys; none while it is unavailable."""
    try:
        discovery = await shop.http.get(f"{shop.sign_in.issuer}/.well-known/openid-configuration")
        response = await shop.http.get(discovery.json()["jwks_uri"])
    except (httpx.HTTPError, ValueError):
        return set()
    return {key["kid"] for key in response.json()["keys"]}


def test_the_issuer_is_named_only_with_sign_in() -> None:
    done = subprocess.run([MARKET, "up", "keycloak"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "market up --sign-in keycloak" in done.stderr


def test_the_realm_has_the_people_of_the_local_provider_and_no_secret() -> None:
    realm = json.loads(REALM.read_text("utf-8"))
    people = {user["username"]: user for user in realm["users"] if "serviceAccountClientId" not in user}
    assert [(p["username"], p["email"], tuple(p["realmRoles"]), p["emailVerified"]) for p in people.values()] == [
        (p.name, p.email, p.roles, True) for p in PEOPLE
    ]
    secrets = [client["secret"] for client in realm["clients"] if "secret" in client]
    secrets += [credential["value"] for user in people.values() for credential in user["credentials"]]
    assert all(re.fullmatch(r"\$\{MARKET_[A-Z_]+\}", secret) for secret in secrets)
    assert len(secrets) == 8
    accounts = {u["id"]: u["serviceAccountClientId"] for u in realm["users"] if "serviceAccountClientId" in u}
    assert accounts.items() >= {(i, name) for name, i in sign_in.SUBJECTS["keycloak"].items()}
