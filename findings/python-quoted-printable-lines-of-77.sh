#!/usr/bin/env bash
# Python: quoted-printable encoding writes lines that are longer than the 76 characters that the format permits.
#
# Expected: `quopri.encodestring` and `binascii.b2a_qp` break lines such that none is longer than 76 characters without its
# line end, as RFC 2045, 6.7 (5) requires.
# Seen: a line of 74 or 75 characters that ends with a space or a tab becomes one of 77 or 78: the blank at the end
# must be encoded (=20), and its two more characters are not counted when the line is broken. Decoders of mail usually accept it;
# checkers and strict gateways refuse or repair the message, which breaks a signature over its body.
#
# Versions: Python 3.11.7, 3.12.1 and 3.13.0 (standard library, nothing is downloaded). Date: 2026-11-29.
# Output seen:
#     quopri.encodestring: 73 letters and b' ': a line of 76 characters
#     quopri.encodestring: 74 letters and b' ': a line of 77 characters
#     quopri.encodestring: 75 letters and b' ': a line of 78 characters
#     (the same with a tab, and with binascii.b2a_qp)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/lines.py" <<'PYTHON'
import binascii
import platform
import quopri
import sys

print(f"Python {platform.python_version()}")
longest = 0
for name, encode in (("quopri.encodestring", quopri.encodestring), ("binascii.b2a_qp", lambda b: binascii.b2a_qp(b, istext=True))):
    for length in (73, 74, 75):
        for blank in (b" ", b"\t"):
            text = b"a" * length + blank + b"\nend\n"
            encoded = encode(text)
            assert quopri.decodestring(encoded) == text
            width = max(len(line) for line in encoded.splitlines())
            longest = max(longest, width)
            print(f"{name}: {length} letters and {blank!r}: a line of {width} characters")
sys.exit(0 if longest > 76 else 1)
PYTHON
python3 "$folder/lines.py"
