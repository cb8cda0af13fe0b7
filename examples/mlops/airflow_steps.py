"""The steps of the DAG as shell commands, which also run by themselves, in their order.

Each takes what it needs from the environment: `INTRASLICE_URL`, `INTRASLICE_API_KEY`, `MODEL`,
`RATIO`, `OPTIONS`, `RUN` (a name of this run, so that a task that is tried again finds its job),
`JOB` (what `submit` has printed) and `PLACE` (a directory).
"""

STEPS = {
    "validate": 'intraslice validate "$MODEL" --ratio "$RATIO" $OPTIONS',
    "submit": (
        'intraslice submit "$MODEL" --ratio "$RATIO" $OPTIONS --idempotency-key "airflow-$RUN"'
    ),
    "wait": 'intraslice watch "$JOB"',
    "download": 'intraslice download "$JOB" "$PLACE" && intraslice verify "$PLACE"',
}
