"""Many slides, many machines: where slides are worked on, and what if a machine is lost.

``compute_options.py`` holds the flags that verbs share, ``batch.py`` what becomes of each slide,
``jobs.py`` the jobs of a batch cluster, ``tasks.py`` hands out the slides, and ``job_worker.py``
is what runs in a job. ``local.py`` keeps the workers of this machine, of which each is a
``local_worker.py``.
"""
