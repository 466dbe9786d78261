"""From a solved trace to the symmetry class of every axis group: what each operation on its units allows.

`slots` says where units lie in a value, `walk` goes through the recorded operations and notes in a `Ledger` which
values change alike and what limits them, `scales` and `gauges` solve what was noted, `classify` puts it into the spec.
"""
