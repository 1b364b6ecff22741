"""Pyramid with pyramid_tm: a response is sent after the commit of the zope transaction. It sends itself two
requests."""

import contextlib
import warnings

import psycopg
from werkzeug.test import Client

import undoubt
import undoubt.sync
from undoubt.integrations.zope import join

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # WebOb uses module cgi
    from pyramid.config import Configurator
    from pyramid.request import Request
    from pyramid.response import Response

coordinator = undoubt.sync.connect("undoubt.toml")


def place(request: Request) -> Response:
    tx = join(coordinator, request.tm)
    tx.branch("orders").execute("insert into orders (item) values (%s)", (request.matchdict["item"],))
    payments, price = tx.branch("payments"), int(request.matchdict["price"])
    with contextlib.suppress(psycopg.errors.CheckViolation):  # a mistake, as many programs have it
        payments.execute("update accounts set balance = balance - %s where name = 'ada'", (price,))
    return Response("placed")


def not_placed(error: Exception, _: Request) -> Response:
    return Response(type(error).__name__, 409 if isinstance(error, undoubt.TransactionAborted) else 500)


def main() -> None:
    with Configurator(settings={"tm.manager_hook": "pyramid_tm.explicit_manager"}) as config:
        config.include("pyramid_tm")
        config.add_route("place", "/orders/{item}/{price}")
        config.add_view(place, route_name="place")
        config.add_exception_view(not_placed, context=undoubt.UndoubtError)
        client = Client(config.make_wsgi_app())
    for path in ("/orders/lamp/15", "/orders/castle/1000"):
        answered = client.post(path)
        print(answered.status_code, answered.text)
    coordinator.close()


if __name__ == "__main__":
    main()
