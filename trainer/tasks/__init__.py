"""Built-in speech tasks: data, one YAML file each, of the same shape a user writes."""
