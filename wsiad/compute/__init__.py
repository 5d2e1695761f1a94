"""Process many slides, in this process, in local workers or on a cluster, without losing any.

``compute_options.py`` has the options that verbs share, ``batch.py`` collects a row for each slide
and ``tasks.py`` hands out the slides. ``jobs.py`` runs the jobs of a batch cluster, in which
``job_worker.py`` works. ``local.py`` keeps the workers of this machine, which run
``local_worker.py``.
"""
