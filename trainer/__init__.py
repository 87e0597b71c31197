"""The trainer: from a spec to a compared result. Runs alone; knows no database, queue or HTTP."""
