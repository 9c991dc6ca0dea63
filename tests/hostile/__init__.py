"""Hostile inputs: seeded fuzzers for everything that eomt-deploy reads, and failures of the system.

`python -m tests.hostile --count 200000` is a long run of the fuzzers. `pytest tests/hostile` runs
fifty inputs of each, and the tests of the native kernels, of processes and of full disks.
"""
