"""One way to call another process: numbered requests, answers in any order, errors as messages.

It knows neither the ledger nor the cluster: what a call is, whoever uses it says. From the caller to the one
who is asked:

- :mod:`.client`: who waits for which answer, and the loop that tells them.
- :mod:`.envelope`: what travels.
"""
