"""A fleet under virtual time: the real code of rollouts, trials and conductors, on virtual boards and a virtual broker.

Nothing here waits or starts a thread. Everything that happens follows from a seed, so a seed and a commit replay a run.
"""
