// Orders through openapi-fetch, with the types of openapi-typescript, and prints what happens as JSON:
// run.js ORDERS_URL PRODUCTS_URL USER PLENTY SCARCE (two product ids; there is one unit of SCARCE)
import createClient from "openapi-fetch";
import type { components, paths as Orders } from "./orders.js";
import type { paths as Products } from "./products.js";

type Problem = components["schemas"]["Problem"];

const [ordersUrl, productsUrl, user, plenty, scarce] = process.argv.slice(2) as [string, string, string, string, string];
const orders = createClient<Orders>({ baseUrl: ordersUrl });
const products = createClient<Products>({ baseUrl: productsUrl });

function ok<T>({ data, error }: { data?: T; error?: Problem }): T {
  if (data === undefined) throw new Error(error?.detail);
  return data;
}

const found = ok(await products.GET("/api/product", { params: { query: { ids: [scarce, plenty] } } }));
const place = (customer: string, product_id: string, quantity: number, email?: string) =>
  orders.POST("/api/order", {
    body: { user: customer, email, items: [{ product_id, quantity }] },
    params: { header: { "Idempotency-Key": crypto.randomUUID() } },
  });
const placed = [];
for (let i = 0; i < 3; i++) placed.push(ok(await place(user, plenty, 2)));
const path = { id: placed[0]!.id };
const read = ok(await orders.GET("/api/order/{id}", { params: { path } }));
const list = async (after?: string) =>
  ok(await orders.GET("/api/order", { params: { query: { user, limit: 2, status: "confirmed", after } } }));
const first = await list();
const second = await list(first.next!);
const { response } = await orders.DELETE("/api/order/{id}", { params: { path } });
const cancelled = ok(await orders.GET("/api/order/{id}", { params: { path } }));
const { error: conflict } = await place(user, scarce, 5);
const { error: invalid } = await place(" ", plenty, 1, "nobody");

console.log(
  JSON.stringify({
    products: found.items.map(({ name, price }) => [name, price]),
    placed: [read.status, read.total, read.items[0]!.quantity],
    listed: [...first.items, ...second.items].map(({ id }) => id).reverse().join() === placed.map(({ id }) => id).join(),
    pages: [first.items.length, second.items.length, second.next],
    cancelled: [response.status, cancelled.status],
    conflict: [conflict!.status, conflict!.shortages!.map(({ wanted, left }) => [wanted, left])],
    invalid: [invalid!.status, invalid!.errors!.map(({ field }) => field)],
  }),
);
