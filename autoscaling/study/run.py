"""Run the study's test and its week: `python -m raylane.autoscaling.study.run RESULTS_FOLDER [WORKERS]`.

Records go to RESULTS_FOLDER/test and RESULTS_FOLDER/week, a file for each scenario. What is there already is not run
again.
"""

import argparse
import os
import sys
from pathlib import Path

from raylane.autoscaling.study.job import Records
from raylane.autoscaling.study.jobs import study_jobs, week_jobs
from raylane.autoscaling.study.runner import run_jobs
from raylane.cluster.errors import RaylaneError


def main() -> int:
    parser = argparse.ArgumentParser(prog="raylane.autoscaling.study.run", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("workers", type=int, nargs="?", default=os.cpu_count())
    options = parser.parse_args()
    try:
        run_jobs(study_jobs(), Records(options.results / "test"), options.workers)
        run_jobs(week_jobs(), Records(options.results / "week"), options.workers)
    except RaylaneError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
