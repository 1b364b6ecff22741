"""Applications of web frameworks answer what has become of their transactions: one set of cases for all.

=========================  ===================================================================================
:mod:`.shop`               has the two databases, and makes commits fail, hang or end heuristically.
:mod:`.conftest`           runs every application over a shop.
:mod:`.client`             sends requests by the test clients of the frameworks.
:mod:`.fastapi_app`        is the application of FastAPI: coroutines, threads, sessions.
:mod:`.starlette_app`      is the application of Starlette.
:mod:`.quart_app`          is the application of Quart.
:mod:`.flask_app`          is the application of Flask: plain views and coroutines.
=========================  ===================================================================================
"""
