"""The files that other rooms read of a validation. `profile.json` is what the next days compare with."""

VERDICT_FILE = "verdict.json"
PROFILE_FILE = "profile.json"
