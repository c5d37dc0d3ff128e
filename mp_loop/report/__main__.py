"""`python -m mp_loop.report RUN...`: the command of `mp_loop.report_runs`."""

from mp_loop import report_runs

__doc__ = report_runs.__doc__  # what --help shows

if __name__ == "__main__":
    report_runs.main()
