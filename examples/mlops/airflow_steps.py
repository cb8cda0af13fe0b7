"""The steps of the DAG as shell commands, which also run by themselves, in their order.

Each takes what it needs from the environment: `INTRASLICE_URL`, `INTRASLICE_API_KEY`, `MODEL`,
`RATIO`, `OPTIONS`, `RUN` (a name of this run, so that a task that is tried again finds its job),
`JOB` (the last line that `submit` has printed; Airflow takes what goes to stderr for lines, too)
and `PLACE` (a directory).
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
