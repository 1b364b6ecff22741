"""Makes the table of the application."""

from __future__ import annotations

from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):  # type: ignore[misc]
    operations: ClassVar = [
        migrations.CreateModel(
            "Thing", [("id", models.BigAutoField(primary_key=True)), ("item", models.TextField())]
        )
    ]
