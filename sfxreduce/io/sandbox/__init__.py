"""Reading files that are not trusted, in a process that may crash or be stopped."""
