"""Integrations of undoubt's transactions into other libraries. ``undoubt`` itself imports none of them.

==================  ==========================================================================================
:mod:`.sqlalchemy`  gives SQLAlchemy a ``Session`` over several engines, with one commit.
==================  ==========================================================================================
"""
