"""`python -m api [--host 127.0.0.1] [--port 8321]`: serves the API; settings come from the environment."""

import argparse
import sys

import uvicorn
from sqlalchemy.exc import SQLAlchemyError

from api.app import SecondReplicaError, be_the_one, create_app
from db.session import trouble
from db.settings import from_environment


def main() -> int:
    """Serve until stopped. Exit code 2: the settings are wrong, or another replica holds the database; 1: the database
    cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m api", description="Serve Attune's API.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8321)
    options = parser.parse_args()
    try:
        app = create_app(from_environment())
        be_the_one(app)
    except (ValueError, SecondReplicaError) as error:
        print(error, file=sys.stderr)
        return 2
    except SQLAlchemyError as error:
        print(trouble(error), file=sys.stderr)
        return 1
    config = uvicorn.Config(
        app, host=options.host, port=options.port, log_level="warning", timeout_graceful_shutdown=5
    )
    uvicorn.Server(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
