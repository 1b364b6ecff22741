"""Names on the command line: a transaction may be given by its own id or by any of its branches' gids."""

from __future__ import annotations

import click

from participants.ids import Gid, InvalidName, TxId


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
