"""Many slides, many machines: where slides are worked on, and what if a machine is lost.

``options.py`` holds the flags that verbs share, ``jobs.py`` the YAML file of a batch
cluster and its job script, ``supervision.py`` keeps its jobs running, ``tasks.py`` hands out
the slides, and ``worker.py`` is what runs in a job. ``local.py`` keeps the workers of this
machine, of which each is a ``local_worker.py``; ``lifetimes.py`` begins and ends what is dask's.
"""
