"""A command that runs only while this process leads: ``supervisor`` follows the office, ``guardian`` ends the work."""
