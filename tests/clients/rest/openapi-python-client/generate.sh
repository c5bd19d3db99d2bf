# It warns that ruff, which would format its code, is absent.
for service in orders products; do
  openapi-python-client generate --meta none --path "contracts/$service.json" --output-path "market_$service"
done
