"""Django: one block over two databases. It sends itself two requests by Django's test client."""

import contextlib
from typing import Any
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings
from django.db import DatabaseError, models
from django.http import HttpRequest, JsonResponse
from django.test import Client
from django.urls import path

from undoubt.config import load


def database(name: str) -> dict[str, Any]:
    """The entry of ``DATABASES`` for a participant of ``undoubt.toml``; most projects have theirs already."""
    url = urlsplit(load("undoubt.toml").participants[name].dsn)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path.removeprefix("/"),
        "USER": url.username,
        "PASSWORD": unquote(url.password or ""),
        "HOST": url.hostname,
        "PORT": url.port,
        "CONN_MAX_AGE": 60,
    }


settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": database("orders"), "payments": database("payments")},
    MIDDLEWARE=["undoubt.integrations.django.TellOutcome"],
    ROOT_URLCONF=__name__,
    UNDOUBT={"source": "undoubt.toml", "participants": {"default": "orders"}},
)
django.setup()

from undoubt.integrations.django import atomic  # noqa: E402 - Django's settings come first


class Order(models.Model):  # type: ignore[misc]
    item = models.TextField()

    class Meta:
        app_label = "shop"
        db_table = "orders"


class Account(models.Model):  # type: ignore[misc]
    name = models.TextField(primary_key=True)
    balance = models.IntegerField()

    class Meta:
        app_label = "shop"
        db_table = "accounts"


@atomic(using=["default", "payments"])
def place(_: HttpRequest, item: str, price: int) -> JsonResponse:
    Order.objects.create(item=item)
    with contextlib.suppress(DatabaseError):  # a mistake, as many programs have it
        Account.objects.using("payments").filter(name="ada").update(balance=models.F("balance") - price)
    return JsonResponse({"placed": item})


urlpatterns = [path("orders/<item>/<int:price>", place)]


def main() -> None:
    client = Client()
    for address in ("/orders/lamp/15", "/orders/castle/1000"):
        answered = client.post(address)
        told = "committed" if answered.status_code < 400 else "rolled back"
        print(answered.status_code, answered.headers.get("Undoubt-Outcome", told))


if __name__ == "__main__":
    main()
