"""`metier chaos`: real roles on real services, killed, frozen, drained and cut off by a seed, and the delivery promises checked from outside.

`plan` draws the faults, `fleet` runs the processes, `faults` does them harm, `harness` leads; `ledger` is the witness: the model's server and
the effects' book, which nothing ever harms. `checks` judges what `evidence` found. `workload` and `effects` are loaded by the roles.
"""
