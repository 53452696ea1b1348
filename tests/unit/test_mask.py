"""What is shown and logged holds nothing that lets somebody in."""

from __future__ import annotations

import pytest

from colab_local.base.text import mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://me:pw@a.example/x", "http://***@a.example/x"),
        ("http://me:p@w@a.example/x", "http://***@a.example/x"),
        ("http://localhost:8888/?token=abc", "http://localhost:8888/?token=***"),
        ("GET /api?token=abc", "GET /api?token=***"),
        (
            "https://b.example/o?X-Amz-Date=1&X-Amz-Signature=ab%2Fc",
            "https://b.example/o?X-Amz-Date=***&X-Amz-Signature=***",
        ),
        ("--mirror https://a/=https://b/?sig=s3cret", "--mirror https://a/=https://b/?sig=***"),
        (
            "can't get 'https://b/x?private_token=s3cret': HTTP 404",
            "can't get 'https://b/x?private_token=***': HTTP 404",
        ),
        ("https://a.example/x#sha256:abc", "https://a.example/x#sha256:abc"),
        ("file:///tmp/a b?c=d", "file:///tmp/a b?c=d"),
        ("is a=b right?", "is a=b right?"),
        ("https://x/?y=1&sv=2", "https://x/?y=1&sv=2"),
    ],
)
def test_no_login_signature_or_token_is_left(text: str, masked: str) -> None:
    assert mask(text) == masked
