"""The model of the application."""

from __future__ import annotations

from django.db import models


class Thing(models.Model):  # type: ignore[misc]
    item = models.TextField()

    class Meta:
        app_label = "shop"
