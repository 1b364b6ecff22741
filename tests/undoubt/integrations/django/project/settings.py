"""The settings of the project. The environment has the file with the participants."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote, urlsplit

from undoubt.config import load

SOURCE = os.environ["UNDOUBT_TEST_SOURCE"]


def database(name: str) -> dict[str, Any]:
    url = urlsplit(load(SOURCE).participants[name].dsn)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path.removeprefix("/"),
        "USER": url.username,
        "PASSWORD": unquote(url.password or ""),
        "HOST": url.hostname,
        "PORT": url.port,
    }


DATABASES = {"default": database("orders"), "payments": database("payments")}
if named := os.environ.get("UNDOUBT_TEST_NAME"):
    DATABASES["payments"]["TEST"] = {"NAME": named}
INSTALLED_APPS = ["tests.undoubt.integrations.django.project.shop"]
SECRET_KEY = "of a test"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
UNDOUBT = {"source": SOURCE, "participants": {"default": "orders"}}
