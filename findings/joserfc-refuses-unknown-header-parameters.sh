#!/usr/bin/env bash
# joserfc: a token whose header has a parameter that the library does not know, or more than 512 bytes, is refused by default.
#
# Expected: RFC 7515 section 4: header parameters that are not understood must be ignored, unless `crit` lists them. So a
# token whose header has, for example, `nonce` is verified like any other; and a header with the certificate chain `x5c` (section
# 4.1.6), which takes some kilobytes, is as valid as one without.
# Seen: jwt.decode raises UnsupportedHeaderError for the first and ExceededSizeError for the second, although the signatures are
# right. `JWSRegistry(strict_check_header=False)` ignores unknown parameters; the size is the attribute max_header_length of a
# registry. PyJWT accepts both tokens.
#
# Versions: joserfc 1.8.0; PyJWT 2.15.1; Python 3.11. Date: 2026-11-28.
# Output seen:
#     nonce: joserfc UnsupportedHeaderError, PyJWT accepted
#     x5c: joserfc ExceededSizeError, PyJWT accepted
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check joserfc==1.8.0 pyjwt==2.15.1; } || exit 2
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import jwt as pyjwt
from joserfc import jwt
from joserfc.jwk import ECKey

key = ECKey.generate_key("P-256")


def outcome(verify):
    try:
        verify()
    except Exception as e:
        return type(e).__name__
    return "accepted"


seen = []
for name, value in (("nonce", "abc"), ("x5c", ["A" * 1200])):
    token = pyjwt.encode({"sub": "ann"}, key.private_key, algorithm="ES256", headers={name: value})
    joserfc = outcome(lambda: jwt.decode(token, key, algorithms=["ES256"]))
    other = outcome(lambda: pyjwt.decode(token, key.public_key, algorithms=["ES256"]))
    print(f"{name}: joserfc {joserfc}, PyJWT {other}")
    seen.append((joserfc, other))
sys.exit(0 if seen == [("UnsupportedHeaderError", "accepted"), ("ExceededSizeError", "accepted")] else 1)
PYTHON
