"""A password that appears in one log line is a password lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undoubt.config import redact


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://app:s3cret@db/orders", "postgresql://app:***@db/orders"),
        ("postgresql+psycopg://app:s3cret@db:5432/x", "postgresql+psycopg://app:***@db:5432/x"),
        ("postgres://:s3cret@db/x", "postgres://:***@db/x"),
        ("postgresql://app@db/orders", "postgresql://app@db/orders"),
        ("postgresql:///orders?host=/run/pg", "postgresql:///orders?host=/run/pg"),
        (
            "postgresql://a:s3cret@h1:1,h2:2/x?target_session_attrs=any",
            "postgresql://a:***@h1:1,h2:2/x?target_session_attrs=any",
        ),
        (
            "postgresql://a:s3cret@h/x?application_name=me@here",
            "postgresql://a:***@here",
        ),
        (
            "postgresql://h/x?password=s3cret&user=a&sslpassword=s3cret",
            "postgresql://h/x?password=***&user=a&sslpassword=***",
        ),
        ("host=db password=s3cret user=app", "host=db password=*** user=app"),
        ("host=db PASSWORD = 's3cret with \\' quote' user=app", "host=db PASSWORD = *** user=app"),
        ("password=s3cret\\ s3cret user=app", "password=*** user=app"),
        ("user=app password='s3cret", "user=app password=***"),
        ("host=db password=s3://cret user=app", "host=db password=*** user=app"),
        ("sslpassword=s3cret", "sslpassword=***"),
        ("sqlite:////var/lib/l.db", "sqlite:////var/lib/l.db"),
        ("", ""),
    ],
)
def test_passwords_are_hidden_and_nothing_else(dsn: str, shown: str) -> None:
    assert redact(dsn) == shown


@given(
    st.text(alphabet="ABCXYZ@/?#:&%= '\\", min_size=1),
    st.sampled_from(["db/x", "db:1,e:2/x?connect_timeout=3"]),
)
def test_no_character_of_a_uri_password_survives(password: str, rest: str) -> None:
    """Passwords are pasted in raw, with every character that a URI reserves."""
    assert not set(redact(f"postgresql://app:{password}@{rest}")) & set("ABCXYZ")
