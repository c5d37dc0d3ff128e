"""The cluster's secret: where it comes from, and what it proves."""

import pytest

from mp_loop.distributed import cluster, secret

TOKEN = "sixteen letters!"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv(secret.TOKEN, raising=False)
    monkeypatch.delenv(secret.TOKEN_FILE, raising=False)


def test_it_is_in_the_environment_or_in_a_file(tmp_path, monkeypatch):
    assert secret.read() == b""
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    monkeypatch.setenv(secret.TOKEN_FILE, str(path))
    assert secret.read() == TOKEN.encode()
    monkeypatch.setenv(secret.TOKEN, f" {TOKEN}2 ")
    assert secret.read() == f"{TOKEN}2".encode()


@pytest.mark.parametrize("text", ["short", None], ids=["short", "no file"])
def test_a_bad_one_is_refused(tmp_path, monkeypatch, text):
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv(secret.TOKEN_FILE, str(path))
    with pytest.raises(cluster.ClusterError, match="MP_LOOP_CLUSTER_TOKEN") as error:
        secret.read()
    assert text is None or text not in str(error.value)


def test_a_proof_is_of_these_texts_and_this_key():
    proof = secret.proof(b"key", "a", "bc")
    assert secret.is_proof(b"key", proof, "a", "bc")
    assert not secret.is_proof(b"key", proof, "ab", "c")
    assert not secret.is_proof(b"other", proof, "a", "bc")
    assert not secret.is_proof(b"key", None, "a", "bc")
    assert not secret.is_proof(b"key", "\ud800", "a", "bc")
