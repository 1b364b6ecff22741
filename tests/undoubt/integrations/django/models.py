"""Models of the two databases of :mod:`tests.undoubt.integrations.web.shop`."""

from __future__ import annotations

from django.db import models


class Order(models.Model):  # type: ignore[misc]
    id = models.IntegerField(primary_key=True)
    item = models.TextField(default="a lamp")

    class Meta:
        app_label = "tests"
        db_table = "orders"


class Payment(models.Model):  # type: ignore[misc]
    id = models.IntegerField(primary_key=True)
    account = models.IntegerField()

    class Meta:
        app_label = "tests"
        db_table = "payments"
