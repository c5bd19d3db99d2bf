"""`python fill.py FILE`: creates the tables and the catalogue of the peer.

The file has a JSON array of products with name, description and price.
"""

import json
import os
import sys
from pathlib import Path

import django

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop_oscar.settings")
django.setup()

from django.core.management import call_command  # noqa: E402
from oscar.core.loading import get_model  # noqa: E402


def main() -> None:
    call_command("migrate", verbosity=0)
    product_class, _ = get_model("catalogue", "ProductClass").objects.get_or_create(
        name="Goods", requires_shipping=False, track_stock=True
    )
    partner, _ = get_model("partner", "Partner").objects.get_or_create(name="Market", code="market")
    product_type = get_model("catalogue", "Product")
    stock_type = get_model("partner", "StockRecord")
    for number, product in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        created = product_type.objects.create(
            product_class=product_class, title=product["name"], description=product["description"]
        )
        stock_type.objects.create(
            product=created,
            partner=partner,
            partner_sku=str(number),
            price_currency="GBP",
            price=product["price"],
            num_in_stock=1000,
        )


if __name__ == "__main__":
    main()
