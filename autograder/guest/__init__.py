"""The untrusted side of the sandbox: what is in the process that runs a submission, and in the one it is forked from.

These modules are copied into the folder a sandbox shows and loaded from there as the package `guest`, so that neither
the grader's modules nor the way to them are in that process. They import nothing of ours but puzzles and
nanochat.isolation.
"""
