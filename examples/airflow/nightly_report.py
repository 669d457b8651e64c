"""Ana's notebook, every night, as a DAG of Airflow 2.10 or later.

The connection ``elastic_kernels`` holds the gateway's address (host) and the service's token (password)::

    airflow connections add elastic_kernels --conn-type generic --conn-host http://gateway:8888 --conn-password ...
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.decorators import dag, task
from airflow.exceptions import AirflowFailException
from airflow.hooks.base import BaseHook
from notebook_task import PROGRAM, NotebookFailedError, run_notebook


@dag(
    schedule="0 3 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    # what may pass is tried again
    default_args={"retries": 3, "retry_delay": timedelta(minutes=10)},
    params={"notebook": "/home/ana/report.ipynb", "user": "ana", "program": PROGRAM},
)
def nightly_report() -> None:
    """Run the notebook of the parameters, with the day as its parameter."""

    @task
    def report(**context: Any) -> str:
        day, params = context["ds"], context["params"]
        connection = BaseHook.get_connection("elastic_kernels")
        output = params["notebook"].replace(".ipynb", f".{day}.ipynb")
        try:
            run_notebook(
                params["notebook"],
                output,
                user=params["user"],
                gateway=connection.host,
                token=connection.password,
                parameters={"day": day},
                program=params["program"],
            )
        except NotebookFailedError as error:
            # a cell that failed fails again: no retry
            raise AirflowFailException(str(error)) from error
        return output

    report()


nightly_report()
