# It runs on Java.
for service in orders products; do
  openapi-generator-cli generate --generator-name python --input-spec "contracts/$service.json" --output . \
    --package-name "market_$service"
done
