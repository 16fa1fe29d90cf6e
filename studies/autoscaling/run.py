"""Run the study's test and its week: `python -m studies.autoscaling.run RESULTS_FOLDER [WORKERS]`.

Records go to RESULTS_FOLDER/test and RESULTS_FOLDER/week while it runs, and into test.parquet and week.parquet at its
end. What is there already is not run again.
"""

import argparse
import os
import sys
from pathlib import Path

from raylane.cluster.errors import RaylaneError
from studies.autoscaling.job import Records
from studies.autoscaling.jobs import study_jobs, week_jobs
from studies.autoscaling.runner import run_jobs


def main() -> int:
    parser = argparse.ArgumentParser(prog="studies.autoscaling.run", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("workers", type=int, nargs="?", default=os.cpu_count())
    options = parser.parse_args()
    try:
        for part, jobs in (("test", study_jobs()), ("week", week_jobs())):
            records = Records(options.results / part)
            run_jobs(jobs, records, options.workers)
            records.seal()
    except RaylaneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
