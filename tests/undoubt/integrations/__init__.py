"""Tests of the integrations: SQLAlchemy here, for both sorts of sessions and both drivers.

================  ============================================================================================
:mod:`.conftest`  makes two databases, an application with its engines, and a coordinator.
:mod:`.web`       tests the applications of web frameworks.
:mod:`.plugin`    tests the plugin of pytest.
:mod:`.queues`    tests Celery, RQ and zope's transactions.
:mod:`.django`    tests Django's blocks over several databases.
================  ============================================================================================
"""
