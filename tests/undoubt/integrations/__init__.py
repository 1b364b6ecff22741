"""Tests of the integrations: SQLAlchemy here, for both sorts of sessions and both drivers.

================  ============================================================================================
:mod:`.conftest`  makes two databases, an application with its engines, and a coordinator.
:mod:`.web`       tests the applications of web frameworks.
================  ============================================================================================
"""
