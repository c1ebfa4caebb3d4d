"""The files of a validation that other modules read. The next days compare with `profile.json`."""

VERDICT_FILE = "verdict.json"
PROFILE_FILE = "profile.json"
