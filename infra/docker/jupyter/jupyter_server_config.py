"""JupyterLab asks for a token, always: the one in the file JUPYTER_TOKEN_FILE, without which it does not start."""

import os
from pathlib import Path

token = Path(os.environ.get("JUPYTER_TOKEN_FILE", "/run/secrets/jupyter_token")).read_text().strip()
if len(token) < 16:
    raise SystemExit("the notebook's token has fewer than 16 characters; write a longer one into JUPYTER_TOKEN_FILE")
c = get_config()  # type: ignore[name-defined]  # noqa: F821 (Jupyter gives it)
c.IdentityProvider.token = token
c.ServerApp.root_dir = os.environ.get("NOTEBOOKS", "/work")
c.ServerApp.allow_root = False
