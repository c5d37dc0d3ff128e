"""What the workers of a cluster share, and strangers do not: a token.

    key = secret.read()                           # b"" where there is none
    proof = secret.proof(key, nonce, "1", flags)  # shows that one knows it
    secret.is_proof(key, proof, nonce, "1", flags)

The token is in the environment variable MP_LOOP_CLUSTER_TOKEN, or in the file that
MP_LOOP_CLUSTER_TOKEN_FILE names. It is never sent.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets

from mp_loop.distributed import cluster

TOKEN = "MP_LOOP_CLUSTER_TOKEN"
TOKEN_FILE = "MP_LOOP_CLUSTER_TOKEN_FILE"
_SHORTEST = 16


def read() -> bytes:
    """Returns the token; b"" if none is set.

    Raises:
      ClusterError: the file cannot be read, or the token is short.
    """
    token, path = os.environ.get(TOKEN, ""), os.environ.get(TOKEN_FILE, "")
    if path and not token:
        try:
            with open(path, encoding="utf-8") as file:
                token = file.read(4096)
        except (OSError, ValueError) as error:
            raise cluster.ClusterError(
                f"{TOKEN_FILE} ({path}) must be readable: {error}."
            ) from error
    token = token.strip()
    if (token or path) and len(token) < _SHORTEST:
        raise cluster.ClusterError(
            f"{TOKEN} must have at least {_SHORTEST} characters, such as those of "
            "`openssl rand -hex 32`."
        )
    return token.encode()


def nonce() -> str:
    """Returns what nobody has said before."""
    return secrets.token_hex(16)


def proof(key: bytes, *parts: str) -> str:
    """Returns the HMAC-SHA256 of some texts, each with its length, as 64 digits."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hmac.new(key, text.encode(errors="replace"), hashlib.sha256).hexdigest()


def is_proof(key: bytes, given: object, *parts: str) -> bool:
    """Whether something that was received is the `proof` of these texts."""
    return isinstance(given, str) and hmac.compare_digest(
        given.encode(errors="replace"), proof(key, *parts).encode()
    )
