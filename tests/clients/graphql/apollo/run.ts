// Orders through Apollo Client, with the documents of graphql-codegen, and prints what happens as JSON:
// run.js GRAPHQL_URL USER PLENTY SCARCE (two product ids; there is one unit of SCARCE)
import { ApolloClient, CombinedGraphQLErrors, HttpLink, InMemoryCache } from "@apollo/client";
import {
  CancelOrderDocument,
  FindProductsDocument,
  ListOrdersDocument,
  PlaceOrderDocument,
  ReadOrderDocument,
} from "./gql/graphql.js";

const [uri, user, plenty, scarce] = process.argv.slice(2) as [string, string, string, string];
const client = new ApolloClient({ link: new HttpLink({ uri }), cache: new InMemoryCache() });

function some<T>(value: T | null | undefined): T {
  if (value == null) throw new Error("no value");
  return value;
}

async function place(customer: string, productId: string, quantity: number, email?: string) {
  const input = { user: customer, email, items: [{ productId, quantity }] };
  const { data } = await client.mutate({
    mutation: PlaceOrderDocument,
    variables: { input, key: crypto.randomUUID() },
  });
  return some(data?.createOrder).id;
}

async function refused(placing: Promise<string>) {
  const error = await placing.then(() => null, (e: unknown) => e);
  if (!CombinedGraphQLErrors.is(error)) throw error;
  return some(error.errors[0]?.extensions);
}

async function list(after?: string | null) {
  const { data } = await client.query({ query: ListOrdersDocument, variables: { user, after } });
  return some(data?.orders);
}

const { data: found } = await client.query({ query: FindProductsDocument, variables: { ids: [scarce, plenty] } });
const placed: string[] = [];
for (let i = 0; i < 3; i++) placed.push(await place(user, plenty, 2));
const id = some(placed[0]);
const read = some((await client.query({ query: ReadOrderDocument, variables: { id } })).data?.order);
const first = await list();
const second = await list(first.next);
const { data: cancelled } = await client.mutate({ mutation: CancelOrderDocument, variables: { id } });
const conflict = await refused(place(user, scarce, 5));
const invalid = await refused(place(" ", plenty, 1, "nobody"));

console.log(
  JSON.stringify({
    products: some(found?.products).items.map(({ name, price }) => [name, price]),
    placed: [read.status, read.total, read.items[0]?.quantity],
    listed: [...first.items, ...second.items].map((order) => order.id).reverse().join() === placed.join(),
    pages: [first.items.length, second.items.length, second.next],
    cancelled: cancelled?.deleteOrder?.status,
    conflict: [conflict.code, (conflict.shortages as { wanted: number; left: number }[]).map((s) => [s.wanted, s.left])],
    invalid: [invalid.code, (invalid.errors as { field: string }[]).map(({ field }) => field)],
  }),
);
client.stop();
