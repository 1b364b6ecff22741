"""Tests of ``undoubt relay``: over a real database, with receivers that fail."""
