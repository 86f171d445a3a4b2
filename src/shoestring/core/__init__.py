"""Room 0: config base, units, errors, files, console, device and the machine's measured peaks."""
