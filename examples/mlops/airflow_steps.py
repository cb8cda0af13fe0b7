"""Steps of the DAG as shell commands, which also run without Airflow, in this order.

They read the environment variables `INTRASLICE_URL`, `INTRASLICE_API_KEY`, `MODEL`, `RATIO`,
`OPTIONS`, `RUN` (name of the run, so that a retried task finds its job), `JOB` (last line printed
by `submit`; Airflow counts lines on stderr, too) and `PLACE` (output directory).
"""

STEPS = {
    "validate": 'intraslice validate "$MODEL" --ratio "$RATIO" $OPTIONS',
    "submit": (
        'job=$(intraslice submit "$MODEL" --ratio "$RATIO" $OPTIONS'
        ' --idempotency-key "airflow-$RUN") && echo "$job"'
    ),
    "wait": 'intraslice watch "$JOB"',
    "download": 'intraslice download "$JOB" "$PLACE" && intraslice verify "$PLACE"',
}
