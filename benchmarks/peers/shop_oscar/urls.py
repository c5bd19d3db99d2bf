"""The addresses of the peer: those of django-oscar, and its catalogue read from PostgreSQL.

Version 4 reads the catalogue from a search engine. None comes with it but one that loads all products each time. So the
page is its template with its own query, which costs it least.
"""

from types import SimpleNamespace

from django.apps import apps
from django.urls import include, path
from django.views.generic import ListView
from oscar.core.loading import get_model


class Catalogue(ListView):
    template_name = "oscar/catalogue/browse.html"
    paginate_by = 20
    queryset = get_model("catalogue", "Product").objects.browsable().base_queryset().order_by("-date_created")

    def get_context_data(self, **kwargs):
        context = super().get_context_data(**kwargs)
        # The template expects the results of a search.
        products = [SimpleNamespace(object=product) for product in context["object_list"]]
        return {**context, "summary": "All products", "products": products}


urlpatterns = [
    path("browse/", Catalogue.as_view()),
    path("i18n/", include("django.conf.urls.i18n")),
    path("", include(apps.get_app_config("oscar").urls[0])),
]
