"""Views for Django's test client."""

from __future__ import annotations

import contextlib
from typing import Any

from asgiref.sync import sync_to_async
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from tests.undoubt.integrations.django.models import Order, Payment
from tests.undoubt.integrations.web.shop import NOBODY
from undoubt.integrations.django import atomic

BOTH = ["orders", "payments"]


def write(number: int, account: int = 1) -> None:
    Order.objects.using("orders").create(id=number)
    Payment.objects.using("payments").create(id=number, account=account)


@atomic(using=BOTH)
def order(_: HttpRequest, number: int) -> HttpResponse:
    write(number)
    return JsonResponse({"placed": number})


@atomic(using=BOTH)
def late(_: HttpRequest, number: int) -> HttpResponse:
    write(number, NOBODY)
    return JsonResponse({"placed": number})


@atomic(using=BOTH)
def swallows(_: HttpRequest, number: int) -> HttpResponse:
    write(number)
    with contextlib.suppress(DatabaseError):
        Payment.objects.using("payments").create(id=number, account=1)
    return JsonResponse({"placed": number})


@atomic(using=BOTH)
def raises(_: HttpRequest, number: int) -> HttpResponse:
    write(number)
    raise ZeroDivisionError


@atomic(using=BOTH, timeout=1.0)
def hasty(_: HttpRequest, number: int) -> HttpResponse:
    write(number)
    return JsonResponse({"placed": number})


async def coroutine(_: HttpRequest, number: int) -> HttpResponse:
    def place() -> None:
        with atomic(using=BOTH):
            write(number)

    await sync_to_async(place)()
    return JsonResponse({"placed": number})


def stream(_: HttpRequest, number: int) -> StreamingHttpResponse:
    with atomic(using=BOTH):
        write(number)
    return StreamingHttpResponse(str(each.id) for each in Order.objects.using("orders").all())


_PATHS: dict[str, Any] = {
    "order": order,
    "late": late,
    "swallows": swallows,
    "raises": raises,
    "hasty": hasty,
    "coroutine": coroutine,
    "stream": stream,
}
urlpatterns = [path(f"{name}/<int:number>", view) for name, view in _PATHS.items()]
