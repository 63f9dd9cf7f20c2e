"""The revisions, one file each, in one line of history."""
