"""How much one client may hold of what all share: open transactions, requests, kept answers.

A client may take another one while it holds less than four times as many as are free. So one client alone
gets four fifths of them, ``n`` greedy ones together 4n of 4n + 1 parts, and one that holds few finds some.
These are the dynamic thresholds of Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998.
"""

from __future__ import annotations

SHARE = 4


def may_take(held: int, used: int, most: int) -> bool:
    """Whether a client that holds ``held`` of the ``used`` ones may have another, of ``most``."""
    return held < SHARE * (most - used)
