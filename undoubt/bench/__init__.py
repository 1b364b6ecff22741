"""What a commit costs: undoubt beside what people write today, on the same servers, in the same minutes.

The workload is *transfer*: two PostgreSQL servers with fsync on, one UPDATE in each, in rows that no two
workers share. Each contender is a process of its own (:mod:`.worker`), so that its CPU time can be told
apart; they take turns of about a second (:mod:`.rounds`), because the speed of a machine drifts by more than
their difference within minutes. What counts is therefore the median of the ratios of neighbouring turns
(:mod:`.figures`). Afterwards the databases are compared with what every contender says that it did
(:mod:`.audit`): a contender that lost or invented a transfer has no figures.

=================  =================================================================================
``command``        ``undoubt bench``
``contract``       what a contender is
``contenders``     one module each
``worker``         the process of one contender
``field``          the servers, and all the contenders' processes
``cluster``        the nodes of those whose ledger is replicated: one cluster for all of them
``rounds``         whose turn it is
``figures``        from turns to rows and ratios
``audit``          does what was counted agree with what is there
=================  =================================================================================
"""
