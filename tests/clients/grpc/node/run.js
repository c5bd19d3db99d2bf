// Calls inventory with types loaded from the .proto file, and prints what it returns as JSON: run.js HOST:PORT PRODUCT_ID
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import protobuf from "protobufjs";
import { getProtoPath } from "google-proto-files";

const root = getProtoPath("..");
const definition = loader.loadSync(`${import.meta.dirname}/proto/inventory.proto`, {
  keepCase: true,
  defaults: true,
  includeDirs: [root],
});
const { Inventory } = grpc.loadPackageDefinition(definition).market.inventory.v1;
const [target, productId] = process.argv.slice(2);
const client = new Inventory(target, grpc.credentials.createInsecure());
const call = (product_ids) =>
  new Promise((resolve, reject) =>
    client.CheckAvaliable({ product_ids }, { deadline: Date.now() + 30_000 }, (error, response) =>
      error ? reject(error) : resolve(response),
    ),
  );

const types = new protobuf.Root();
types.resolvePath = (_, file) => `${root}/${file}`;
await types.load(["google/rpc/status.proto", "google/rpc/error_details.proto"]);
const found = (await call([productId])).items[0];
const refused = await call(["x"]).then(() => null, (error) => error);
const status = types.lookupType("google.rpc.Status").decode(refused.metadata.get("grpc-status-details-bin")[0]);
const BadRequest = types.lookupType("google.rpc.BadRequest");
const fields = status.details
  .filter(({ type_url }) => type_url === "type.googleapis.com/google.rpc.BadRequest")
  .flatMap(({ value }) => BadRequest.decode(value).fieldViolations)
  .map(({ field, description }) => `${field} ${description}`);
console.log(
  JSON.stringify({
    available: found.available,
    quantity: found.quantity,
    code: refused.code,
    message: refused.details,
    fields,
  }),
);
process.exit(0);
