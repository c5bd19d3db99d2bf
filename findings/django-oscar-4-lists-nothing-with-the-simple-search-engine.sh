#!/usr/bin/env bash
# django-oscar 4: with django-haystack's SimpleEngine, the catalogue page is empty, whatever the database contains.
#
# Expected: with SimpleEngine, the one engine of django-haystack that needs neither a server nor another package, searches
# are poor, but the catalogue lists the products of the database.
# Seen: in version 4 the catalogue page is itself a search. With SimpleEngine it finds nothing: it has status 200 and says
# "No products found.", and no exception is raised. Oscar's own manager finds the same products.
#
# Versions: django-oscar 4.2.1, django-haystack 3.4.0, Django 5.2.19, sorl-thumbnail 13.4.0, Python 3.11, SQLite.
# Seen on 2026-11-29:
#   30 products in the database, 30 of them to be browsed
#   /catalogue/: status 200, 0 products, says "No products found."
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  django-oscar==4.2.1 django-haystack==3.4.0 Django==5.2.19 sorl-thumbnail==13.4.0 || exit 2
cd "$folder"
cat > shop_settings.py <<'PYTHON'
from oscar.defaults import *

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}}
SECRET_KEY = "for this script"
ALLOWED_HOSTS = ["127.0.0.1"]
SITE_ID = 1
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "shop_urls"
STATIC_URL = "/static/"
MEDIA_URL = "/media/"
USE_TZ = True
HAYSTACK_CONNECTIONS = {"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}}
INSTALLED_APPS = [
    *(f"django.contrib.{n}" for n in "admin auth contenttypes sessions messages staticfiles sites flatpages".split()),
    "oscar.config.Shop",
    "oscar.apps.analytics.apps.AnalyticsConfig",
    "oscar.apps.checkout.apps.CheckoutConfig",
    "oscar.apps.address.apps.AddressConfig",
    "oscar.apps.shipping.apps.ShippingConfig",
    "oscar.apps.catalogue.apps.CatalogueConfig",
    "oscar.apps.catalogue.reviews.apps.CatalogueReviewsConfig",
    "oscar.apps.communication.apps.CommunicationConfig",
    "oscar.apps.partner.apps.PartnerConfig",
    "oscar.apps.basket.apps.BasketConfig",
    "oscar.apps.payment.apps.PaymentConfig",
    "oscar.apps.offer.apps.OfferConfig",
    "oscar.apps.order.apps.OrderConfig",
    "oscar.apps.customer.apps.CustomerConfig",
    "oscar.apps.search.apps.SearchConfig",
    "oscar.apps.voucher.apps.VoucherConfig",
    "oscar.apps.wishlists.apps.WishlistsConfig",
    "oscar.apps.dashboard.apps.DashboardConfig",
    "oscar.apps.dashboard.reports.apps.ReportsDashboardConfig",
    "oscar.apps.dashboard.users.apps.UsersDashboardConfig",
    "oscar.apps.dashboard.orders.apps.OrdersDashboardConfig",
    "oscar.apps.dashboard.catalogue.apps.CatalogueDashboardConfig",
    "oscar.apps.dashboard.offers.apps.OffersDashboardConfig",
    "oscar.apps.dashboard.partners.apps.PartnersDashboardConfig",
    "oscar.apps.dashboard.pages.apps.PagesDashboardConfig",
    "oscar.apps.dashboard.ranges.apps.RangesDashboardConfig",
    "oscar.apps.dashboard.reviews.apps.ReviewsDashboardConfig",
    "oscar.apps.dashboard.vouchers.apps.VouchersDashboardConfig",
    "oscar.apps.dashboard.communications.apps.CommunicationsDashboardConfig",
    "oscar.apps.dashboard.shipping.apps.ShippingDashboardConfig",
    "widget_tweaks",
    "haystack",
    "treebeard",
    "sorl.thumbnail",
    "django_tables2",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "oscar.apps.basket.middleware.BasketMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.template.context_processors.i18n",
                "django.contrib.messages.context_processors.messages",
                "oscar.apps.search.context_processors.search_form",
                "oscar.apps.checkout.context_processors.checkout",
                "oscar.apps.communication.notifications.context_processors.notifications",
                "oscar.core.context_processors.metadata",
            ]
        },
    }
]
PYTHON
cat > shop_urls.py <<'PYTHON'
from django.apps import apps
from django.urls import include, path

urlpatterns = [
    path("i18n/", include("django.conf.urls.i18n")),
    path("", include(apps.get_app_config("oscar").urls[0])),
]
PYTHON
cat > look.py <<'PYTHON'
import os
import sys
import warnings

warnings.simplefilter("ignore")
os.environ["DJANGO_SETTINGS_MODULE"] = "shop_settings"
import django

django.setup()
from django.core.management import call_command
from django.test import Client
from oscar.core.loading import get_model

call_command("migrate", verbosity=0)
Product = get_model("catalogue", "Product")
kind = get_model("catalogue", "ProductClass").objects.create(name="Goods")
for number in range(30):
    Product.objects.create(product_class=kind, title=f"Lamp {number}")
count, browsable = Product.objects.count(), Product.objects.browsable().count()
print(f"{count} products in the database, {browsable} of them to be browsed")
client = Client(HTTP_HOST="127.0.0.1")
page = client.get("/catalogue/")
listed = page.content.count(b'"product_pod"')
says_none = b"No products found." in page.content
print(f"/catalogue/: status {page.status_code}, {listed} products" + (', says "No products found."' if says_none else ""))
sys.exit(0 if (browsable, page.status_code, listed, says_none) == (30, 200, 0, True) else 1)
PYTHON
"$folder/venv/bin/python" look.py
