"""`python -m db migrate`: brings the database to this version's tables. `python -m db key NAME`: a first admin key.
`python -m db reingest`: what of the artifact store the database lacks, for one that was lost.

What an administrator does before the service can be asked. `ATTUNE_DATABASE_URL` says where, `ATTUNE_STORE` from what.
"""

import argparse
import json
import os
import sys

from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.exc import SQLAlchemyError

from db import keys
from db.migrations import migrate
from db.reingest import reingest
from db.session import Database, trouble
from db.settings import own_code
from trainer.store import open_store


def main() -> int:
    """Exit code 1: the database or store cannot be reached, or not all of it taken in; 2: it is not said which."""
    parser = argparse.ArgumentParser(prog="python -m db", description="Prepare Attune's database.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="bring the database to this version's tables")
    sub = commands.add_parser("key", help="issue an admin key and print its secret, once")
    sub.add_argument("name", help="what the key is for")
    sub.add_argument("--project", default="default", help="made where there is none (default: default)")
    sub = commands.add_parser("reingest", help="take in what of the store of ATTUNE_STORE the database lacks")
    sub.add_argument("--json", action="store_true", help="machine-readable output")
    options = parser.parse_args()
    url = os.environ.get("ATTUNE_DATABASE_URL")
    if not url:
        print("set ATTUNE_DATABASE_URL, e.g. postgresql+psycopg://user:password@host/attune", file=sys.stderr)
        return 2
    if options.command == "reingest" and not os.environ.get("ATTUNE_STORE"):
        print("set ATTUNE_STORE, e.g. s3://bucket/prefix", file=sys.stderr)
        return 2
    try:
        database = Database(url)
        if options.command == "migrate":
            migrate(database)
        elif options.command == "reingest":
            migrate(database)
            report = reingest(database, open_store(os.environ["ATTUNE_STORE"]), own_code())
            print(json.dumps(report.to_json(), indent=1) if options.json else "\n".join(report.lines()))
            return 1 if report.problems else 0
        else:
            with database.write() as session:
                project = keys.project(session, options.project)
                print(keys.issue(session, project.id, options.name, "admin", "administrator")[1])
        database.close()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, BotoCoreError, ClientError) as error:
        print(f"{os.environ['ATTUNE_STORE']}: {error}", file=sys.stderr)
        return 1
    except SQLAlchemyError as error:
        print(trouble(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
