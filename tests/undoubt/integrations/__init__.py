"""Tests of the integration with SQLAlchemy, for both sorts of sessions and both drivers.

================  ============================================================================================
:mod:`.conftest`  makes two databases, an application with its engines, and a coordinator.
================  ============================================================================================
"""
