"""`python -m db migrate`: brings the database to this version's tables. `python -m db key NAME`: a first admin key.

What an administrator does before the service can be asked. `ATTUNE_DATABASE_URL` says where.
"""

import argparse
import os
import sys

from sqlalchemy.exc import SQLAlchemyError

from db import keys
from db.migrations import migrate
from db.session import Database


def main() -> int:
    """Exit code 1: the database cannot be reached or changed; 2: it is not said which."""
    parser = argparse.ArgumentParser(prog="python -m db", description="Prepare Attune's database.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="bring the database to this version's tables")
    sub = commands.add_parser("key", help="issue an admin key and print its secret, once")
    sub.add_argument("name", help="what the key is for")
    sub.add_argument("--project", default="default", help="made where there is none (default: default)")
    options = parser.parse_args()
    url = os.environ.get("ATTUNE_DATABASE_URL")
    if not url:
        print("set ATTUNE_DATABASE_URL, e.g. postgresql+psycopg://user:password@host/attune", file=sys.stderr)
        return 2
    try:
        database = Database(url)
        if options.command == "migrate":
            migrate(database)
        else:
            with database.write() as session:
                project = keys.project(session, options.project)
                print(keys.issue(session, project.id, options.name, "admin", "administrator")[1])
        database.close()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except SQLAlchemyError as error:  # its text may hold the query, never the password
        print(f"{type(error).__name__}: {str(getattr(error, 'orig', None) or error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
