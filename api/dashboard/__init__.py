"""The web pages: rendered here from the same rows as the JSON API, brought to life by what `static` reads from it."""
