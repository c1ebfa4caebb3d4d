"""JupyterLab always asks for a token: the content of the file JUPYTER_TOKEN_FILE. Without it, it does not start."""

import os
from pathlib import Path

file = Path(os.environ.get("JUPYTER_TOKEN_FILE", "/run/secrets/jupyter_token"))
token = file.read_text().strip() if file.is_file() else ""
if len(token) < 16:  # Jupyter ignores any other exception of its configuration
    raise SystemExit(
        f"{file}: no token of 16 characters or more; mount one there, or name its file: JUPYTER_TOKEN_FILE"
    )
c = get_config()  # type: ignore[name-defined]  # noqa: F821 (Jupyter defines it)
c.IdentityProvider.token = token
c.ServerApp.root_dir = os.environ.get("NOTEBOOKS", "/work")
c.ServerApp.allow_root = False
