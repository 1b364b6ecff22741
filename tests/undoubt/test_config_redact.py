"""A password that appears in one log line is a password lost."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undoubt.config import redact
from undoubt.coordinator.errors import LedgerError
from undoubt.coordinator.ledger import open_ledger
from undoubt.coordinator.settings import LedgerSettings


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
        ("postgresql://h/x?%70assword=s3cret", "postgresql://h/x?%70assword=***"),
        ("postgresql://h/x?p%2561ssword=s3cret", "postgresql://h/x?p%2561ssword=***"),
        ("postgresql://h/x?password=s3cret&s3cret", "postgresql://h/x?password=***&***"),
        ("postgresql://h/x?password=s3cret#s3cret", "postgresql://h/x?password=***"),
        ("postgresql://h/x?oauth_client_secret=s3cret", "postgresql://h/x?oauth_client_secret=***"),
        (
            "postgresql+psycopg://a@h/x?options=-c%20my.password%3Ds3cret&port=1",
            "postgresql+psycopg://a@h/x?options=***&port=1",
        ),
        ("postgresql://h/x?options=-c+my.password=s3cret", "postgresql://h/x?options=***"),
        ("postgresql://h/?dbname=host%3Dh%20password%3Ds3cret", "postgresql://h/?dbname=***"),
        ("postgresql://h/?dbname=postgresql%3A%2F%2Fa%3As3cret%40h%2Fx", "postgresql://h/?dbname=***"),
        ("postgresql://a@h/?dbname=postgresql://a:s3cret@h/x", "postgresql://a@h/?dbname=***"),
        ("postgresql://h/password=s3cret host=h", "postgresql://h/***"),
        ("postgresql+psycopg://h/host=h%20password%3Ds3cret?port=1", "postgresql+psycopg://h/***?port=1"),
        (" postgresql://a:s3cret@h/x?password=s3cret", " postgresql://a:***@h/x?password=***"),
        ("jdbc:postgresql://a:s3cret@h/x?password=s3cret", "jdbc:postgresql://a:***@h/x?password=***"),
        ("host=h dbname='postgresql://a:s3cret@h/x'", "host=h dbname=***"),
        ("host=h dbname='host=h password=\\'s3cret\\''", "host=h dbname=***"),
        ("host=h dbname=host=h\\ password=s3cret", "host=h dbname=***"),
        ("host=h options='-c my.password=s3cret'", "host=h options=***"),
        ("host= password=s3cret", "host= ***"),
        ("host=h options='-c password_encryption=md5'", "host=h options='-c password_encryption=md5'"),
        ("postgresql://h/x?password%3Ds3cret", "postgresql://h/x?***"),
        ("postgresql://h/x?password%3Ds3cret=1&port=1", "postgresql://h/x?***&port=1"),
        ("postgresql://h/x?passfile=/etc/pgpass", "postgresql://h/x?passfile=/etc/pgpass"),
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


FORMS = (
    "postgresql+psycopg://h/x?port=1&password={encoded}",
    "postgresql+psycopg://h/x?port=1&password%3D{encoded}",
    "postgresql+psycopg://h/x?port=1&password%3D{encoded}=1",
    "postgresql+psycopg://h/x?port=1&options=-c%20my.password%3D{encoded}",
    "postgresql+psycopg://h/x?port=1&dbname=host%3Dh%20password%3D{encoded}",
    "postgresql+psycopg://h/x?port=1&dbname=postgresql%3A%2F%2Fu%3A{encoded}%40h%2Fx",
    "postgresql+psycopg://h/host%3Dh%20password%3D{encoded}?port=1",
    "host=h port=1 dbname='host=h password={plain}'",
    "host=h port=1 options='-c my.password={plain}'",
)


@pytest.mark.parametrize("form", FORMS)
@given(password=st.text(alphabet="ABCXYZ@/?#:&%=+ ", min_size=1))
def test_no_character_of_a_password_in_another_place_survives(form: str, password: str) -> None:
    """libpq and SQLAlchemy take a password in many a place, percent-encoded once or more."""
    once = quote(password, safe="")
    for encoded in (once, quote(once, safe="")):
        shown = redact(form.format(encoded=encoded, plain=password))
        hidden = shown.replace("%20", "").replace("%3A", "").replace("%2F", "")
        assert not set(hidden) & set("ABCXYZ"), shown


URLS = tuple(form for form in FORMS if form.startswith("postgresql"))


@pytest.mark.parametrize("form", URLS)
async def test_no_error_of_a_ledger_shows_a_password(form: str) -> None:
    """Broken if a URL, or the part of it that libpq did not understand, is shown with a password."""
    url = form.format(encoded="s3cret").replace("//h", "//127.0.0.1")
    for each in (url.replace("port=1", "port=0"), url):
        settings = LedgerSettings(url=each, request_timeout_s=1.0)
        with pytest.raises(LedgerError) as raised:
            await open_ledger(settings)
        for told in (str(raised.value), repr(raised.value), repr(settings)):
            assert "s3cret" not in told
