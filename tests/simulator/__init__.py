"""A fleet under virtual time: the real code of rollouts and of shared jobs, on virtual boards and a broker.

Nothing here waits or starts a thread. Everything that happens follows from a seed, so a seed and a commit replay a run.
"""
