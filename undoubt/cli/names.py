"""Names on the command line: a transaction is named by its id or by the gid of any of its branches."""

from __future__ import annotations

import click

from undoubt.participants.ids import Foreign, Gid, InvalidName, TxId


class TxIdParam(click.ParamType[TxId]):
    """A ``TxId``; a gid stands for its transaction."""

    name = "txid"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> TxId:
        if isinstance(value, TxId):
            return value
        text = str(value).strip()
        gid = Gid.parse(text)
        if isinstance(gid, Gid):
            return gid.txid
        try:
            return TxId.parse(text)
        except InvalidName as error:
            self.fail(str(error), param, ctx)


class GidParam(click.ParamType[Gid | Foreign]):
    """The name of any prepared transaction; a foreign name is a value too."""

    name = "gid"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Gid | Foreign:
        return value if isinstance(value, Gid | Foreign) else Gid.parse(str(value))


class NameParam(click.ParamType[Gid | Foreign | TxId]):
    """A transaction's id, else a gid."""

    name = "gid|txid"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Gid | Foreign | TxId:
        if isinstance(value, Gid | Foreign | TxId):
            return value
        try:
            return TxId.parse(str(value).strip())
        except InvalidName:
            return Gid.parse(str(value))
