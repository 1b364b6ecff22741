"""Integrations of undoubt's transactions into other libraries. ``undoubt`` itself imports none of them.

=====================  =======================================================================================
:mod:`.httpx`          begins and joins transactions of a sidecar, and sends their header to other services.
:mod:`.starlette`      takes that header from requests, for any application of ASGI.
:mod:`.joining`        holds the transaction that the current code works in, for the two above.
:mod:`.sqlalchemy`     gives SQLAlchemy a ``Session`` over several engines, with one commit.
:mod:`.asgi`           commits before the response, in applications of ASGI: Starlette, FastAPI, Quart.
:mod:`.fastapi`        has the dependencies of FastAPI for it.
:mod:`.quart`          puts it around an application of Quart.
:mod:`.flask`          commits before the response, in applications of Flask.
:mod:`.django`         has ``atomic(using=[…])`` for several databases of Django.
:mod:`.django_test_databases`
                       has its coordinator follow to the databases of Django's test runner.
:mod:`.celery`         acknowledges a task of Celery after its commit, and does it once.
:mod:`.rq`             does the same for a job of RQ.
:mod:`.zope`           joins transactions of package ``transaction``: Pyramid, Zope.
:mod:`.zope_sessions`  refuses two sessions of SQLAlchemy that write in one transaction of zope.
:mod:`.sqlmodel`       has SQLModel's sessions with one commit.
:mod:`.pytest`         is a plugin of pytest: real databases, a ledger, crashes at named steps.
:mod:`.per_process`    has a coordinator for each process of an application, for Flask and the task queues.
:mod:`.request_work`   is the transaction, or the session, of one request.
:mod:`.answers`        answers requests whose transaction did not commit, or may have.
:mod:`.validation`     judges what an application gives to the others, when it gives it.
:mod:`.extras`         tells how to install the library that an integration needs.
=====================  =======================================================================================
"""
