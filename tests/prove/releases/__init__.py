"""The last release, as a wheel: version 0.1.0, made of commit ce7a82e. It lies here since a clone may lack
the history of the repository."""

from pathlib import Path

WHEEL = Path(__file__).with_name("undoubt-0.1.0-py3-none-any.whl")
