"""The benchmark: measures the cost of a commit, compared with hand-written code on the same servers.

The workload is *transfer*: two PostgreSQL servers with fsync on, one UPDATE in each, in rows that no two
workers share. Each contender runs in its own process, so that its CPU time can be measured separately. The
contenders take turns of about a second, because the speed of a machine drifts within minutes by more than the
contenders differ. The result is therefore the median of the ratios within each round of turns. A contender
that lost or invented a transfer has no figures.

In the order in which a measurement uses them:

==================  ==========================================================================================
:mod:`.command`     implements ``undoubt bench``.
:mod:`.contract`    declares the interface of a contender, and its parameters.
:mod:`.contenders`  lists the contenders, one module for each kind.
:mod:`.field`       starts the servers, and the process of every contender.
:mod:`.cluster`     starts the nodes that the contenders with a replicated ledger share.
:mod:`.distance`    is the proxy that adds a round-trip time in front of servers and nodes.
:mod:`.worker`      runs one contender in its process, turn by turn.
:mod:`.http_client`  is the small HTTP client of the contenders that use a sidecar.
:mod:`.rounds`      decides which contender has the next turn.
:mod:`.audit`       compares the databases with the numbers that the contenders counted.
:mod:`.figures`     computes rows and ratios from the turns.
==================  ==========================================================================================
"""
