"""Ways into a transaction from libraries that applications use already. Each is imported only by its users.

==================  ==========================================================================================
:mod:`.sqlalchemy`  gives SQLAlchemy a ``Session`` over several engines, with one commit.
==================  ==========================================================================================
"""
