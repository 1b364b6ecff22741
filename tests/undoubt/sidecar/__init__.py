"""The sidecar as its clients meet it: a process, over its unix socket and TCP, with real databases."""
