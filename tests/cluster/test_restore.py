"""Backups that restore: taken under load, restored to another moment, reconciled, and what is lost is reported."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

from tests.cluster import books, cluster
from tests.cluster.conftest import Report
from tests.cluster.load import Load
from tests.cluster.test_a_deploy import call, mails_to

STOCK = 100_000


def create_product(shop: str) -> str:
    body = {"name": f"Restored {uuid.uuid4()}", "description": "", "price": "1.00", "currency": "GBP", "stock": STOCK}
    return str(call(f"{shop}/api/product", body)["id"])


def place(shop: str, product: str, user: str, email: str | None = None) -> str:
    body = {"user": user, "items": [{"product_id": product, "quantity": 1}]}
    return str(call(f"{shop}/api/order", body | ({"email": email} if email else {}))["id"])


def orders_of(shop: str, user: str) -> dict[str, str]:
    """Return the product of each of the user's orders, by the order's id."""
    found: dict[str, str] = {}
    after = ""
    while True:
        page = call(f"{shop}/api/order?user={user}&limit=1000&status=confirmed{after}")
        found |= {order["id"]: order["items"][0]["product_id"] for order in page["items"]}
        if page["next"] is None:
            return found
        after = f"&after={page['next']}"


async def test_a_backup_taken_under_load_is_restored_and_reconciled(shop: str, report: Report, tmp_path: Path) -> None:
    products = [create_product(shop) for _ in range(3)]
    async with Load(shop, products) as load:
        await asyncio.to_thread(cluster.seconds_until, "20 orders are placed", lambda: len(load.placed) >= 20)
        before = set(load.placed.values())
        done, backup_seconds = await asyncio.to_thread(cluster.script, "backup.sh", "--to", str(tmp_path))
        await asyncio.sleep(5)
    [folder] = tmp_path.iterdir()
    manifest = {line.split()[0]: int(line.split()[1]) for line in (folder / "manifest").read_text().splitlines()}
    assert set(manifest) == {"inventory.dump", "products.dump", "orders.archive"}
    assert min(manifest.values()) > 1000
    passwords = json.loads(cluster.kubectl("get", "secret", "passwords", "-o", "json"))["data"].values()
    assert not [password for password in passwords if password in done.stdout + done.stderr]

    # After the backup: three orders and a product.
    user = f"late-{uuid.uuid4().hex}"
    late = {place(shop, products[0], user) for _ in range(3)}
    late_product = create_product(shop)
    done, restore_seconds = await asyncio.to_thread(cluster.script, "restore.sh", str(folder), "--yes")
    print(done.stdout, done.stderr)
    cluster.wait_until_all_are_ready()

    # Every order from before the backup exists, and every order that does not is listed as lost.
    existing = orders_of(shop, load.user)
    missing = set(load.placed.values()) - set(existing)
    [listed] = folder.glob("lost-orders-*")
    lost = {line.split()[0] for line in listed.read_text().splitlines()}
    assert before & missing == set()
    assert missing | late <= lost
    assert lost & set(existing) == set()
    assert orders_of(shop, user) == {}
    names = {item["id"] for item in call(f"{shop}/api/product?limit=100")["items"]}
    assert late_product not in names

    # The books: what is free plus what is sold is what there was.
    sold = {product: sum(item == product for item in existing.values()) for product in products}
    assert books.units_left(products) == {product: STOCK - units for product, units in sold.items()}
    assert books.reconcile() == 0
    email = f"{uuid.uuid4().hex}@example.test"
    place(shop, products[0], "afterwards", email)
    assert len(mails_to(email)) == 1
    report["restore drill"] = {
        "failed while the backup was made": len(load.failures),
        "of": load.requests,
        "orders before the backup": len(before),
        "orders in all": len(load.placed) + len(late),
        "lost and listed": len(lost),
        "backup seconds": round(backup_seconds, 1),
        "restore seconds": round(restore_seconds, 1),
        "bytes": manifest,
    }


def test_the_daily_backups_are_made_checked_fetched_and_restored(shop: str, report: Report, tmp_path: Path) -> None:
    product, user = create_product(shop), f"daily-{uuid.uuid4().hex}"
    order = place(shop, product, user)
    for name in ("backup-postgresql", "backup-mongodb"):
        cluster.kubectl("create", "job", f"--from=cronjob/{name}", f"{name}-now")
    try:
        for name in ("backup-postgresql", "backup-mongodb"):
            cluster.kubectl("wait", f"job/{name}-now", "--for=condition=Complete", "--timeout=180s")
            print(cluster.kubectl("logs", f"job/{name}-now"))
    finally:
        cluster.kubectl("delete", "job", "backup-postgresql-now", "backup-mongodb-now", "--ignore-not-found")
    later = place(shop, product, user)
    done, seconds = cluster.script("backup.sh", "--fetch", "--to", str(tmp_path))
    [folder] = tmp_path.iterdir()
    print(done.stdout)
    done, _ = cluster.script("restore.sh", str(folder), "--yes")
    cluster.wait_until_all_are_ready()
    assert set(orders_of(shop, user)) == {order}
    [listed] = folder.glob("lost-orders-*")
    assert later in listed.read_text()
    report["daily backups"] = {"fetch seconds": round(seconds, 1), "files": sorted(p.name for p in folder.iterdir())}


def test_a_backup_is_restored_to_a_new_cluster(shop: str, report: Report, tmp_path: Path) -> None:
    """The shop is removed with its volumes and passwords, and deployed again before the restore."""
    product, user, email = create_product(shop), f"moved-{uuid.uuid4().hex}", f"{uuid.uuid4().hex}@example.test"
    order = place(shop, product, user, email)
    assert len(mails_to(email)) == 1
    catalogue = call(f"{shop}/api/product?limit=1")["total"]
    cluster.script("backup.sh", "--to", str(tmp_path))
    [folder] = tmp_path.iterdir()
    passwords = cluster.kubectl("get", "secret", "passwords", "-o", "jsonpath={.data}")
    cluster.script("undeploy.sh", "--yes")

    _, deploy_seconds = cluster.deploy()
    assert cluster.kubectl("get", "secret", "passwords", "-o", "jsonpath={.data}") != passwords
    new_shop = cluster.address()
    assert orders_of(new_shop, user) == {}
    done, restore_seconds = cluster.script("restore.sh", str(folder), "--yes")
    print(done.stdout, done.stderr)
    cluster.wait_until_all_are_ready()

    assert orders_of(new_shop, user) == {order: product}
    # Not the demo catalogue of the new shop beside the one of the backup.
    assert call(f"{new_shop}/api/product?limit=1")["total"] == catalogue
    assert books.units_left([product]) == {product: STOCK - 1}
    assert books.reconcile() == 0
    [listed] = folder.glob("lost-orders-*")
    assert listed.read_text() == ""
    # Consumption begins again: new orders are mailed, those from the backup are not mailed a second time.
    new_email = f"{uuid.uuid4().hex}@example.test"
    place(new_shop, product, user, new_email)
    assert len(mails_to(new_email)) == 1
    assert books.mails_to(email) == []
    report["restore to a new cluster"] = {
        "deploy seconds": round(deploy_seconds, 1),
        "restore seconds": round(restore_seconds, 1),
    }
