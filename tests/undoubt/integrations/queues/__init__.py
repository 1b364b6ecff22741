"""Tasks of Celery and jobs of RQ over a real Redis server, and transactions of zope.

================  ============================================================================================
:mod:`.conftest`  starts Redis, and makes two databases.
:mod:`.jobs`      has the functions that workers of RQ import.
:mod:`.prefork`   is the application of a Celery worker with a pool of processes.
================  ============================================================================================
"""
