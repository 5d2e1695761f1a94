"""Tasks that tests have worked on."""

from wsiad.compute.compute_options import ComputeOptions
from wsiad.compute.tasks import run_tasks
from wsiad.learning.devices import worker_number


def run(function, items, **options):
    notices = []
    found = run_tasks(
        function, items, options=ComputeOptions(**options), failed=lost, notice=notices.append
    )
    return list(found)


def numbered(item):
    return worker_number()


def double(item):
    return item * 2


def lost(item, reason):
    return f"{item} failed: {reason}"
