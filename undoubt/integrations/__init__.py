"""Integrations of undoubt's transactions into other libraries. ``undoubt`` itself imports none of them.

==================  ==========================================================================================
:mod:`.httpx`       begins and joins transactions of a sidecar, and sends their header to other services.
:mod:`.starlette`   takes that header from requests, for any application of ASGI.
:mod:`.joining`     holds the transaction that the current code works in, for the two above.
:mod:`.sqlalchemy`  gives SQLAlchemy a ``Session`` over several engines, with one commit.
==================  ==========================================================================================
"""
