"""Proofs: runs on real servers and real processes that print one line of JSON.

``python -m tests.prove NAME [options]``. Each proof is a module with ``add_arguments`` and ``main``. A
proof's ``control`` is the same proof in a copy of the tree with bugs planted.

The proofs, and under each what only it uses; then what several use:

===========================  =================================================================================
:mod:`.crash`                kills coordinator, recovery, nodes and database servers at every named step.
:mod:`.cases`                generates the cases of the crash matrix.
:mod:`.run`                  runs one case of it, from empty databases to the audit.
:mod:`.node_run`             runs one case in which nodes die.
:mod:`.agent_run`            runs one case in which the coordinator of a last-agent commit dies in its COMMIT.
:mod:`.coordinator_process`  is the coordinator's process.
:mod:`.recovery_process`     is the recovery's process.
:mod:`.node_process`         is a node's process, which can die at steps of its own.
:mod:`.sidecar_cases`        generates the cases in which services transfer money through a sidecar.
:mod:`.sidecar_run`          runs one of them.
:mod:`.sidecar_process`      is the sidecar's process.
:mod:`.caller_process`       is the process of a service.
:mod:`.frameworks`           runs the examples of the frameworks.
:mod:`.keys`                 runs the work of each key in two processes, while processes are killed.
:mod:`.keys_process`         makes orders with keys, and dies where it is told to.
:mod:`.relay`                kills those who publish, deliver and receive messages of an outbox.
:mod:`.relay_producer`       publishes in transactions.
:mod:`.relay_receiver`       notes what is delivered, and fails at random.
:mod:`.failover`             fails a participant over and back, with and without a synchronous standby.
:mod:`.standby`              makes, promotes and rewinds streaming standbys.
:mod:`.last_failover`        fails the agent of last-agent commit over, with and without a confirmation.
:mod:`.runbook`              runs the commands of the runbook, each where its section is needed.
:mod:`.live_recovery`        runs two recoveries beside live transactions.
:mod:`.scanner_process`      is the process of such a recovery.
:mod:`.without_ledger`       destroys the ledger of three-phase commits, and ends them from the participants.
:mod:`.partition`            splits Skeen's termination by a partition, and not that of a quorum.
:mod:`.f0`                   counts messages and durable writes of Paxos Commit with one acceptor and of two-
                             phase commit.
:mod:`.sqlalchemy_twophase`  compares SQLAlchemy's own ``twophase=True`` with undoubt.
:mod:`.cluster`              measures decisions a second, failover, memory and restart of three nodes.
:mod:`.deadlock`             closes circles of waits through databases and locks, and counts the victims.
:mod:`.deadlock_process`     joins in these circles.
:mod:`.contention`           locks in one order at few rows and locks, where no victim may be.
:mod:`.contention_process`   is a process that does so.
:mod:`.fencing`              stops holders of locks, and lets them write afterwards.
:mod:`.fencing_process`      takes a lock again and again, and writes under its token.
:mod:`.grow`                 adds and removes nodes under load.
:mod:`.blocks`               combines every way into a transaction with every way out of it.
:mod:`.blocks_cases`         lists these ways for asynchronous programs.
:mod:`.blocks_threads`       lists them for threads.
:mod:`.blocks_stage`         is what the cases run on.
:mod:`.operators`            generates acts of operators on every ledger.
:mod:`.operators_model`      says what each act has to do.
:mod:`.impostor`             lets roles of the databases forge names, notes, waits, functions and defaults.
:mod:`.guard`                attacks the marker of a branch and the statements that look at it, in every way.
:mod:`.guard_attacks`        lists these attacks.
:mod:`.poison`               sends every field of every call at its bounds and beyond them.
:mod:`.disk`                 makes disks of nodes hang, slow, fail and fill up.
:mod:`.disk_node`            is a node's process on such a disk.
:mod:`.damage`               flips, cuts and removes every kind of file.
:mod:`.damage_ledger`        does so with a SQLite ledger.
:mod:`.damage_node`          does so with a node's disk.
:mod:`.damaging`             changes files, and reads what is said when they are opened.
:mod:`.setback`              copies back, clones and loses ledgers and volumes.
:mod:`.move`                 moves a ledger through all backends while branches are in doubt.
:mod:`.mover_process`        is the moving process.
:mod:`.shadowed`             installs undoubt beside an application that has packages of the rooms' names.
:mod:`.two_sidecars`         kills the sidecars of two services that share a transaction.
:mod:`.upgrade`              runs the last release and this one beside each other, and one after the other.
:mod:`.upgrade_app`          is an application of either release.
:mod:`.upgrade_formats`      compares what the last release encodes with what this one reads.
:mod:`.upgrade_stage`        runs commands, applications and nodes of either release.
:mod:`.releases`             holds the last release, as a wheel.
:mod:`.wire`                 strikes every message to the databases with one fault.
:mod:`.wire_cases`           lists scenes and cases.
:mod:`.wire_doors`           lists the ways in which an application uses undoubt.
:mod:`.wire_proxy`           is the proxy that strikes.
:mod:`.wire_run`             runs one scene.
:mod:`.console`              looks at every state of the console in a browser, with scripts planted in names.
:mod:`.console_states`       lists these states, and makes them.
:mod:`.console_live`         compares what the console shows with what happens, and with the command line.
:mod:`.console_stage`        is the system that the console shows.
:mod:`.deploy`               checks what is in ``deploy/`` with the tools that would use it, and runs it.
:mod:`.dev`                  kills each process of ``undoubt dev``, ends it, and looks for what is left.
:mod:`.examples`             runs the examples of the sidecar as their page says.
:mod:`.sql_types`            sends SQL values through the sidecar and back, and looks what was lost.
:mod:`.sql_types_cases`      lists these values.
:mod:`.hostile`              attacks a sidecar in every way, beside a client that works.
:mod:`.house`                counts what makes the project hard to read, and traces the files of a commit.
:mod:`.control`              runs a proof in a copy of the tree with bugs planted.
:mod:`.bank`                 moves money between two databases, and audits it.
:mod:`.stage`                makes the databases, poolers and ledgers that cases run on.
:mod:`.ledgers`              lists the kinds of ledgers, and what of each can be killed.
:mod:`.nodes`                runs nodes as operators do: real processes and commands.
:mod:`.processes`            runs child processes that speak in lines of JSON.
:mod:`.trap`                 stops or kills a process at one named step.
===========================  =================================================================================
"""
