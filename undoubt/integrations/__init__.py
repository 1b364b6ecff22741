"""Doors for what applications are built with already. Each is imported by its users alone.

:mod:`undoubt.integrations.sqlalchemy`: a ``Session`` over several engines, and one commit.
"""
