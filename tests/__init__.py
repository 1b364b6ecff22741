"""The tests: ``make test`` runs those that are fast, ``make test-slow`` those marked ``slow``.

First the tests of the rooms, from the lowest up; then what tests the system as a whole; then what all share:

=======================  =====================================================================================
:mod:`.house`            tests the text of the project: sizes, words, imports, dead code, maps.
:mod:`.participants`     tests participants on real PostgreSQL servers, with both drivers.
:mod:`.coordinator`      tests protocols, ledgers, Raft, Paxos, the wire and nodes.
:mod:`.recovery`         tests recovery and what operators do.
:mod:`.undoubt`          tests the public API, the command line, doctor, integrations, demo and benchmark.
:mod:`.docs`             runs the examples of the documentation, and compares its pages with the code.
:mod:`.scenarios`        runs stories that are written as text: commands in, trace out.
:mod:`.simulation`       runs the whole system from a seed, in virtual time, with simulated disks, network and
                         databases (``make simulate``).
:mod:`.linearizability`  checks whether the answers of a ledger are linearizable.
:mod:`.models`           searches every state of a protocol at small bounds (``make models``).
:mod:`.prove`            runs real servers and processes, and prints one line of JSON (``make prove``).
:mod:`.faults`           runs real nodes under signals, partitions, full disks and clocks that jump (`make
                         faults`).
:mod:`.conformance`      runs cases of an outside suite (``make conformance``).
:mod:`.mutants`          plants bugs, each of which a test must find (``make mutants``).
:mod:`.conftest`         defines the fixtures ``postgres``, ``database``, ``databases`` and ``etcd``, and
                         fails a test that leaves a prepared transaction.
:mod:`.servers`          starts the PostgreSQL servers of the tests.
:mod:`.etcd`             starts the etcd members of the tests.
:mod:`.ports`            gives free TCP ports.
:mod:`.stand_in`         replaces what a module of the product has imported.
:mod:`.service_manager`  is systemd's side of a service's reports.
:mod:`.pgbouncer`        starts PgBouncer in front of a server.
=======================  =====================================================================================
"""
