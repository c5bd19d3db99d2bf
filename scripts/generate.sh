#!/usr/bin/env bash
# Generate the protobuf code, the OpenAPI documents, the AsyncAPI document with the events' JSON Schema, and the table of
# permissions in docs/security.md.
# With --check, change nothing and fail if one is out of date.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# The virtual path puts the modules into market.contracts, separate from the service of the same name.
PATH="$bin:$PATH" "$bin/python" -m grpc_tools.protoc \
  -I "market/contracts=proto/market/inventory/v1" \
  -I "$("$bin/python" -c 'import grpc_tools, os; print(os.path.join(os.path.dirname(grpc_tools.__file__), "_proto"))')" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
  proto/market/inventory/v1/inventory.proto

mkdir -p "$out/openapi"
for service in products orders notifications; do
  if [ -f "src/market/$service/openapi.py" ]; then
    "$bin/python" -m market.$service.openapi > "$out/openapi/$service.json"
  fi
done

"$bin/python" scripts/asyncapi.py "$out/asyncapi"
"$bin/python" scripts/security.py "$out/security.md"

status=0
while read -r generated kept; do
  [ -f "$generated" ] || continue
  if [ "${1:-}" = --check ]; then
    cmp -s "$generated" "$kept" || { echo "$kept is out of date: make generate"; status=1; }
  else
    mkdir -p "$(dirname "$kept")" && cp "$generated" "$kept"
  fi
done <<END
$out/market/contracts/inventory_pb2.py src/market/contracts/inventory_pb2.py
$out/market/contracts/inventory_pb2.pyi src/market/contracts/inventory_pb2.pyi
$out/market/contracts/inventory_pb2_grpc.py src/market/contracts/inventory_pb2_grpc.py
$out/market/contracts/inventory_pb2_grpc.pyi src/market/contracts/inventory_pb2_grpc.pyi
$out/openapi/products.json openapi/products.json
$out/openapi/orders.json openapi/orders.json
$out/openapi/notifications.json openapi/notifications.json
$out/asyncapi/orders.json asyncapi/orders.json
$out/asyncapi/order-event.schema.json asyncapi/order-event.schema.json
$out/security.md docs/security.md
END
exit $status
