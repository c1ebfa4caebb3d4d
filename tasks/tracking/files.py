"""The file that `register` writes into its output folder."""

VERSION_FILE = "version.json"
