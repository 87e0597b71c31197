"""What the service knows: tables, statuses, and every query as a function. Postgres or SQLite, the same code."""
